#include "core/cpu/pointwise.h"

#define LANES 16
#include "core/cpu/pointwise.inc"

namespace espace {

extern const PointwiseKernels kPointwise_avx512;
const PointwiseKernels kPointwise_avx512 = kKernels;

}  // namespace espace
