// The masked convolution on the CPU: forward and gradients over an index table.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_MASKED_CONV2D_H_
#define ESPACE_TF_KERNELS_CORE_CPU_MASKED_CONV2D_H_

#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

// out[b, r] = act(bias + sum over taps t of rows[b, table[spread[r], t]] . filter[t]), -1 reading
// zeros. The caller guarantees table in [-1, M) and spread in [0, Q). threads is a hint for the
// size of the pieces.
void MaskedConv2D(const Variant& variant, const ForwardArgs& args, int threads,
                  const ParallelFor& parallel_for);

// The gradients that args asks for, of the same function.
void MaskedConv2DGradients(const Variant& variant, const BackwardArgs& args, int threads,
                           const ParallelFor& parallel_for);

// The definition, in named loops with double accumulation: what every variant is tested against.
void MaskedConv2DReference(const ForwardArgs& args);
void MaskedConv2DGradientsReference(const BackwardArgs& args);

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_MASKED_CONV2D_H_
