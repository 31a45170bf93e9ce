// What every operator may count on: one place that refuses anything else, in words.
#ifndef ESPACE_TF_KERNELS_CORE_VALIDATE_H_
#define ESPACE_TF_KERNELS_CORE_VALIDATE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "core/params.h"

namespace espace {

// The sizes of an array, outermost first; of one with more axes than any operator takes, their
// number.
struct Sizes {
  static constexpr int kMostAxes = 4;
  int axes = 0;
  std::array<int64_t, kMostAxes> size = {};
};

struct Indices {
  Sizes sizes;
  const int32_t* values = nullptr;
};

// A call as it comes in, unchecked. What the call does not have is absent.
struct Operands {
  Sizes rows;                     // [B, M, C]
  std::optional<Sizes> filter;    // [taps, C, N], depthwise [taps, C, multiplier]; pooling: absent
  std::optional<Sizes> bias;      // [N], depthwise [C * multiplier]
  Indices table;                  // [Q, taps]
  std::optional<Indices> spread;  // [R]
  bool depthwise = false;
};

// An empty text, and shape, when the sizes are those of a call that the operators compute: all but
// the batch at least 1, all within 32 bits, every result's elements countable. Else what is wrong
// with which operand. Reads no index.
std::string ValidateSizes(const Operands& operands, ConvShape* shape);

// An empty text when every index is in range. The sizes must be valid.
std::string ValidateIndices(const Operands& operands, const ConvShape& shape);

// Both.
std::string Validate(const Operands& operands, ConvShape* shape);

// Whether all count values lie in [low, high).
bool AllWithin(const int32_t* values, int64_t count, int64_t low, int64_t high);

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_VALIDATE_H_
