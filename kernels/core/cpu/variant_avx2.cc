#include <immintrin.h>

#include "core/cpu/variants.h"

#define LANES 8
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define ACCUMULATORS 12
#define STREAM _mm256_stream_ps
#include "core/cpu/tile.inc"

namespace espace {

extern const ChannelKernels kChannels_avx2;
extern const NarrowKernels kNarrow_avx2;
extern const PointwiseKernels kPointwise_avx2;
extern const WindowKernels kWindows_avx2;

extern const Variant kVariant_avx2;
const Variant kVariant_avx2 = {
    "avx2",
    TILE_ROWS,
    LANES,
    TILE_VECTORS,
    ACCUMULATORS,
    MakeTable<TILE_ROWS * TILE_VECTORS>::kTiles,
    MakeTable<TILE_ROWS * TILE_VECTORS>::kOuters,
    Find,
    Stream,
    kChannels_avx2,
    kNarrow_avx2,
    kPointwise_avx2,
    kWindows_avx2,
    [] {
      return static_cast<bool>(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                               __builtin_cpu_supports("f16c"));
    }};

}  // namespace espace
