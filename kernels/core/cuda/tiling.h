// Experimental: these kernels have not run on a GPU so far.
// Which tiles a product is cut into, and into how many sums: decided on the CPU.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_TILING_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_TILING_H_

#include <algorithm>

#include "core/cuda/gemm.h"

namespace espace {

struct TileSize {
  int m, n;
  double speed;  // of the multiplications, relative to the largest tile
};
constexpr TileSize kTileSizes[] = {{128, 128, 1.0}, {128, 64, 0.8}, {64, 64, 0.6}};

struct Tiling {
  int size;  // index of kTileSizes
  Product product;
};

// The tiling of least estimated time. A multiprocessor holds two blocks; too few blocks share the
// sum, which costs writing and reading every partial sum, 8 bytes, each about the time of
// 400 multiplications on one multiprocessor divided by their number. An estimate of the order of
// things from data sheets, not measured. k_tile is the depth of a tile.
inline Tiling ChooseTiling(int64_t m, int64_t n, int64_t k, int k_tile, int multiprocessors,
                           bool may_split) {
  Tiling best{};
  double least = -1.0;
  const int64_t slots = int64_t{2} * std::max(multiprocessors, 1);
  for (int size = 0; size < 3; ++size) {
    const TileSize& tile = kTileSizes[size];
    const int64_t m_tiles = DivideUp(m, tile.m), n_tiles = DivideUp(n, tile.n);
    const int64_t blocks = m_tiles * n_tiles, k_tiles = DivideUp(k, k_tile);
    int64_t splits = 1;
    if (may_split) {
      splits = std::max<int64_t>(std::min(slots / std::max<int64_t>(blocks, 1), k_tiles / 4), 1);
    }
    const int64_t k_per_split = DivideUp(k_tiles, splits) * k_tile;
    splits = DivideUp(k, k_per_split);
    const double waves = static_cast<double>(DivideUp(blocks * splits, slots));
    const double time = 2.0 * waves * tile.m * tile.n * k_per_split / tile.speed +
                        (splits > 1 ? 400.0 * splits * m * n / multiprocessors : 0.0);
    if (least < 0.0 || time < least) {
      least = time;
      best = {size,
              {m, n, k, k_per_split, static_cast<int32_t>(m_tiles), static_cast<int32_t>(n_tiles),
               static_cast<int32_t>(splits)}};
    }
  }
  return best;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_TILING_H_
