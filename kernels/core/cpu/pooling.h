// Pooling over an index table on the CPU.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_POOLING_H_
#define ESPACE_TF_KERNELS_CORE_CPU_POOLING_H_

#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

enum class Pooling { kMax, kAverage };

// out[b, r, c] = the largest, or the mean, over the taps t that are not padding (-1) of
// rows[b, table[spread[r], t], c]; 0 where all are padding. shape.filters = C; filter, bias and
// activation of args are not read. The caller guarantees what Validate (validate.h) checks.
void Pool(const Variant& variant, Pooling pooling, const ForwardArgs& args,
          const ParallelFor& parallel_for);

// args.grad_rows: of several largest values the first tap's takes the gradient, as in TensorFlow.
void PoolGradient(const Variant& variant, Pooling pooling, const BackwardArgs& args, int threads,
                  const ParallelFor& parallel_for);

// The definition, with double accumulation.
void PoolReference(Pooling pooling, const ForwardArgs& args);
void PoolGradientReference(Pooling pooling, const BackwardArgs& args);

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_POOLING_H_
