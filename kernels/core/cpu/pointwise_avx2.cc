#include "core/cpu/pointwise.h"

#define LANES 8
#include "core/cpu/pointwise.inc"

namespace espace {

extern const PointwiseKernels kPointwise_avx2;
const PointwiseKernels kPointwise_avx2 = kKernels;

}  // namespace espace
