#include "core/cpu/channels.h"

#define LANES 16
#include "core/cpu/channels.inc"

namespace espace {

extern const ChannelKernels kChannels_avx512;
const ChannelKernels kChannels_avx512 = kKernels;

}  // namespace espace
