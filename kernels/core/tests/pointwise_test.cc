// Activations, softmax, products and blends: every variant against double. Activations on floats of
// all sizes, signs, infinities and NaN; everything on every remainder of columns, off every
// alignment, between sentinels.
//   pointwise_test [ARGUMENT]: with one, fewer values.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "core/cpu/pointwise.h"
#include "core/tests/reference.h"
#include "core/tests/testing.h"

namespace espace {
namespace {

constexpr double kTolerance = 1e-6;  // of a value
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Floats that are a number of bit patterns apart, and those where functions bend.
std::vector<float> Values(uint32_t stride) {
  std::vector<float> values = {0.0f, -0.0f, kInfinity, -kInfinity, NAN, -3.0f, 3.0f, 6.0f};
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += stride) {
    const uint32_t word = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &word, sizeof(value));
    values.push_back(value);
  }
  for (int i = -40000; i <= 40000; ++i) values.push_back(static_cast<float>(i) / 400.0f);
  return values;
}

// Whether a value is the exact one to the tolerance, or both are next to nothing beside x.
bool IsRight(Activation activation, float x, double exact, float found) {
  const double size = std::fabs(double{x});
  const double nothing = std::numeric_limits<float>::min() * std::max(1.0, size);
  double tolerance = kTolerance;
  // The argument of the tanh form has an error of its own.
  if (activation == Activation::kGeluTanh) tolerance *= 1.0 + size * (1.0 + size * size / 16.0);
  if (std::isnan(exact) || std::isnan(found)) return std::isnan(exact) && std::isnan(found);
  if (std::isinf(exact)) return found == static_cast<float>(exact);
  return std::fabs(exact - found) <= tolerance * std::fabs(exact) + nothing;
}

int Activations(const Variant& variant, uint32_t stride) {
  int failures = 0;
  const std::vector<float> values = Values(stride);
  const int64_t count = static_cast<int64_t>(values.size());
  for (int number = 0; number < kActivations; ++number) {
    const Activation activation = static_cast<Activation>(number);
    const std::vector<float> slopes(values.size(), 0.3f);
    std::vector<float> found = values;
    variant.pointwise.activate(activation, HasSlopes(activation) ? slopes.data() : nullptr, count,
                               found.data());
    for (int64_t i = 0; i < count; ++i) {
      const double exact = Activate(activation, values[i], slopes[i]);
      if (IsRight(activation, values[i], exact, found[i])) continue;
      if (++failures < 20) {
        std::printf("%s, activation %d of %.9g: %.9g, not %.9g\n", variant.name, number, values[i],
                    found[i], exact);
      }
    }
  }
  return failures;
}

// One function over rows of all small widths.
template <typename Function, typename Definition>
int Rows(const Variant& variant, const char* name, const Function& function,
         const Definition& definition) {
  int failures = 0;
  for (int columns = 1; columns <= 70; ++columns) {
    for (int count = 1; count <= 4; ++count) {
      Random random(static_cast<unsigned>(100 * columns + count));
      std::vector<Guarded> rows;
      std::vector<const float*> pointers;
      for (int k = 0; k < count; ++k) {
        rows.emplace_back(columns);
        random.Fill(rows.back());
      }
      for (const Guarded& row : rows) pointers.push_back(row.data());
      Guarded factors(count), found(columns), expected(columns);
      random.Fill(factors);
      function(Reads{pointers.data(), count}, factors.data(), columns, found.data());
      for (int i = 0; i < columns; ++i) {
        expected.data()[i] = static_cast<float>(definition(pointers, factors.data(), i, columns));
      }
      if (IsClose(expected, found, kTolerance)) continue;
      ++failures;
      std::printf("%s, %s of %d columns: wrong\n", variant.name, name, columns);
    }
  }
  return failures;
}

int Functions(const Variant& variant) {
  using Pointers = std::vector<const float*>;
  const PointwiseKernels& kernels = variant.pointwise;
  const auto bounded = [](double x) { return std::min(std::max(x, -1.0), 1.0); };
  int failures = Rows(
      variant, "a product",
      [&](const Reads& reads, const float*, int64_t columns, float* out) {
        kernels.multiply(reads, -1.0f, 1.0f, columns, out);
      },
      [&](const Pointers& rows, const float*, int64_t i, int64_t) {
        double product = 1.0;
        for (const float* row : rows) product *= row[i];
        return bounded(product);
      });
  failures += Rows(
      variant, "a blend",
      [&](const Reads& reads, const float* factors, int64_t columns, float* out) {
        std::vector<const float*> each;
        for (int64_t k = 0; k < reads.count; ++k) each.push_back(factors + k);
        kernels.blend(reads, each.data(), -1.0f, 1.0f, columns, out);
      },
      [&](const Pointers& rows, const float* factors, int64_t i, int64_t) {
        double sum = 0.0;
        for (size_t k = 0; k < rows.size(); ++k) sum += double{rows[k][i]} * factors[k];
        return bounded(sum);
      });
  failures += Rows(
      variant, "a softmax",
      [&](const Reads& reads, const float*, int64_t columns, float* out) {
        kernels.softmax(reads.rows[0], columns, out);
      },
      [&](const Pointers& rows, const float*, int64_t i, int64_t columns) {
        double sum = 0.0;
        for (int64_t k = 0; k < columns; ++k) sum += std::exp(double{rows[0][k]});
        return std::exp(double{rows[0][i]}) / sum;
      });
  return failures + Rows(
      variant, "an activation",
      [&](const Reads& reads, const float*, int64_t columns, float* out) {
        std::copy_n(reads.rows[0], columns, out);
        kernels.activate(Activation::kLeakyRelu, reads.rows[reads.count - 1], columns, out);
      },
      [&](const Pointers& rows, const float*, int64_t i, int64_t) {
        return Activate(Activation::kLeakyRelu, rows[0][i], rows.back()[i]);
      });
}

// Softmax of values of any size, each result to its own digits, and of what is no number.
int Softmax(const Variant& variant) {
  int failures = 0;
  const auto softmax = [&](std::vector<float> values) {
    variant.pointwise.softmax(values.data(), static_cast<int64_t>(values.size()), values.data());
    return values;
  };
  for (const float size : {0.0f, 1.0f, 30.0f, 1e30f}) {
    std::vector<float> values;
    for (int i = 0; i < 37; ++i) values.push_back(size * static_cast<float>(i * 7 % 37) / 37.0f);
    const float most = *std::max_element(values.begin(), values.end());
    double sum = 0.0;
    for (float value : values) sum += std::exp(double{value - most});
    const std::vector<float> found = softmax(values);
    for (size_t i = 0; i < values.size(); ++i) {
      const double exact = std::exp(double{values[i] - most}) / sum;
      if (std::fabs(found[i] - exact) <= kTolerance * exact + 1e-37) continue;
      ++failures;
      std::printf("%s, softmax up to %g: %.9g, not %.9g\n", variant.name, size, found[i], exact);
    }
  }
  for (const float value : {NAN, kInfinity}) {
    std::vector<float> values(37, 1.0f);
    values[20] = value;
    for (float each : softmax(values)) failures += !std::isnan(each);
  }
  for (float each : softmax(std::vector<float>(37, -kInfinity))) failures += !std::isnan(each);
  std::vector<float> values(37, -kInfinity);
  values[36] = -1e38f;
  failures += softmax(values)[36] != 1.0f;
  return failures;
}

}  // namespace

int Main(uint32_t stride) {
  int failures = 0;
  for (const Variant* variant : Variants()) {
    if (!variant->supported()) continue;
    failures += Activations(*variant, stride) + Functions(*variant) + Softmax(*variant);
  }
  std::printf("pointwise functions: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace espace

int main(int argc, char**) { return espace::Main(argc > 1 ? 1000003 : 9973); }
