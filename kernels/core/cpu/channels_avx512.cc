#include "core/cpu/channels.h"
#include "core/cpu/narrow.h"
#include "core/cpu/windows.h"

#define LANES 16
#include "core/cpu/channels.inc"
#include "core/cpu/narrow.inc"
#include "core/cpu/windows.inc"

namespace espace {

extern const ChannelKernels kChannels_avx512;
const ChannelKernels kChannels_avx512 = kKernels;

extern const NarrowKernels kNarrow_avx512;
const NarrowKernels kNarrow_avx512 = kNarrowKernels;

extern const WindowKernels kWindows_avx512;
const WindowKernels kWindows_avx512 = kWindowKernels;

}  // namespace espace
