// Convolutions of a few channels to a few filters: the first half of a first layer. Neighbouring
// positions fill the vectors, since filters would not.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_NARROW_H_
#define ESPACE_TF_KERNELS_CORE_CPU_NARROW_H_

#include <cstdint>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/convolution.h"
#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

// Groups of as many positions as a vector has floats.
struct NarrowGroups {
  const float* const* rows;  // [groups][taps]: each what a tap reads, [positions, channels]
  int64_t groups, taps;
  const float* filter;  // [taps, channels, filters]
  const float* bias;    // [filters]
  float low, high;
  float* out;  // [groups, positions, filters]
};

using NarrowFunction = void (*)(const NarrowGroups&);

constexpr int kMostNarrowChannels = 4;

struct NarrowKernels {
  int most_filters;
  // kernels[channels - 1][filters - 1]: out = clamp(bias + sums, low, high); NaN stays NaN.
  const NarrowFunction* kernels;

  NarrowFunction kernel(int64_t channels, int64_t filters) const {
    return kernels[(channels - 1) * most_filters + filters - 1];
  }
};

class Narrow {
 public:
  // joined: whether the input rows of an image follow each other without a gap.
  static bool Suits(const Variant& variant, const ConvShape& shape, bool joined);

  struct Operands {
    View<const float> in;
    View<float> out;
    const float* filter;  // [taps, C, N]
    const float* bias;    // [N]
    float low, high;
  };

  // table and spread (or null) must outlive this; shape.batch is not read.
  Narrow(const Variant& variant, const ConvShape& shape, const int32_t* table,
         const int32_t* spread);

  // Rows [begin, end) of the flattened [images, computed].
  void Compute(const Operands& operands, int64_t begin, int64_t end) const;

 private:
  void Block(const Operands& operands, const Position& first, int64_t count) const;
  void FindRows(const float* image, int64_t first, int64_t count, const float** rows,
                float* copies) const;
  void Write(const Operands& operands, const Position& first, int64_t count,
             const float* results) const;

  const int64_t lanes_;
  const ConvShape shape_;
  const int32_t* const table_;
  const NarrowFunction kernel_;
  const bool spreads_;
  const Destinations destinations_;
  const std::vector<float> zeros_;
  std::vector<int32_t> run_;  // [computed]: how many positions from here on read neighbours
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_NARROW_H_
