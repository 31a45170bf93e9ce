#include "core/cpu/pointwise.h"

#include <cstring>

namespace espace {

extern const PointwiseKernels kPointwise_portable;
#if defined(__x86_64__)
extern const PointwiseKernels kPointwise_avx2;
extern const PointwiseKernels kPointwise_avx512;
#endif

const PointwiseKernels& PointwiseOf(const Variant& variant) {
#if defined(__x86_64__)
  if (std::strcmp(variant.name, "avx512") == 0) return kPointwise_avx512;
  if (std::strcmp(variant.name, "avx2") == 0) return kPointwise_avx2;
#endif
  static_cast<void>(variant);
  return kPointwise_portable;
}

}  // namespace espace
