// Experimental: these kernels have not run on a GPU so far.
// The one matrix product that forward pass and gradients are made of: tiles through shared memory
// with cp.async, kStages deep, and what becomes of a finished tile.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_GEMM_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_GEMM_H_

#include "core/cuda/math.h"
#include "core/params.h"

namespace espace {

constexpr int kStages = 4;

// D [m, n] = sum over k of A [m, k] B [k, n]; the sum is cut into `splits` parts of k_per_split, a
// whole number of tiles each.
struct Product {
  int64_t m, n, k, k_per_split;
  int32_t m_tiles, n_tiles, splits;
};

// Blocks count columns first, so that those that gather the same rows run together.
struct BlockPlace {
  int64_t m, n;
  int32_t split;
};
template <class Math>
ESPACE_ANY BlockPlace PlaceOf(const Product& product, int64_t block) {
  const int64_t tile = Quotient(block, product.n_tiles);
  const int64_t split = Quotient(tile, product.m_tiles);
  return {(tile - split * product.m_tiles) * Math::kM, (block - tile * product.n_tiles) * Math::kN,
          static_cast<int32_t>(split)};
}

// A computed position by its number in [batch, computed].
struct ImagePosition {
  int64_t image, computed;
};
ESPACE_ANY ImagePosition PositionOf(int64_t number, int64_t computed) {
  const int64_t image = Quotient(number, computed);
  return {image, number - image * computed};
}

// Bias, activation, and writing a computed row to every output row that shows it. starts
// [computed + 1] and shown [rows_out] are spread inverted; null: every computed row shows itself.
template <typename T>
struct Finish {
  T* out;         // [batch, rows_out, filters]
  const T* bias;  // [filters] or null
  const int32_t *starts, *shown;
  int64_t computed, rows_out, filters;
  Activation activation;
  bool vector;  // filters is a whole number of chunks and out is aligned to a chunk

  // values: columns n, n + 1, ... of the computed position with this number.
  ESPACE_DEVICE void Write(int64_t position, int64_t n, const float* values) const {
    Chunk<T> chunk;
    for (int e = 0; e < Chunk<T>::kSize; ++e) {
      float value = values[e];
      if (bias != nullptr && n + e < filters) value += ToFloat(bias[n + e]);
      // Written so that what is not a number stays so.
      if (activation != Activation::kNone && value < 0.0f) value = 0.0f;
      if (activation == Activation::kRelu6 && value > 6.0f) value = 6.0f;
      Assign(chunk.values[e], value);
    }
    const ImagePosition at = PositionOf(position, computed);
    const int32_t first = starts == nullptr ? 0 : starts[at.computed];
    const int32_t last = starts == nullptr ? 1 : starts[at.computed + 1];
    for (int32_t i = first; i < last; ++i) {
      const int64_t row = starts == nullptr ? at.computed : shown[i];
      T* to = out + (at.image * rows_out + row) * filters + n;
      if (vector) {
        *reinterpret_cast<Chunk<T>*>(to) = chunk;
      } else {
        for (int e = 0; e < Chunk<T>::kSize && n + e < filters; ++e) to[e] = chunk.values[e];
      }
    }
  }
};

// What becomes of a tile [kM, kN] in shared memory.

template <typename T>
struct FinishTile {
  Finish<T> finish;

  template <class Math>
  ESPACE_DEVICE void Store(const Product& product, const BlockPlace& place, const float* tile,
                           int stride) const {
    constexpr int kChunk = Chunk<T>::kSize, kChunks = Math::kN / kChunk;
    for (int i = Thread(); i < Math::kM * kChunks; i += Math::kThreads) {
      const int row = i / kChunks, column = i % kChunks * kChunk;
      if (place.m + row < product.m && place.n + column < product.n) {
        finish.Write(place.m + row, place.n + column, tile + row * stride + column);
      }
    }
  }
};

// Sums of one split: partial [splits, m, n].
struct PartialTile {
  float* partial;

  template <class Math>
  ESPACE_DEVICE void Store(const Product& product, const BlockPlace& place, const float* tile,
                           int stride) const {
    for (int i = Thread(); i < Math::kM * Math::kN; i += Math::kThreads) {
      const int64_t row = place.m + i / Math::kN, column = place.n + i % Math::kN;
      if (row < product.m && column < product.n) {
        partial[(place.split * product.m + row) * product.n + column] =
            tile[i / Math::kN * stride + i % Math::kN];
      }
    }
  }
};

// Column tap * channels + c of a computed position is added to row table[q, tap] of its image.
struct ScatterTile {
  float* sum;            // [batch, rows_in, channels]
  const int32_t* table;  // [computed, taps]
  int64_t rows_in, computed;
  int32_t channels, taps;
  bool vector;  // channels is a multiple of 4

  template <class Math>
  ESPACE_DEVICE void Store(const Product& product, const BlockPlace& place, const float* tile,
                           int stride) const {
    for (int i = Thread(); i < Math::kM * Math::kN / 4; i += Math::kThreads) {
      const int row = i / (Math::kN / 4), column = i % (Math::kN / 4) * 4;
      if (place.m + row < product.m && place.n + column < product.n) {
        Add(product, place.m + row, static_cast<int32_t>(place.n) + column,
            tile + row * stride + column);
      }
    }
  }

 private:
  ESPACE_DEVICE void Add(const Product& product, int64_t position, int32_t n,
                         const float* values) const {
    const ImagePosition at = PositionOf(position, computed);
    const int32_t* reads = table + at.computed * taps;
    float* image = sum + at.image * rows_in * channels;
    if (vector) {
      const int32_t tap = n / channels, row = reads[tap];
      const float four[4] = {values[0], values[1], values[2], values[3]};
      if (row >= 0) AtomicAdd4(image + int64_t{row} * channels + (n - tap * channels), four);
      return;
    }
    for (int e = 0; e < 4 && n + e < product.n; ++e) {
      const int32_t tap = (n + e) / channels, row = reads[tap];
      if (row >= 0)
        AtomicAdd(image + int64_t{row} * channels + (n + e - tap * channels), values[e]);
    }
  }
};

// Shared memory of a block: the stages, and after the sum, in their place, the tile in float.
template <class Math, bool kTransposed>
struct Layout {
  using T = typename Math::T;
  static constexpr int kThreads = Math::kThreads;
  using ATile =
      Tile<T, kTransposed ? Math::kK : Math::kM, kTransposed ? Math::kM : Math::kK, kThreads>;
  using BTile = Tile<T, Math::kK, Math::kN, kThreads>;
  static constexpr int kSumStride = Math::kN + 8;
  static constexpr int kStageBytes = (ATile::kSize + BTile::kSize) * sizeof(T);
  static constexpr int kSumBytes = Math::kM * kSumStride * sizeof(float);
  static constexpr int kBytes =
      kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;
  static_assert(kStageBytes % kChunkBytes == 0 && ATile::kSize * sizeof(T) % kChunkBytes == 0,
                "tiles start at whole chunks");
};

// One block. Iteration i multiplies tile i, in stage i % kStages, while tiles i + 1 ... i +
// kStages - 1 are under way. Every iteration commits one group, empty ones too, so that when all
// but the youngest kStages - 2 groups have arrived, tile i is among them. The barrier then makes it
// visible to all, and says that all have finished with tile i - 1, whose stage the load of tile
// i + kStages - 1 overwrites.
template <class Math, bool kTransposed, class Store>
ESPACE_KERNEL void ESPACE_BOUNDS(Math::kThreads, Math::kBlocks)
    ProductKernel(Gather<typename Math::T> a, Matrix<typename Math::T> b, Product product,
                  Store store) {
  using T = typename Math::T;
  using Shape = Layout<Math, kTransposed>;
  using ALoader = std::conditional_t<kTransposed, ColumnLoader<T, typename Shape::ATile>,
                                     RowLoader<T, typename Shape::ATile>>;
  char* const memory = SharedMemory();
  const BlockPlace place = PlaceOf<Math>(product, Block());
  const int64_t begin = place.split * product.k_per_split;
  const int64_t end =
      begin + product.k_per_split < product.k ? begin + product.k_per_split : product.k;
  const int tiles = static_cast<int>(DivideUp(end - begin, Math::kK));
  ALoader a_loader(a, place.m, begin, end);
  MatrixLoader<T, typename Shape::BTile> b_loader(b, place.n, begin, end);
  const auto load = [&](int tile) {
    if (tile < tiles) {
      T* stage = reinterpret_cast<T*>(memory + tile % kStages * Shape::kStageBytes);
      a_loader.Load(stage);
      b_loader.Load(stage + Shape::ATile::kSize);
    }
    CommitGroup();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) load(tile);
  Math math;
  for (int tile = 0; tile < tiles; ++tile) {
    WaitGroups<kStages - 2>();
    Barrier();
    load(tile + kStages - 1);
    const T* stage = reinterpret_cast<const T*>(memory + tile % kStages * Shape::kStageBytes);
    math.template Add<kTransposed, typename Shape::ATile, typename Shape::BTile>(
        stage, stage + Shape::ATile::kSize);
  }
  WaitGroups<0>();
  Barrier();  // the stages are free
  float* const sum = reinterpret_cast<float*>(memory);
  math.Store(sum, Shape::kSumStride);
  Barrier();
  store.template Store<Math>(product, place, sum, Shape::kSumStride);
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_GEMM_H_
