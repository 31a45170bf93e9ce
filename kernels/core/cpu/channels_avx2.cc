#include "core/cpu/channels.h"

#define LANES 8
#include "core/cpu/channels.inc"

namespace espace {

extern const ChannelKernels kChannels_avx2;
const ChannelKernels kChannels_avx2 = kKernels;

}  // namespace espace
