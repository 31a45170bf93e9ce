#include "core/cpu/channels.h"
#include "core/cpu/narrow.h"
#include "core/cpu/windows.h"

#define LANES 4
#include "core/cpu/channels.inc"
#include "core/cpu/narrow.inc"
#include "core/cpu/windows.inc"

namespace espace {

extern const ChannelKernels kChannels_portable;
const ChannelKernels kChannels_portable = kKernels;

extern const NarrowKernels kNarrow_portable;
const NarrowKernels kNarrow_portable = kNarrowKernels;

extern const WindowKernels kWindows_portable;
const WindowKernels kWindows_portable = kWindowKernels;

}  // namespace espace
