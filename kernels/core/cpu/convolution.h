// A convolution over an index table, apart from the rows it reads and the memory it writes: what
// one call, or every step of a fused graph, is made of.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_CONVOLUTION_H_
#define ESPACE_TF_KERNELS_CORE_CPU_CONVOLUTION_H_

#include <algorithm>
#include <limits>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

// Rows of images: row r of image b begins at data + b * image + r * row.
template <typename Float>
struct View {
  Float* data;
  int64_t image;
  int64_t row;

  Float* at(int64_t b, int64_t r) const { return data + b * image + r * row; }
};

// The columns of a panel of the filter: rows of `stride` floats.
struct Panel {
  const float* data;
  int64_t stride;
};

class Convolution {
 public:
  // Rows of a block: its input (rows x channels, shared by overlapping taps) and one panel of the
  // filter stay in the second-level cache together while the tiles walk over them.
  static constexpr int64_t kBlockRows = 256;
  // An output of this many floats is out of the second-level caches before anyone reads it: it is
  // faster to write it past all caches, also for what reads it next.
  static constexpr int64_t kStreamFloats = 1 << 20;

  // What one call reads and writes. bias: padded to whole vectors. stream: write past the caches;
  // only where CanStream.
  struct Operands {
    View<const float> in;
    View<float> out;
    const Panel* panels;
    const float* bias;
    float low, high;
    bool stream = false;
  };

  // table and spread (or null) must outlive this; shape.batch is not read. joined: whether the
  // rows of an image follow each other without a gap.
  Convolution(const Variant& variant, const ConvShape& shape, const int32_t* table,
              const int32_t* spread, bool joined);

  const Panels& panels() const { return panels_; }
  // Rows of the filter: taps x channels.
  int64_t depth() const { return taps_ * channels_; }
  // The most rows that one Compute should be given.
  int64_t block_rows() const;
  // Of the tiles of the widest panel: rows are best divided at multiples of it.
  int64_t tile_rows() const { return variant_.rows(static_cast<int>(panels_.widest())); }

  // Whether FindRuns must have seen every computed position before Compute.
  bool has_runs() const { return run_ > 1; }
  void FindRuns(int64_t begin, int64_t end);

  // Whether every row of this output is whole cache lines.
  bool CanStream(const View<float>& out) const;

  // Writes rows [begin, end) of a panel of the filter, the last panel padded with zeros.
  void Pack(const float* filter, int64_t panel, int64_t begin, int64_t end, float* to) const;

  // Rows [begin, end) of the flattened [images, computed], panels [first, last).
  void Compute(const Operands& operands, int64_t begin, int64_t end, int64_t first,
               int64_t last) const;

 private:
  void FindInputs(const Operands& operands, int64_t begin, int64_t end,
                  std::vector<const float*>& inputs, std::vector<float>& patches) const;
  void FindRunInputs(const Operands& operands, int64_t begin, int64_t end, const float** to,
                     std::vector<float>& patches) const;
  void RunTile(const Operands& operands, TileArgs& tile, int64_t row, int count, int64_t column,
               int64_t width) const;
  void RunTile(TileArgs& tile, int count, int64_t width, float* to, int64_t stride) const;
  void Spread(const Operands& operands, int64_t begin, int64_t end, int64_t column,
              int64_t columns) const;
  void Stream(const Operands& operands, int64_t begin, int64_t end, int64_t column, int64_t columns,
              const float* results) const;
  int64_t Shown(const Position& at) const;
  float* Output(const Operands& operands, const Position& at, int64_t index) const;

  const Variant& variant_;
  const ConvShape shape_;
  const int32_t* const table_;
  const int32_t* const spread_;
  const bool joined_;
  const int64_t run_;              // neighbouring taps that the product takes as one
  const int64_t taps_, channels_;  // of the product
  const Destinations destinations_;
  const Panels panels_;
  const std::vector<float> zeros_;
  std::vector<int32_t> runs_;
};

// The bounds of an activation; none of one that is more than bounds.
struct Bounds {
  explicit Bounds(Activation activation)
      : low(activation == Activation::kNone || !IsBound(activation) ? -kInfinity : 0.0f),
        high(activation == Activation::kRelu6 ? 6.0f : kInfinity) {}

  static constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float low, high;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_CONVOLUTION_H_
