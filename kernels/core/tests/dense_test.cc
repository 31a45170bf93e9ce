// Dense layers: filters of any size, inputs with zeros among them, padding, filters that are not
// finite, any number of images and pieces of any columns; every variant against loops in double.
//   dense_test [short]: fewer of them
#include "core/cpu/dense.h"

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "core/tests/testing.h"

namespace espace {
namespace {

constexpr double kTolerance = 1e-6;  // of the sum of all magnitudes

// One call with random contents.
class Case {
 public:
  explicit Case(unsigned seed)
      : random_(seed),
        images_(random_.Integer(1, random_.Integer(0, 4) == 0 ? 150 : 9)),
        shape_(Shape()),
        table_(random_.Indices(shape_.taps, -1, static_cast<int>(shape_.rows_in) - 1)),
        in_row_(shape_.channels + random_.Integer(0, 5)),
        out_row_(shape_.filters + random_.Integer(0, 5)),
        in_(images_ * shape_.rows_in * in_row_),
        filter_(shape_.taps * shape_.channels * shape_.filters),
        bias_(shape_.filters),
        finite_(random_.Integer(0, 3) != 0) {
    for (Guarded* each : {&in_, &filter_, &bias_}) random_.Fill(*each);
    const int share = random_.Integer(0, 3);
    for (int64_t i = 0; share > 0 && i < in_.size(); ++i) {
      if (random_.Integer(0, share) != 0) in_.data()[i] = i % 2 == 0 ? 0.0f : -0.0f;
    }
    constexpr float kOdd[] = {NAN, INFINITY, -INFINITY};
    const int64_t place = random_.Integer(0, static_cast<int>(filter_.size()) - 1);
    if (!finite_) filter_.data()[place] = kOdd[random_.Integer(0, 2)];
    for (int64_t i = 0; i < filter_.size(); ++i) {
      halves_.push_back(ToHalf(filter_.data()[i]));
      filter_.data()[i] = ToFloat(halves_.back());
    }
    if (random_.Integer(0, 1) != 0) low_ = 0.0f, high_ = 6.0f;
  }

  bool Agrees(const Variant& variant) {
    // In memory that ends where they end, for the sanitizers.
    const std::vector<float> floats(filter_.data(), filter_.data() + filter_.size());
    const std::vector<Half> halves(halves_);
    return Agrees(variant, floats.data()) && Agrees(variant, halves.data());
  }

 private:
  static constexpr int64_t kPiece = 96;

  template <typename Float>
  bool Agrees(const Variant& variant, const Float* filter) {
    const Dense dense(variant, shape_, table_.data());
    const bool finite = dense.IsFinite(filter);
    Guarded out(images_ * out_row_, kSentinel);
    const Dense::Operands<Float> operands{{in_.data(), shape_.rows_in * in_row_, in_row_},
                                          {out.data(), out_row_, out_row_},
                                          filter,
                                          bias_.data(),
                                          low_,
                                          high_,
                                          finite};
    const int64_t begin = images_ / 3;
    for (int64_t left = 0; left < shape_.filters; left += kPiece) {
      const int64_t right = std::min(left + kPiece, shape_.filters);
      dense.Compute(operands, 0, begin, left, right);
      dense.Compute(operands, begin, images_, left, right);
    }
    return finite == finite_ && out.intact() && IsRight(out);
  }

  ConvShape Shape() {
    ConvShape shape;
    shape.taps = random_.Integer(1, 4);
    shape.channels = random_.Integer(1, 60);
    shape.rows_in = random_.Integer(1, 6);
    shape.computed = shape.rows_out = 1;
    const bool wide = random_.Integer(0, 9) == 0;
    shape.filters = wide ? random_.Integer(900, 1200) : random_.Integer(1, 160);
    return shape;
  }

  bool IsRight(const Guarded& out) const {
    bool right = true;
    for (int64_t image = 0; image < images_; ++image) {
      for (int64_t n = 0; n < out_row_; ++n) {
        const float found = out.data()[image * out_row_ + n];
        right &= n < shape_.filters ? IsRight(image, n, found) : found == kSentinel;
      }
    }
    return right;
  }

  bool IsRight(int64_t image, int64_t n, float found) const {
    double sum = bias_.data()[n], size = std::fabs(sum);
    for (int64_t t = 0; t < shape_.taps; ++t) {
      if (table_[t] < 0) continue;
      const float* row = in_.data() + (image * shape_.rows_in + table_[t]) * in_row_;
      for (int64_t c = 0; c < shape_.channels; ++c) {
        const double term =
            double{row[c]} * filter_.data()[(t * shape_.channels + c) * shape_.filters + n];
        sum += term;
        size += std::fabs(term);
      }
    }
    if (std::isnan(sum)) return std::isnan(found);
    sum = std::fmin(std::fmax(sum, low_), high_);
    return sum == found || std::fabs(sum - found) <= kTolerance * size;
  }

  Random random_;
  const int64_t images_;
  const ConvShape shape_;
  const std::vector<int32_t> table_;
  const int64_t in_row_, out_row_;
  Guarded in_, filter_, bias_;
  std::vector<Half> halves_;  // the filter
  const bool finite_;
  float low_ = -INFINITY, high_ = INFINITY;
};

// Every half is its float, which is rounded back to it; what is between two of them to the nearer
// one, in the middle to the even one; what is beyond them to infinity.
bool HalvesAreRight() {
  bool right = true;
  for (unsigned bits = 0; bits < 0x7c00; ++bits) {
    const Half half{static_cast<uint16_t>(bits)}, next{static_cast<uint16_t>(bits + 1)};
    const int exponent = static_cast<int>(bits >> 10), fraction = static_cast<int>(bits & 1023);
    const double value = exponent == 0 ? std::ldexp(fraction, -24)
                                       : std::ldexp(1024 + fraction, exponent - 25);
    right &= ToFloat(half) == value && ToHalf(ToFloat(half)).bits == bits;
    right &= ToFloat(Half{static_cast<uint16_t>(bits | 0x8000)}) == -value;
    const double step = std::ldexp(1, std::max(exponent, 1) - 25);
    const auto middle = static_cast<float>(value + step / 2);
    right &= ToHalf(middle).bits == (bits % 2 == 0 ? half : next).bits;
    right &= ToHalf(std::nextafter(middle, 0.0f)).bits == half.bits;
    right &= ToHalf(-std::nextafter(middle, 1e9f)).bits == (next.bits | 0x8000);
  }
  right &= std::isinf(ToFloat(ToHalf(1e9f))) && std::isinf(ToFloat(ToHalf(-INFINITY)));
  return right && std::isnan(ToFloat(ToHalf(NAN))) && std::signbit(ToFloat(ToHalf(-0.0f)));
}

// Which convolutions are dense layers.
bool Suits() {
  const ConvShape one{1, 4, 8, 2, 1, 1, 16};
  ConvShape several = one;
  several.computed = 2;
  return Dense::Suits(one, false, 256) && !Dense::Suits(one, false, 257) &&
         !Dense::Suits(one, true, 256) && !Dense::Suits(several, false, 256);
}

}  // namespace
}  // namespace espace

int main(int count, char** arguments) {
  using namespace espace;
  const bool few = count > 1 && std::string(arguments[1]) != "all";
  int cases = 2, failures = (Suits() ? 0 : 1) + (HalvesAreRight() ? 0 : 1);
  for (unsigned seed = 0; seed < (few ? 300u : 3000u); ++seed) {
    Case one(seed);
    for (const Variant* variant : Variants()) {
      if (!variant->supported()) continue;
      ++cases;
      if (one.Agrees(*variant)) continue;
      ++failures;
      std::printf("seed %u, %s: wrong\n", seed, variant->name);
    }
  }
  std::printf("%d calls of dense layers, %d failures\n", cases, failures);
  return failures != 0;
}
