// The emulated GPU's numbers: 16 bits, TF32, and sums that no other thread may come between.
#include <algorithm>

#include "core/cuda/emulation.h"

namespace espace {

// To nearest, ties away from zero.
uint32_t ToTf32(uint32_t bits) {
  return (bits & 0x7f800000) == 0x7f800000 ? bits & ~0x1fffu : (bits + 0x1000) & ~0x1fffu;
}

void AtomicAdd(float* to, float value) {
  uint32_t* word = reinterpret_cast<uint32_t*>(to);
  uint32_t old = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &old, Bits(FromBits(old) + value), true,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

float ToFloat(Half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const float magnitude = exponent == 31  ? (mantissa == 0 ? INFINITY : NAN)
                          : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(1024.0f + mantissa, exponent - 25);
  return value.bits >> 15 ? -magnitude : magnitude;
}

// To nearest, ties to even: the float's own rounding of a multiple of the last place.
void Assign(Half& to, float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) {
    to.bits = 0x7fff;
  } else if (magnitude >= 65520.0f) {
    to.bits = sign | 0x7c00;
  } else {
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    exponent = magnitude == 0.0f ? -14 : std::max(exponent - 1, -14);
    const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    to.bits = static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + units));
  }
}

void Assign(BFloat16& to, float value) {
  const uint32_t bits = Bits(value);
  to.bits =
      std::isnan(value) ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace espace
