#include "core/cpu/channels.h"
#include "core/cpu/narrow.h"
#include "core/cpu/windows.h"

#define LANES 8
#include "core/cpu/channels.inc"
#include "core/cpu/narrow.inc"
#include "core/cpu/windows.inc"

namespace espace {

extern const ChannelKernels kChannels_avx2;
const ChannelKernels kChannels_avx2 = kKernels;

extern const NarrowKernels kNarrow_avx2;
const NarrowKernels kNarrow_avx2 = kNarrowKernels;

extern const WindowKernels kWindows_avx2;
const WindowKernels kWindows_avx2 = kWindowKernels;

}  // namespace espace
