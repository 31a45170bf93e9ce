// Convolutions of few channels to few filters over real maps: every kernel, stride and padding,
// with positions left out, shown twice or not at all, results with gaps between them, in pieces
// that begin anywhere; every variant against naive loops in double.
//   narrow_test [short]: fewer of them
#include "core/cpu/narrow.h"

#include <cstdio>
#include <string>
#include <vector>

#include "core/tests/testing.h"

namespace espace {
namespace {

constexpr double kTolerance = 1e-5;  // of the largest value
constexpr float kLow = -2.0f, kHigh = 3.0f;

// One call with random contents.
class Case {
 public:
  explicit Case(unsigned seed) : random_(seed) {
    shape_.batch = random_.Integer(1, 3);
    shape_.channels = random_.Integer(1, 4);
    shape_.filters = random_.Integer(1, 8);
    table_ = WindowTable(random_, 40, &shape_.rows_in, &shape_.taps);
    shape_.computed = shape_.rows_out = static_cast<int64_t>(table_.size()) / shape_.taps;
    if (random_.Integer(0, 1) != 0) {
      shape_.rows_out = random_.Integer(1, 60);
      spread_ = random_.Indices(shape_.rows_out, 0, static_cast<int>(shape_.computed) - 1);
    }
    out_row_ = shape_.filters + random_.Integer(0, 1) * random_.Integer(0, 5);
    rows_ = Filled(shape_.batch * shape_.rows_in * shape_.channels);
    filter_ = Filled(shape_.taps * shape_.channels * shape_.filters);
    bias_ = Filled(shape_.filters);
    if (random_.Integer(0, 3) == 0) rows_[rows_.size() / 2] = NAN;
  }

  // Whether the variant is right about it; true of one that does not take it.
  bool Agrees(const Variant& variant, int* taken) {
    if (!Narrow::Suits(variant, shape_, true)) return true;
    ++*taken;
    Guarded found(shape_.batch * shape_.rows_out * out_row_, kSentinel);
    const Narrow narrow(variant, shape_, table_.data(), spread_.empty() ? nullptr : spread_.data());
    const Narrow::Operands operands{
        {rows_.data(), shape_.rows_in * shape_.channels, shape_.channels},
        {found.data(), shape_.rows_out * out_row_, out_row_},
        filter_.data(),
        bias_.data(),
        kLow,
        kHigh};
    const int64_t all = shape_.batch * shape_.computed;
    const int64_t first = random_.Integer(0, static_cast<int>(all));
    narrow.Compute(operands, first, all);
    narrow.Compute(operands, 0, first);
    Guarded expected = found;
    for (int64_t i = 0; i < expected.size(); ++i) {
      const int64_t n = i % out_row_;
      expected.data()[i] =
          n < shape_.filters ? static_cast<float>(Value(i / out_row_, n)) : kSentinel;
    }
    return IsCloseOrOdd(expected, found, kTolerance);
  }

 private:
  std::vector<float> Filled(int64_t size) {
    Guarded values(size);
    random_.Fill(values);
    return {values.data(), values.data() + size};
  }

  double Value(int64_t row, int64_t n) const {
    const int64_t image = row / shape_.rows_out, shown = row % shape_.rows_out;
    const int64_t q = spread_.empty() ? shown : spread_[shown];
    double sum = bias_[n];
    for (int64_t t = 0; t < shape_.taps; ++t) {
      const int32_t read = table_[q * shape_.taps + t];
      if (read < 0) continue;
      for (int64_t c = 0; c < shape_.channels; ++c) {
        sum += double{rows_[(image * shape_.rows_in + read) * shape_.channels + c]} *
               filter_[(t * shape_.channels + c) * shape_.filters + n];
      }
    }
    return std::isnan(sum) ? sum : std::min(std::max(sum, double{kLow}), double{kHigh});
  }

  Random random_;
  ConvShape shape_;
  std::vector<int32_t> table_, spread_;
  int64_t out_row_;
  std::vector<float> rows_, filter_, bias_;
};

// Which convolutions are narrow.
bool Suits() {
  bool right = true;
  for (const Variant* variant : Variants()) {
    ConvShape shape;
    shape.channels = 4, shape.filters = variant->lanes / 2;
    right &= Narrow::Suits(*variant, shape, true) && !Narrow::Suits(*variant, shape, false);
    ++shape.filters;
    right &= !Narrow::Suits(*variant, shape, true);
    shape.channels = 5, shape.filters = 1;
    right &= !Narrow::Suits(*variant, shape, true);
  }
  return right;
}

}  // namespace
}  // namespace espace

int main(int count, char** arguments) {
  const int wanted = count > 1 && std::string(arguments[1]) != "all" ? 200 : 2000;
  int cases = 0, failures = espace::Suits() ? 0 : 1;
  for (int seed = 0; seed < wanted; ++seed) {
    espace::Case one(static_cast<unsigned>(seed));
    for (const espace::Variant* variant : espace::Variants()) {
      if (!variant->supported() || one.Agrees(*variant, &cases)) continue;
      ++failures;
      std::printf("%s differs, seed %d\n", variant->name, seed);
    }
  }
  std::printf("%d narrow convolutions, %d failures\n", cases, failures);
  return failures != 0;
}
