#include "core/cpu/channels.h"

#include <cstring>

namespace espace {

extern const ChannelKernels kChannels_portable;
#if defined(__x86_64__)
extern const ChannelKernels kChannels_avx2;
extern const ChannelKernels kChannels_avx512;
#endif

const ChannelKernels& ChannelsOf(const Variant& variant) {
#if defined(__x86_64__)
  if (std::strcmp(variant.name, "avx512") == 0) return kChannels_avx512;
  if (std::strcmp(variant.name, "avx2") == 0) return kChannels_avx2;
#endif
  static_cast<void>(variant);
  return kChannels_portable;
}

}  // namespace espace
