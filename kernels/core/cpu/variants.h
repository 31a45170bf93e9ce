// The list of implementations of the micro-kernels, and which of them this processor can run.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_VARIANTS_H_
#define ESPACE_TF_KERNELS_CORE_CPU_VARIANTS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

namespace espace {

// Room for the largest tile of any variant.
constexpr int kMaxTileRows = 8;
constexpr int kMaxTileColumns = 64;

// One tile of an indirect matrix product: for r < rows, n < columns,
//   out[r][n] = clamp(bias[n] + sum over t < taps, c < channels of
//                     a[r * taps + t][c] * b[(t * channels + c) * b_stride + n], low, high).
// Every row of b and bias has room for whole vectors.
struct TileArgs {
  const float* const* a;
  int64_t taps;
  int64_t channels;
  const float* b;
  int64_t b_stride;
  const float* bias;
  float low;
  float high;
  float* const* out;  // one pointer per row
  // Columns that are written: all of the tile's, unless its last vector reaches beyond the filter.
  int64_t columns = kMaxTileColumns;
};

using TileFunction = void (*)(const TileArgs&);

// One tile of a sum of outer products: out[r][n] += sum over k < count of a[k][r] * b[k][n].
struct OuterArgs {
  const float* const* a;
  const float* const* b;
  int64_t a_offset;  // added to every pointer of a, likewise b_offset
  int64_t b_offset;
  int64_t count;
  float* out;
  int64_t out_stride;
};

using OuterFunction = void (*)(const OuterArgs&);

// Copies to[r][n] = from[r][n] for r < rows, n < columns past the caches: a line of memory that is
// written whole need not be read first. to and columns: whole lines.
struct StreamArgs {
  const float* const* from;
  float* const* to;
  int64_t rows;
  int64_t columns;
};

using StreamFunction = void (*)(const StreamArgs&);

// The rows that entries of a table are numbers of: rows[i] = image + reads[i] * row for i < count;
// zeros where reads[i] is -1.
struct FindArgs {
  const int32_t* reads;
  int64_t count;
  const float* image;
  int64_t row;  // floats
  const float* zeros;
  const float** rows;
};

using FindFunction = void (*)(const FindArgs&);

struct ChannelKernels;    // channels.h
struct NarrowKernels;     // narrow.h
struct PointwiseKernels;  // pointwise.h
struct WindowKernels;     // windows.h

struct Variant {
  const char* name;
  int tile_rows;     // largest number of rows of a tile
  int lanes;         // floats in a vector
  int tile_vectors;  // largest number of vectors in a row of a tile
  int accumulators;  // vectors of a tile that stay in registers
  // tile[rows - 1][vectors - 1]: vectors in 1..tile_vectors, rows in 1..rows(vectors).
  const TileFunction* tiles;
  const OuterFunction* outers;  // likewise
  FindFunction find;
  StreamFunction stream;  // null: no such instruction
  const ChannelKernels& channels;
  const NarrowKernels& narrow;
  const PointwiseKernels& pointwise;
  const WindowKernels& windows;
  bool (*supported)();

  int rows(int vectors) const { return std::min(tile_rows, accumulators / vectors); }
  TileFunction tile(int rows, int vectors) const {
    return tiles[(rows - 1) * tile_vectors + vectors - 1];
  }
  OuterFunction outer(int rows, int vectors) const {
    return outers[(rows - 1) * tile_vectors + vectors - 1];
  }
};

// Every variant compiled into this library, slowest first.
const std::vector<const Variant*>& Variants();

// The fastest supported variant, or the one that the environment variable ESPACE_TF_KERNEL names
// when it is supported here.
const Variant& BestVariant();

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_VARIANTS_H_
