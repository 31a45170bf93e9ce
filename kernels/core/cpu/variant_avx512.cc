#include <immintrin.h>

#include "core/cpu/variants.h"

#define LANES 16
#define TILE_ROWS 8
#define TILE_VECTORS 4
#define ACCUMULATORS 24
#define STREAM _mm512_stream_ps
#include "core/cpu/tile.inc"

namespace espace {

extern const ChannelKernels kChannels_avx512;
extern const NarrowKernels kNarrow_avx512;
extern const PointwiseKernels kPointwise_avx512;
extern const WindowKernels kWindows_avx512;

extern const Variant kVariant_avx512;
const Variant kVariant_avx512 = {
    "avx512",
    TILE_ROWS,
    LANES,
    TILE_VECTORS,
    ACCUMULATORS,
    MakeTable<TILE_ROWS * TILE_VECTORS>::kTiles,
    MakeTable<TILE_ROWS * TILE_VECTORS>::kOuters,
    Find,
    Stream,
    kChannels_avx512,
    kNarrow_avx512,
    kPointwise_avx512,
    kWindows_avx512,
    [] { return static_cast<bool>(__builtin_cpu_supports("avx512f")); }};

}  // namespace espace
