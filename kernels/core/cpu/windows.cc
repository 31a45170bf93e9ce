#include "core/cpu/windows.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace espace {

namespace {

// Windows of a block: what they read stays in the first-level cache from one vector of columns to
// the next.
constexpr int64_t kBlockWindows = 32;

// How many of a window's three columns, from the left, are the last ones of the window before it.
uint8_t SharedColumns(const int32_t* before, const int32_t* own) {
  for (int shared = 2; shared > 0; --shared) {
    bool same = true;
    for (int y = 0; y < 3; ++y) {
      for (int x = 0; x < shared; ++x) same &= own[3 * y + x] == before[3 * y + x + 3 - shared];
    }
    if (same) return static_cast<uint8_t>(shared);
  }
  return 0;
}

}  // namespace

Windows::Windows(const Variant& variant, Kind kind, const ConvShape& shape, const int32_t* table,
                 const int32_t* spread)
    : variant_(variant),
      kernels_(variant.windows),
      kind_(kind),
      shape_(shape),
      table_(table),
      spreads_(spread != nullptr),
      destinations_(shape, spread),
      nothing_(shape.channels,
               kind == Kind::kMax ? -std::numeric_limits<float>::infinity() : 0.0f),
      shared_(shape.computed, 0),
      shares_(shape.computed, 0.0f) {
  for (int64_t q = 0; q < shape.computed; ++q) {
    const int32_t* own = table + q * shape.taps;
    const auto padding = std::count(own, own + shape.taps, -1);
    if (padding < shape.taps) shares_[q] = 1.0f / static_cast<float>(shape.taps - padding);
    if (shape.taps == 9 && q > 0) shared_[q] = SharedColumns(own - 9, own);
  }
  if (std::count(shared_.begin(), shared_.end(), 2) > 0) slides_.resize(shape.computed, 0);
  for (int64_t q = static_cast<int64_t>(slides_.size()) - 2; q >= 0; --q) {
    if (shared_[q + 1] == 2) slides_[q] = std::min<int64_t>(slides_[q + 1] + 1, kBlockWindows);
  }
}

void Windows::Compute(const Operands& operands, int64_t begin, int64_t end) const {
  for (int64_t flat = begin; flat < end;) {
    const Position first(shape_, flat);
    const int64_t count =
        std::min({kBlockWindows, end - flat, shape_.computed - first.computed});
    Block(operands, first, count);
    flat += count;
  }
}

// Windows of one image.
void Windows::Block(const Operands& operands, const Position& first, int64_t count) const {
  const float* rows[kBlockWindows * kMostTaps];
  uint8_t shared[kBlockWindows];
  float* out[kBlockWindows];
  variant_.find({table_ + first.computed * shape_.taps, count * shape_.taps,
                 operands.in.at(first.image, 0), operands.in.row, nothing_.data(), rows});
  std::copy_n(shared_.data() + first.computed, count, shared);
  shared[0] = 0;
  for (int64_t i = 0; i < count; ++i) out[i] = Output(operands, first.image, first.computed + i);
  const uint8_t* slides = slides_.empty() ? nullptr : slides_.data() + first.computed;
  const WindowBlock windows{rows, shared, slides, out, count, shape_.taps, shape_.channels};
  switch (kind_) {
    case Kind::kMax:
      kernels_.largest(windows);
      break;
    case Kind::kAverage:
      kernels_.mean(windows, shares_.data() + first.computed);
      break;
    case Kind::kDepthwise:
      kernels_.weigh(windows, operands.weights, operands.bias, operands.low, operands.high);
  }
  for (int64_t i = 0; i < count; ++i) {
    if (kind_ == Kind::kMax && shares_[first.computed + i] == 0.0f) {  // padding alone
      std::fill_n(out[i], shape_.channels, 0.0f);
    }
    if (spreads_) Spread(operands, first.image, first.computed + i, out[i]);
  }
}

// The first row that shows a window; what nobody shows goes to a row that nobody reads.
float* Windows::Output(const Operands& operands, int64_t image, int64_t computed) const {
  if (!spreads_) return operands.out.at(image, computed);
  const int32_t* start = destinations_.start.data() + computed;
  if (start[0] < start[1]) return operands.out.at(image, destinations_.row[start[0]]);
  thread_local std::vector<float> unseen;
  return Scratch(unseen, shape_.channels);
}

void Windows::Spread(const Operands& operands, int64_t image, int64_t computed,
                     const float* from) const {
  const int32_t* start = destinations_.start.data() + computed;
  for (int32_t d = start[0] + 1; d < start[1]; ++d) {
    std::memcpy(operands.out.at(image, destinations_.row[d]), from,
                shape_.channels * sizeof(float));
  }
}

}  // namespace espace
