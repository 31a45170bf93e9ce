#include "core/cpu/pointwise.h"

#define LANES 4
#include "core/cpu/pointwise.inc"

namespace espace {

extern const PointwiseKernels kPointwise_portable;
const PointwiseKernels kPointwise_portable = kKernels;

}  // namespace espace
