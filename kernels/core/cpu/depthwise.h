// The masked depthwise convolution on the CPU: every channel has filters of its own.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_DEPTHWISE_H_
#define ESPACE_TF_KERNELS_CORE_CPU_DEPTHWISE_H_

#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

// With filter [taps, C, multiplier] and shape.filters = C * multiplier = N, bias [N], out [B, R,
// N]:
//   out[b, r, n] = act(bias[n] + sum over taps t of
//                      rows[b, table[spread[r], t], n / multiplier] * filter[t, n]),
// -1 reading zeros. The caller guarantees what Validate (validate.h) checks.
void MaskedDepthwise(const Variant& variant, const ForwardArgs& args,
                     const ParallelFor& parallel_for);

// The gradients that args asks for. threads is a hint for the number of pieces.
void MaskedDepthwiseGradients(const Variant& variant, const BackwardArgs& args, int threads,
                              const ParallelFor& parallel_for);

// The definition, with double accumulation.
void MaskedDepthwiseReference(const ForwardArgs& args);
void MaskedDepthwiseGradientsReference(const BackwardArgs& args);

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_DEPTHWISE_H_
