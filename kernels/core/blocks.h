// What the forward pass and the gradients share: patches, destinations, scratch memory.
#ifndef ESPACE_TF_KERNELS_CORE_BLOCKS_H_
#define ESPACE_TF_KERNELS_CORE_BLOCKS_H_

#include <algorithm>
#include <cstring>
#include <vector>

#include "params.h"
#include "variants.h"

namespace espace {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Below this many channels a tap is too short a loop: the block's patches are copied out first,
// runs of neighbouring taps at a time, and the product runs over taps * channels as if over one
// tap.
inline bool CopiesPatches(const ConvShape& shape) { return shape.channels < 16 && shape.taps > 1; }

// A computed position of an image, and its number in the flattened [batch, computed]. Walking costs
// no division.
struct Position {
  int64_t flat, image, computed, count;

  Position(const ConvShape& shape, int64_t number)
      : flat(number),
        image(number / shape.computed),
        computed(number % shape.computed),
        count(shape.computed) {}

  void Next() {
    ++flat;
    if (++computed == count) {
      computed = 0;
      ++image;
    }
  }
};

// Columns in panels of whole vectors, as even as they can be: 64 columns are 32 + 32, not 48 + 16,
// since narrow tiles are slow.
class Panels {
 public:
  Panels(const Variant& variant, int64_t columns)
      : lanes_(variant.lanes),
        vectors_(CeilDiv(columns, variant.lanes)),
        count_(CeilDiv(vectors_, variant.tile_vectors)) {}

  int64_t count() const { return count_; }
  int64_t begin(int64_t panel) const { return count_ ? vectors_ * panel / count_ * lanes_ : 0; }
  int64_t width(int64_t panel) const { return begin(panel + 1) - begin(panel); }

 private:
  const int64_t lanes_, vectors_, count_;
};

// Grows but never shrinks: kept per thread so that a call does not map and fault in fresh pages.
inline float* Scratch(std::vector<float>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

// The output rows that show each computed position: spread inverted, as offsets into one list.
struct Destinations {
  std::vector<int32_t> start, row;

  Destinations(const ConvShape& shape, const int32_t* spread) {
    if (spread == nullptr) return;
    start.assign(shape.computed + 1, 0);
    row.resize(shape.rows_out);
    for (int64_t r = 0; r < shape.rows_out; ++r) ++start[spread[r] + 1];
    for (int64_t q = 0; q < shape.computed; ++q) start[q + 1] += start[q];
    std::vector<int32_t> next(start.begin(), start.end() - 1);
    for (int64_t r = 0; r < shape.rows_out; ++r) row[next[spread[r]]++] = static_cast<int32_t>(r);
  }
};

// Writes [end - begin, taps, channels]: the patches of rows [begin, end) of the flattened [batch,
// computed]. Taps that read neighbouring input rows are copied as one run.
inline void CopyPatches(const ConvShape& shape, const float* rows, const int32_t* table,
                        int64_t begin, int64_t end, float* to) {
  for (Position at(shape, begin); at.flat < end; at.Next()) {
    const float* image = rows + at.image * shape.rows_in * shape.channels;
    const int32_t* reads = table + at.computed * shape.taps;
    for (int64_t t = 0; t < shape.taps;) {
      int64_t run = 1;
      if (reads[t] < 0) {
        std::fill_n(to, shape.channels, 0.0f);
      } else {
        while (t + run < shape.taps && reads[t + run] == reads[t] + run) ++run;
        std::memcpy(to, image + reads[t] * shape.channels, run * shape.channels * sizeof(float));
      }
      to += run * shape.channels;
      t += run;
    }
  }
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_BLOCKS_H_
