// What the forward pass and the gradients share: patches, destinations, scratch memory.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_BLOCKS_H_
#define ESPACE_TF_KERNELS_CORE_CPU_BLOCKS_H_

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// Columns in panels of whole vectors, as even as they can be: 80 columns are 32 + 48, not 64 + 16,
// since narrow tiles are slow.
class Panels {
 public:
  Panels(const Variant& variant, int64_t columns)
      : lanes_(variant.lanes),
        vectors_(CeilDiv(columns, variant.lanes)),
        count_(CeilDiv(vectors_, variant.tile_vectors)) {}

  int64_t count() const { return count_; }
  int64_t widest() const { return count_ ? CeilDiv(vectors_, count_) : 1; }  // in vectors
  int64_t begin(int64_t panel) const { return count_ ? vectors_ * panel / count_ * lanes_ : 0; }
  int64_t width(int64_t panel) const { return begin(panel + 1) - begin(panel); }

 private:
  const int64_t lanes_, vectors_, count_;
};

// Whole cache lines, not initialised.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(int64_t size)
      : data_(static_cast<float*>(::operator new(size * sizeof(float), kAlignment))) {}
  AlignedFloats(AlignedFloats&& other) { std::swap(data_, other.data_); }
  AlignedFloats& operator=(AlignedFloats&& other) {
    std::swap(data_, other.data_);
    return *this;
  }
  ~AlignedFloats() { ::operator delete(data_, kAlignment); }

  float* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  float* data_ = nullptr;
};

constexpr int64_t kLine = 16;  // floats in a cache line
constexpr uintptr_t kLineBytes = kLine * sizeof(float);

// Grows but never shrinks: kept per thread so that a call does not map and fault in fresh pages.
inline float* Scratch(std::vector<float>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

// The same, at the beginning of a cache line.
inline float* Lined(std::vector<float>& buffer, int64_t size) {
  float* data = Scratch(buffer, size + kLine);
  return data + (kLineBytes - reinterpret_cast<uintptr_t>(data) % kLineBytes) / sizeof(float);
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

// As CopyTaps, with so few channels that a call for each tap is what would take long.
template <int CHANNELS>
void CopyThinTaps(const int32_t* reads, int64_t taps, const float* image, int64_t stride,
                  float* to) {
  static constexpr float kZeros[CHANNELS] = {};
  for (int64_t t = 0; t < taps; ++t, to += CHANNELS) {
    std::memcpy(to, reads[t] < 0 ? kZeros : image + reads[t] * stride, sizeof(kZeros));
  }
}

// Writes [taps, channels]: what these taps of one position read; neighbouring rows as one piece.
// stride: floats from one input row to the next.
inline void CopyTaps(const int32_t* reads, int64_t taps, int64_t channels, const float* image,
                     int64_t stride, float* to) {
  if (channels == 1) return CopyThinTaps<1>(reads, taps, image, stride, to);
  if (channels == 2) return CopyThinTaps<2>(reads, taps, image, stride, to);
  if (channels == 3) return CopyThinTaps<3>(reads, taps, image, stride, to);
  if (channels == 4) return CopyThinTaps<4>(reads, taps, image, stride, to);
  for (int64_t t = 0; t < taps;) {
    int64_t run = 1;
    if (reads[t] < 0) {
      std::fill_n(to, channels, 0.0f);
    } else {
      while (stride == channels && t + run < taps && reads[t + run] == reads[t] + run) ++run;
      std::memcpy(to, image + reads[t] * stride, run * channels * sizeof(float));
    }
    to += run * channels;
    t += run;
  }
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_BLOCKS_H_
