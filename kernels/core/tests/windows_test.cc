// Windows of real maps: poolings and depthwise convolutions of every kernel, stride and padding,
// with positions left out, shown twice or not at all, rows with gaps between them, values that are
// not finite, in pieces that begin anywhere; every variant against naive loops in double.
//   windows_test [short]: fewer of them
#include <cstdio>
#include <string>
#include <vector>

#include "core/cpu/windows.h"
#include "core/tests/testing.h"

namespace espace {
namespace {

constexpr double kTolerance = 1e-5;  // of the largest value
constexpr const char* kNames[] = {"max", "average", "depthwise"};

// One call with random contents.
class Case {
 public:
  Case(Windows::Kind kind, unsigned seed) : kind_(kind), random_(seed) {
    shape_.batch = random_.Integer(1, 3);
    shape_.channels = shape_.filters = random_.Integer(1, 140);
    table_ = WindowTable(random_, 9, &shape_.rows_in, &shape_.taps);
    shape_.computed = shape_.rows_out = static_cast<int64_t>(table_.size()) / shape_.taps;
    if (random_.Integer(0, 1) != 0) {
      shape_.rows_out = random_.Integer(1, 60);
      spread_ = random_.Indices(shape_.rows_out, 0, static_cast<int>(shape_.computed) - 1);
    }
    in_row_ = shape_.channels + random_.Integer(0, 5);
    out_row_ = shape_.channels + random_.Integer(0, 5);
    rows_ = Filled(shape_.batch * shape_.rows_in * in_row_);
    weights_ = Filled(shape_.taps * shape_.channels);
    bias_ = Filled(shape_.channels);
    use_bias_ = random_.Integer(0, 1) != 0;
    if (kind != Windows::Kind::kDepthwise && random_.Integer(0, 3) == 0) {
      const float odd[] = {NAN, INFINITY, -INFINITY};
      for (int i = 0; i < 9; ++i) {
        rows_[random_.Integer(0, static_cast<int>(rows_.size()) - 1)] = odd[i % 3];
      }
    }
  }

  bool Agrees(const Variant& variant) {
    Guarded found(shape_.batch * shape_.rows_out * out_row_, kSentinel);
    const Windows windows(variant, kind_, shape_, table_.data(),
                          spread_.empty() ? nullptr : spread_.data());
    const Windows::Operands operands{{rows_.data(), shape_.rows_in * in_row_, in_row_},
                                     {found.data(), shape_.rows_out * out_row_, out_row_},
                                     weights_.data(),
                                     use_bias_ ? bias_.data() : nullptr,
                                     -0.5f,
                                     2.0f};
    const int64_t all = shape_.batch * shape_.computed;
    const int64_t first = random_.Integer(0, static_cast<int>(all));
    windows.Compute(operands, first, all);
    windows.Compute(operands, 0, first);
    Guarded expected = found;
    for (int64_t i = 0; i < expected.size(); ++i) {
      const int64_t n = i % out_row_;
      expected.data()[i] =
          n < shape_.channels ? static_cast<float>(Value(i / out_row_, n)) : kSentinel;
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
    double most = -INFINITY, sum = 0;
    int64_t count = 0;
    for (int64_t t = 0; t < shape_.taps; ++t) {
      const int32_t read = table_[q * shape_.taps + t];
      if (read < 0) continue;
      const double value = rows_[(image * shape_.rows_in + read) * in_row_ + n];
      const double weight = kind_ == Windows::Kind::kDepthwise
                                ? double{weights_[t * shape_.channels + n]}
                                : 1.0;
      ++count;
      sum += weight * value;
      most = value > most || std::isnan(value) ? value : most;
    }
    if (kind_ == Windows::Kind::kDepthwise) {
      return std::min(std::max(sum + (use_bias_ ? double{bias_[n]} : 0.0), -0.5), 2.0);
    }
    if (count == 0) return 0.0;
    return kind_ == Windows::Kind::kMax ? most : sum / static_cast<double>(count);
  }

  const Windows::Kind kind_;
  Random random_;
  ConvShape shape_;
  std::vector<int32_t> table_, spread_;
  int64_t in_row_, out_row_;
  std::vector<float> rows_, weights_, bias_;
  bool use_bias_;
};

}  // namespace
}  // namespace espace

int main(int count, char** arguments) {
  const int wanted = count > 1 && std::string(arguments[1]) != "" ? 100 : 1000;
  int cases = 0, failures = 0;
  for (int seed = 0; seed < wanted; ++seed) {
    for (int kind = 0; kind < 3; ++kind) {
      espace::Case one(static_cast<espace::Windows::Kind>(kind), static_cast<unsigned>(seed));
      for (const espace::Variant* variant : espace::Variants()) {
        if (!variant->supported()) continue;
        ++cases;
        if (one.Agrees(*variant)) continue;
        ++failures;
        std::printf("%s %s differs, seed %d\n", variant->name, espace::kNames[kind], seed);
      }
    }
  }
  std::printf("%d cases of windows, %d failures\n", cases, failures);
  return failures != 0;
}
