// Numbers of 16 bits as IEEE 754 has them, in which filters may be stored; arithmetic is float's.
#ifndef ESPACE_TF_KERNELS_CORE_HALF_H_
#define ESPACE_TF_KERNELS_CORE_HALF_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace espace {

struct Half {
  uint16_t bits;
};

namespace half_bits {

constexpr uint32_t kOnes =
    0xffu << 23;  // a float's exponent of infinities and of what is no number
constexpr uint32_t kShift = 112u << 23;    // between the exponents of the two
constexpr uint32_t kOdd = 0x7c00;          // the same exponent of a half, and what is larger
constexpr float kLeastNormal = 0x1p-14f;   // of a half
constexpr float kOneOfItsUnits = 0x1p-1f;  // whose last bit is that of the smallest halves

template <typename To, typename From>
To Cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace half_bits

inline float ToFloat(Half half) {
  using namespace half_bits;
  const uint32_t bits = half.bits & 0x7fffu, moved = bits << 13;
  float value;
  if (bits >= kOdd) {
    value = Cast<float>(moved | kOnes);
  } else if (bits >> 10 != 0) {
    value = Cast<float>(moved + kShift);
  } else {
    value = Cast<float>(moved + kShift + (1u << 23)) - kLeastNormal;
  }
  return std::copysign(value, half.bits >> 15 != 0 ? -1.0f : 1.0f);
}

// The nearest one, of two as near the even one; infinite beyond the largest.
inline Half ToHalf(float value) {
  using namespace half_bits;
  const uint32_t bits = Cast<uint32_t>(value), size = bits & 0x7fffffffu;
  uint32_t half;
  if (size >= kOnes) {
    half = size > kOnes ? kOdd | 0x200u : kOdd;
  } else if (size < Cast<uint32_t>(kLeastNormal)) {
    half = Cast<uint32_t>(Cast<float>(size) + kOneOfItsUnits) - Cast<uint32_t>(kOneOfItsUnits);
  } else {
    half = std::min((size - kShift + 0xfffu + (size >> 13 & 1u)) >> 13, kOdd);
  }
  return {static_cast<uint16_t>(half | bits >> 31 << 15)};
}

// Neither infinite nor no number.
inline bool IsFinite(Half half) { return (half.bits & half_bits::kOdd) != half_bits::kOdd; }
inline bool IsFinite(float value) {
  return (half_bits::Cast<uint32_t>(value) & half_bits::kOnes) != half_bits::kOnes;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_HALF_H_
