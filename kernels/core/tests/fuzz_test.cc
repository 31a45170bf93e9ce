// Random and hostile calls. What comes in goes through Validate and nothing else: it must refuse
// exactly what the rules below refuse, without reading an index that is not there, and every call
// that it lets through must give the reference's numbers without touching memory outside the
// arrays (for the sanitizers that this is built with, arrays have no room to spare).
//   make fuzz        1,000,000 calls      make fuzz-short   fewer
//   fuzz_test COUNT [SEED]: call i uses seed SEED + i, so `fuzz_test 1 SEED` repeats one.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "core/cpu/depthwise.h"
#include "core/cpu/masked_conv2d.h"
#include "core/cpu/pooling.h"
#include "core/tests/testing.h"
#include "core/validate.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace espace {
namespace {

constexpr double kTolerance = 1e-5;  // of the largest value
// Arrays above this many elements are not made: only their sizes are checked.
constexpr double kMostMade = 4096;

long long current_seed = 0;

enum class Operator { kConvolution, kDepthwise, kMax, kAverage };

struct Call {
  Operator which;
  Operands operands;
  std::vector<int32_t> table, spread;
};

bool Chance(Random& random, int percent) { return random.Integer(1, 100) <= percent; }

template <typename T>
const T& Pick(Random& random, const std::vector<T>& values) {
  return values[random.Integer(0, static_cast<int>(values.size()) - 1)];
}

Sizes Make(const std::vector<int64_t>& values) {
  Sizes sizes;
  sizes.axes = static_cast<int>(values.size());
  std::copy(values.begin(), values.end(), sizes.size.begin());
  return sizes;
}

double Elements(const Sizes& sizes) {
  double product = 1;
  for (int i = 0; i < std::min(sizes.axes, Sizes::kMostAxes); ++i) {
    product *= static_cast<double>(sizes.size[i]);
  }
  return product;
}

// A call in which everything fits together.
Call Fitting(Random& random) {
  const auto size = [&](int most) -> int64_t { return random.Integer(1, most); };
  Call call;
  call.which = static_cast<Operator>(random.Integer(0, 3));
  const int64_t channels = size(20), taps = size(9), computed = size(12);
  const bool convolution = call.which == Operator::kConvolution;
  const int64_t columns = convolution ? size(40) : size(3);
  call.operands.rows = Make({Chance(random, 5) ? 0 : size(3), size(12), channels});
  call.operands.table.sizes = Make({computed, taps});
  if (call.which == Operator::kConvolution || call.which == Operator::kDepthwise) {
    call.operands.depthwise = !convolution;
    call.operands.filter = Make({taps, channels, columns});
    if (Chance(random, 50)) call.operands.bias = Make({columns * (convolution ? 1 : channels)});
  }
  if (Chance(random, 50)) call.operands.spread = Indices{Make({size(14)}), nullptr};
  return call;
}

std::vector<Sizes*> Arrays(Operands& operands) {
  std::vector<Sizes*> arrays = {&operands.rows, &operands.table.sizes};
  if (operands.filter) arrays.push_back(&*operands.filter);
  if (operands.bias) arrays.push_back(&*operands.bias);
  if (operands.spread) arrays.push_back(&operands.spread->sizes);
  return arrays;
}

void SpoilSizes(Random& random, Call& call) {
  constexpr int64_t k32 = int64_t{1} << 31, k64 = std::numeric_limits<int64_t>::max();
  static const std::vector<int64_t> hostile = {
      0,          1,       2,       3,           7,           -1,          -k64 - 1, k32 - 2,
      k32 - 1,    k32,     k32 + 1, 2 * k32 - 1, 2 * k32 + 1, k32 * k32,   k64,      k64 - 1,
      k32 * 4096, 1 << 20, 1 << 16, 1 << 28,     1 << 30,     k32 / 3 * 2, 1 << 12,  k64 / 4};
  Sizes* array = Pick(random, Arrays(call.operands));
  if (Chance(random, 15)) {
    array->axes = random.Integer(0, Sizes::kMostAxes + 3);
    return;
  }
  array->size[random.Integer(0, Sizes::kMostAxes - 1)] = Pick(random, hostile);
}

// The contents of table or spread, when they are small enough to be made.
void FillIndices(Random& random, const Sizes& sizes, int64_t low, int64_t high,
                 std::vector<int32_t>& values) {
  const double elements = Elements(sizes);
  if (!(elements >= 0 && elements <= kMostMade)) return;
  constexpr int64_t kLeast = std::numeric_limits<int32_t>::min();
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const int least = static_cast<int>(std::clamp(low, kLeast, kMost));
  const int most = static_cast<int>(std::clamp(high - 1, int64_t{least}, kMost));
  values = random.Indices(static_cast<int64_t>(elements), least, most);
  values.shrink_to_fit();
  if (!values.empty() && Chance(random, 8)) {
    const std::vector<int64_t> hostile = {low - 1, high, high + 1, kLeast, kMost, kMost - 1};
    values[random.Integer(0, static_cast<int>(values.size()) - 1)] =
        static_cast<int32_t>(std::clamp(Pick(random, hostile), kLeast, kMost));
  }
}

// The rules, once more and in other words: sizes as real numbers, indices one by one.
bool SizesAreValid(const Operands& operands) {
  constexpr double kMost = 2147483647.0;
  if (operands.rows.axes != 3 || operands.table.sizes.axes != 2) return false;
  if (operands.filter && operands.filter->axes != 3) return false;
  if (operands.spread && operands.spread->sizes.axes != 1) return false;
  if (operands.bias && operands.bias->axes != 1) return false;
  const auto real = [](int64_t size) { return static_cast<double>(size); };
  const double batch = real(operands.rows.size[0]), rows = real(operands.rows.size[1]);
  const double channels = real(operands.rows.size[2]);
  const double computed = real(operands.table.sizes.size[0]);
  const double taps = real(operands.table.sizes.size[1]);
  const double shown = operands.spread ? real(operands.spread->sizes.size[0]) : computed;
  double columns = channels;
  if (operands.filter) {
    columns = real(operands.filter->size[2]) * (operands.depthwise ? channels : 1);
    if (real(operands.filter->size[0]) != taps || real(operands.filter->size[1]) != channels ||
        operands.filter->size[2] < 1) {
      return false;
    }
  }
  for (double size : {rows, channels, computed, taps, shown, columns}) {
    if (!(size >= 1 && size <= kMost)) return false;
  }
  if (!(batch >= 0 && batch <= kMost)) return false;
  if (operands.bias && real(operands.bias->size[0]) != columns) return false;
  const double limit = std::ldexp(1.0, 59);
  return batch * std::max(shown, computed) * (columns + 64) < limit &&
         batch * rows * (std::max(channels, columns) + 64) < limit &&
         taps * (channels + 64) * (columns + 64) < limit;
}

bool IndicesAreValid(const std::vector<int32_t>& values, int64_t low, int64_t high) {
  for (int64_t value : values) {
    if (value < low || value >= high) return false;
  }
  return true;
}

// What a valid small call computes, by a variant and by the reference.
class Contents {
 public:
  Contents(Random& random, const Call& call, const ConvShape& shape)
      : call_(call),
        shape_(shape),
        rows_(shape.batch * shape.rows_in * shape.channels),
        weights_(call.which == Operator::kConvolution ? shape.taps * shape.channels * shape.filters
                                                      : shape.taps * shape.filters),
        bias_(shape.filters),
        grad_out_(shape.batch * shape.rows_out * shape.filters) {
    for (std::vector<float>* values : {&rows_, &weights_, &bias_, &grad_out_}) {
      for (float& value : *values) value = static_cast<float>(random.Integer(-1000, 1000)) * 1e-3f;
    }
    if (call.operands.filter) activation_ = static_cast<Activation>(random.Integer(0, 2));
  }

  bool Agrees(const Variant& variant, int threads) {
    const ParallelFor workers = threads > 1 ? Threads(threads) : Serial();
    std::vector<float> expected = Results(), found = Results();
    std::vector<float> shown(grad_out_.size()), out(grad_out_.size());
    const bool max = call_.which == Operator::kMax;
    const Pooling pooling = max ? Pooling::kMax : Pooling::kAverage;
    if (call_.which == Operator::kConvolution) {
      MaskedConv2DReference(Forward(shown));
      MaskedConv2D(variant, Forward(out), threads, workers);
      MaskedConv2DGradientsReference(Backward(shown, expected));
      MaskedConv2DGradients(variant, Backward(shown, found), threads, workers);
    } else if (call_.which == Operator::kDepthwise) {
      MaskedDepthwiseReference(Forward(shown));
      MaskedDepthwise(variant, Forward(out), workers);
      MaskedDepthwiseGradientsReference(Backward(shown, expected));
      MaskedDepthwiseGradients(variant, Backward(shown, found), threads, workers);
    } else {
      PoolReference(pooling, Forward(shown));
      Pool(variant, pooling, Forward(out), workers);
      PoolGradientReference(pooling, Backward(shown, expected));
      PoolGradient(variant, pooling, Backward(shown, found), threads, workers);
    }
    return Close(shown, out) && Close(expected, found);
  }

 private:
  // Every gradient in one array: of rows, then of the weights and the bias where there are any.
  std::vector<float> Results() const {
    return std::vector<float>(
        rows_.size() + (call_.operands.filter ? weights_.size() + bias_.size() : 0), 0.0f);
  }

  ForwardArgs Forward(std::vector<float>& out) const {
    ForwardArgs args;
    args.shape = shape_;
    args.rows = rows_.data();
    args.filter = call_.operands.filter ? weights_.data() : nullptr;
    args.bias = call_.operands.bias ? bias_.data() : nullptr;
    args.table = call_.table.data();
    args.spread = call_.operands.spread ? call_.spread.data() : nullptr;
    args.activation = activation_;
    args.out = out.data();
    return args;
  }

  BackwardArgs Backward(const std::vector<float>& out, std::vector<float>& results) const {
    BackwardArgs args;
    args.shape = shape_;
    args.rows = rows_.data();
    args.table = call_.table.data();
    args.spread = call_.operands.spread ? call_.spread.data() : nullptr;
    args.activation = activation_;
    args.out = out.data();
    args.grad_out = grad_out_.data();
    args.grad_rows = results.data();
    if (call_.operands.filter) {
      args.filter = weights_.data();
      args.grad_filter = results.data() + rows_.size();
      args.grad_bias = results.data() + rows_.size() + weights_.size();
    }
    return args;
  }

  static bool Close(const std::vector<float>& expected, const std::vector<float>& found) {
    double largest = 1.0;
    for (float value : expected) largest = std::max(largest, std::fabs(double{value}));
    for (size_t i = 0; i < expected.size(); ++i) {
      // Written so that NaN differs.
      if (!(std::fabs(expected[i] - found[i]) <= kTolerance * largest)) return false;
    }
    return true;
  }

  const Call& call_;
  const ConvShape& shape_;
  std::vector<float> rows_, weights_, bias_, grad_out_;
  Activation activation_ = Activation::kNone;
};

struct Counts {
  long long sizes_refused = 0, indices_refused = 0, too_large_to_make = 0, computed = 0;
};

// Whether one call does what it must.
bool One(long long seed, Counts& counts) {
  Random random(static_cast<unsigned>(seed));
  Call call = Fitting(random);
  if (Chance(random, 50)) {
    for (int i = random.Integer(1, 2); i > 0; --i) SpoilSizes(random, call);
  }
  Operands& operands = call.operands;
  ConvShape shape;
  const std::string error = ValidateSizes(operands, &shape);
  if (error.empty() != SizesAreValid(operands)) {
    std::printf("seed %lld: sizes are %s\n", seed, error.empty() ? "accepted" : error.c_str());
    return false;
  }
  if (!error.empty()) {
    ++counts.sizes_refused;
    return Validate(operands, &shape) == error;  // no index is looked at
  }
  // An empty batch hides sizes that arrays of one image would have.
  const double images = static_cast<double>(std::max<int64_t>(shape.batch, 1));
  const double filters = static_cast<double>(shape.filters);
  const double largest =
      std::max({images * static_cast<double>(shape.rows_in) * static_cast<double>(shape.channels),
                images * static_cast<double>(shape.rows_out) * filters,
                operands.filter ? Elements(*operands.filter) : 0.0});
  if (largest > 4 * kMostMade || Elements(operands.table.sizes) > kMostMade ||
      static_cast<double>(shape.rows_out) > kMostMade) {
    ++counts.too_large_to_make;
    return true;
  }
  FillIndices(random, operands.table.sizes, -1, shape.rows_in, call.table);
  operands.table.values = call.table.data();
  bool valid = IndicesAreValid(call.table, -1, shape.rows_in);
  if (operands.spread) {
    FillIndices(random, operands.spread->sizes, 0, shape.computed, call.spread);
    operands.spread->values = call.spread.data();
    valid = valid && IndicesAreValid(call.spread, 0, shape.computed);
  }
  if (Validate(operands, &shape).empty() != valid) {
    std::printf("seed %lld: indices are %s\n", seed, valid ? "refused" : "accepted");
    return false;
  }
  if (!valid) {
    ++counts.indices_refused;
    return true;
  }
  ++counts.computed;
  std::vector<const Variant*> variants;
  for (const Variant* variant : Variants()) {
    if (variant->supported()) variants.push_back(variant);
  }
  const Variant& variant = *Pick(random, variants);
  if (Contents(random, call, shape).Agrees(variant, Chance(random, 2) ? 2 : 1)) return true;
  std::printf("seed %lld: %s differs from the reference\n", seed, variant.name);
  return false;
}

}  // namespace
}  // namespace espace

int main(int count, char** arguments) {
  const long long calls = count > 1 ? std::atoll(arguments[1]) : 10000;
  const long long first = count > 2 ? std::atoll(arguments[2]) : 0;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback([] { std::fprintf(stderr, "seed %lld\n", espace::current_seed); });
#endif
  espace::Counts counts;
  long long failures = 0;
  for (long long i = 0; i < calls; ++i) {
    espace::current_seed = first + i;
    if (!espace::One(first + i, counts)) ++failures;
  }
  std::printf(
      "%lld calls: %lld refused for their sizes, %lld for their indices, %lld valid but too large "
      "to make here, %lld computed; %lld failures\n",
      calls, counts.sizes_refused, counts.indices_refused, counts.too_large_to_make,
      counts.computed, failures);
  return failures != 0;
}
