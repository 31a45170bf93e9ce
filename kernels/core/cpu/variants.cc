#include "core/cpu/variants.h"

#include <cstdlib>
#include <cstring>

namespace espace {

extern const Variant kVariant_portable;
#if defined(__x86_64__)
extern const Variant kVariant_avx2;
extern const Variant kVariant_avx512;
#endif

const std::vector<const Variant*>& Variants() {
  static const std::vector<const Variant*> variants = {
      &kVariant_portable,
#if defined(__x86_64__)
      &kVariant_avx2,
      &kVariant_avx512,
#endif
  };
  return variants;
}

const Variant& BestVariant() {
  static const Variant* best = [] {
    const char* wanted = std::getenv("ESPACE_TF_KERNEL");
    const Variant* found = Variants().front();
    for (const Variant* variant : Variants()) {
      if (!variant->supported()) continue;
      found = variant;
      if (wanted != nullptr && std::strcmp(wanted, variant->name) == 0) break;
    }
    return found;
  }();
  return *best;
}

}  // namespace espace
