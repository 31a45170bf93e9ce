// Functions of single values, and what else a fused graph does to a row besides channels.h, compiled
// for every instruction set of variants.h.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_POINTWISE_H_
#define ESPACE_TF_KERNELS_CORE_CPU_POINTWISE_H_

#include <cstdint>

#include "core/cpu/channels.h"
#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

struct PointwiseKernels {
  // values[i] = act(values[i]); slopes: null, or [columns] for activations that have them (params.h).
  // To 1e-6 of the exact value; kGeluTanh to as much of its argument, too. A factor that would be
  // smaller than the smallest normal number may be 0. NaN and infinities come out as in TensorFlow.
  void (*activate)(Activation activation, const float* slopes, int64_t columns, float* values);
  // out = exp(in) / sum of exp(in), of values of any size; columns >= 1. out may be in.
  void (*softmax)(const float* in, int64_t columns, float* out);
  // out[i] = clamp(product over k < count of rows[k][i], low, high); count >= 1.
  void (*multiply)(const Reads& reads, float low, float high, int64_t columns, float* out);
  // out[i] = clamp(sum over k < count of rows[k][i] * *factors[k], low, high).
  void (*blend)(const Reads& reads, const float* const* factors, float low, float high,
                int64_t columns, float* out);
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_POINTWISE_H_
