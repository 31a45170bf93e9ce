#include "core/cpu/narrow.h"

#include <algorithm>
#include <cstring>

namespace espace {

namespace {

constexpr int64_t kBlockGroups = 8;

// Writes [taps, lanes, CHANNELS]: what each tap reads of `count` positions, and zeros for the
// others.
template <int CHANNELS>
void Copy(const ConvShape& shape, const float* image, const int32_t* reads, int64_t count,
          int64_t lanes, float* to) {
  static constexpr float kZeros[CHANNELS] = {};
  for (int64_t t = 0; t < shape.taps; ++t) {
    for (int64_t i = 0; i < lanes; ++i, to += CHANNELS) {
      const int32_t read = i < count ? reads[i * shape.taps + t] : -1;
      std::memcpy(to, read < 0 ? kZeros : image + read * CHANNELS, sizeof(kZeros));
    }
  }
}

using CopyFunction = void (*)(const ConvShape&, const float*, const int32_t*, int64_t, int64_t,
                              float*);
constexpr CopyFunction kCopies[kMostNarrowChannels] = {Copy<1>, Copy<2>, Copy<3>, Copy<4>};

}  // namespace

bool Narrow::Suits(const Variant& variant, const ConvShape& shape, bool joined) {
  return joined && shape.channels <= kMostNarrowChannels &&
         shape.filters <= variant.narrow.most_filters;
}

Narrow::Narrow(const Variant& variant, const ConvShape& shape, const int32_t* table,
               const int32_t* spread)
    : lanes_(variant.lanes),
      shape_(shape),
      table_(table),
      kernel_(variant.narrow.kernel(shape.channels, shape.filters)),
      spreads_(spread != nullptr),
      destinations_(shape, spread),
      zeros_(lanes_ * shape.channels, 0.0f),
      run_(shape.computed, 1) {
  for (int64_t q = shape.computed - 2; q >= 0; --q) {
    const int32_t* own = table + q * shape.taps;
    const bool goes_on =
        std::equal(own, own + shape.taps, own + shape.taps,
                   [](int32_t a, int32_t b) { return a < 0 ? b < 0 : b == a + 1; });
    if (goes_on) run_[q] += run_[q + 1];
  }
}

void Narrow::Compute(const Operands& operands, int64_t begin, int64_t end) const {
  for (int64_t flat = begin; flat < end;) {
    const Position first(shape_, flat);
    const int64_t count =
        std::min({kBlockGroups * lanes_, end - flat, shape_.computed - first.computed});
    Block(operands, first, count);
    flat += count;
  }
}

// Positions of one image, the last group of which may be less than a vector.
void Narrow::Block(const Operands& operands, const Position& first, int64_t count) const {
  thread_local std::vector<const float*> rows;
  thread_local std::vector<float> copied, results;
  const int64_t groups = CeilDiv(count, lanes_), row = lanes_ * shape_.channels;
  rows.resize(groups * shape_.taps);
  float* copies = Scratch(copied, groups * shape_.taps * row);
  FindRows(operands.in.at(first.image, 0), first.computed, count, rows.data(), copies);
  float* out = Scratch(results, groups * lanes_ * shape_.filters);
  kernel_({rows.data(), groups, shape_.taps, operands.filter, operands.bias, operands.low,
           operands.high, out});
  Write(operands, first, count, out);
}

// What each tap of each group reads: where it is, if it is one piece for all taps, or copies. The
// table, which has long left the caches, is looked at once for groups that go on from each other.
void Narrow::FindRows(const float* image, int64_t first, int64_t count, const float** rows,
                      float* copies) const {
  const int64_t taps = shape_.taps, row = lanes_ * shape_.channels;
  for (int64_t i = 0; i < count;) {
    const int32_t* reads = table_ + (first + i) * taps;
    const int64_t whole = std::min<int64_t>(run_[first + i], count - i) / lanes_;
    for (int64_t g = 0; g < whole; ++g, rows += taps, copies += taps * row) {
      for (int64_t t = 0; t < taps; ++t) {
        rows[t] = reads[t] < 0 ? zeros_.data() : image + reads[t] * shape_.channels + g * row;
      }
    }
    if (whole == 0) {
      kCopies[shape_.channels - 1](shape_, image, reads, std::min(lanes_, count - i), lanes_,
                                   copies);
      for (int64_t t = 0; t < taps; ++t) rows[t] = copies + t * row;
      rows += taps;
      copies += taps * row;
    }
    i += std::max<int64_t>(whole, 1) * lanes_;
  }
}

// Copies the results to all rows that show them.
void Narrow::Write(const Operands& operands, const Position& first, int64_t count,
                   const float* results) const {
  const int64_t filters = shape_.filters;
  if (!spreads_ && operands.out.row == filters) {
    std::copy_n(results, count * filters, operands.out.at(first.image, first.computed));
    return;
  }
  for (int64_t i = 0; i < count; ++i, results += filters) {
    const int64_t computed = first.computed + i;
    if (!spreads_) {
      std::copy_n(results, filters, operands.out.at(first.image, computed));
      continue;
    }
    for (int32_t d = destinations_.start[computed]; d < destinations_.start[computed + 1]; ++d) {
      std::copy_n(results, filters, operands.out.at(first.image, destinations_.row[d]));
    }
  }
}

}  // namespace espace
