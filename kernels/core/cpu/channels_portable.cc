#include "core/cpu/channels.h"

#define LANES 4
#include "core/cpu/channels.inc"

namespace espace {

extern const ChannelKernels kChannels_portable;
const ChannelKernels kChannels_portable = kKernels;

}  // namespace espace
