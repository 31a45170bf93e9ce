// What the definitions in double share.
#ifndef ESPACE_TF_KERNELS_CORE_TESTS_REFERENCE_H_
#define ESPACE_TF_KERNELS_CORE_TESTS_REFERENCE_H_

#include <algorithm>

#include "core/params.h"

namespace espace {

inline double Activate(Activation activation, double value) {
  switch (activation) {
    case Activation::kNone:
      return value;
    case Activation::kRelu:
      return std::max(value, 0.0);
    case Activation::kRelu6:
      return std::min(std::max(value, 0.0), 6.0);
  }
  return value;
}

// Whether a gradient passes the activation that gave this result.
inline bool Passes(Activation activation, float out) {
  return activation == Activation::kNone ||
         (out > 0.0f && (activation == Activation::kRelu || out < 6.0f));
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_TESTS_REFERENCE_H_
