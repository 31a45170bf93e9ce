#include "core/cpu/variants.h"

#define LANES 4
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define ACCUMULATORS 12
#include "core/cpu/tile.inc"

namespace espace {

extern const ChannelKernels kChannels_portable;
extern const NarrowKernels kNarrow_portable;
extern const PointwiseKernels kPointwise_portable;
extern const WindowKernels kWindows_portable;

extern const Variant kVariant_portable;
const Variant kVariant_portable = {"portable",
                                   TILE_ROWS,
                                   LANES,
                                   TILE_VECTORS,
                                   ACCUMULATORS,
                                   MakeTable<TILE_ROWS * TILE_VECTORS>::kTiles,
                                   MakeTable<TILE_ROWS * TILE_VECTORS>::kOuters,
                                   Find,
                                   nullptr,
                                   kChannels_portable,
                                   kNarrow_portable,
                                   kPointwise_portable,
                                   kWindows_portable,
                                   [] { return static_cast<bool>(true); }};

}  // namespace espace
