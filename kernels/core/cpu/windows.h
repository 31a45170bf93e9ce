// Poolings and depthwise convolutions over an index table, apart from the rows they read and the
// memory they write: many windows at once, so that neighbours share what they have read.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_WINDOWS_H_
#define ESPACE_TF_KERNELS_CORE_CPU_WINDOWS_H_

#include <cstdint>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/convolution.h"
#include "core/cpu/variants.h"
#include "core/params.h"

namespace espace {

// Windows in a row, and where their results go.
struct WindowBlock {
  const float* const* rows;  // [count][taps], each [columns]
  // [count]: of windows of nine taps how many of their three columns, from the left, are the last
  // ones of the window before: 0, 1 or 2. Of others 0.
  const uint8_t* shared;
  // [count]: how many windows in a row, after each one, have two columns of the one before; null
  // where none has any.
  const uint8_t* slides;
  float* const* out;  // [count], each [columns]
  int64_t count, taps, columns;
};

struct WindowKernels {
  // out[i][n] = the largest of rows[i][t][n], NaN if one of them is.
  void (*largest)(const WindowBlock& block);
  // out[i][n] = shares[i] * (sum of rows[i][t][n]).
  void (*mean)(const WindowBlock& block, const float* shares);
  // out[i][n] = clamp(bias[n] + sum of rows[i][t][n] * weights[t * columns + n], low, high); NaN
  // stays NaN. No bias: null.
  void (*weigh)(const WindowBlock& block, const float* weights, const float* bias, float low,
                float high);
};

class Windows {
 public:
  enum class Kind { kMax, kAverage, kDepthwise };

  // With more taps sums would lose digits, and there is little to share.
  static constexpr int64_t kMostTaps = 32;

  // What one call reads and writes; weights, bias (or null) and bounds are of kDepthwise.
  struct Operands {
    View<const float> in;
    View<float> out;
    const float* weights = nullptr;
    const float* bias = nullptr;
    float low = 0, high = 0;
  };

  // table and spread (or null) must outlive this; shape.batch is not read.
  Windows(const Variant& variant, Kind kind, const ConvShape& shape, const int32_t* table,
          const int32_t* spread);

  // Rows [begin, end) of the flattened [images, computed].
  void Compute(const Operands& operands, int64_t begin, int64_t end) const;

 private:
  void Block(const Operands& operands, const Position& first, int64_t count) const;
  float* Output(const Operands& operands, int64_t image, int64_t computed) const;
  void Spread(const Operands& operands, int64_t image, int64_t computed, const float* from) const;

  const Variant& variant_;
  const WindowKernels& kernels_;
  const Kind kind_;
  const ConvShape shape_;
  const int32_t* const table_;
  const bool spreads_;
  const Destinations destinations_;
  const std::vector<float> nothing_;  // the row that taps of padding read
  std::vector<uint8_t> shared_;       // by computed position, see WindowBlock
  std::vector<uint8_t> slides_;       // likewise; empty for null
  std::vector<float> shares_;         // likewise: one over the taps that are not padding
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_WINDOWS_H_
