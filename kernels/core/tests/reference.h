// What the definitions in double share.
#ifndef ESPACE_TF_KERNELS_CORE_TESTS_REFERENCE_H_
#define ESPACE_TF_KERNELS_CORE_TESTS_REFERENCE_H_

#include <algorithm>
#include <cmath>

#include "core/params.h"

namespace espace {

// slope: of activations that have one.
inline double Activate(Activation activation, double x, double slope = 0.0) {
  const auto between = [](double value, double low, double high) {
    return std::isnan(value) ? value : std::min(std::max(value, low), high);
  };
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return between(x, 0.0, INFINITY);
    case Activation::kRelu6:
      return between(x, 0.0, 6.0);
    case Activation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kHardSigmoid:
      return between(x + 3.0, 0.0, 6.0) / 6.0;
    case Activation::kHardSilu:
      return x * (between(x + 3.0, 0.0, 6.0) / 6.0);
    case Activation::kGelu:
      return x * (std::erfc(-x / std::sqrt(2.0)) / 2.0);
    case Activation::kGeluTanh:
      return x / (1.0 + std::exp(-std::sqrt(8.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::kElu:
      return x > 0.0 ? x : slope * std::expm1(x);
    case Activation::kLeakyRelu:
      return x > 0.0 ? x : slope * x;
  }
  return NAN;
}

// Whether a gradient passes the activation that gave this result.
inline bool Passes(Activation activation, float out) {
  return activation == Activation::kNone ||
         (out > 0.0f && (activation == Activation::kRelu || out < 6.0f));
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_TESTS_REFERENCE_H_
