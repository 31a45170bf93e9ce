// Experimental: these kernels have not run on a GPU so far.
// The kernels around the products, bound by memory: every thread takes elements in strides of the
// grid.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_POINTWISE_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_POINTWISE_H_

#include <algorithm>

#include "core/cuda/gemm.h"

namespace espace {

constexpr int kPointThreads = 256;

// Enough blocks for one element a thread, at most 32 a multiprocessor's worth of 132.
inline int64_t PointBlocks(int64_t elements) {
  return std::min<int64_t>(DivideUp(elements, kPointThreads), 132 * 32);
}

ESPACE_DEVICE int64_t FirstElement() { return Block() * Threads() + Thread(); }
ESPACE_DEVICE int64_t ElementStep() { return Blocks() * Threads(); }

ESPACE_DEVICE float SumOfSplits(const float* partial, int splits, int64_t size, int64_t at) {
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += partial[split * size + at];
  return sum;
}

// Output rows from partial sums [splits, positions, filters].
template <typename T>
ESPACE_KERNEL void FinishSums(const float* partial, int splits, int64_t positions,
                              Finish<T> finish) {
  constexpr int kChunk = Chunk<T>::kSize;
  const int64_t chunks = DivideUp(finish.filters, kChunk), size = positions * finish.filters;
  for (int64_t i = FirstElement(); i < positions * chunks; i += ElementStep()) {
    const int64_t position = Quotient(i, chunks), n = (i - position * chunks) * kChunk;
    float values[kChunk];
    for (int e = 0; e < kChunk; ++e) {
      values[e] = n + e < finish.filters
                      ? SumOfSplits(partial, splits, size, position * finish.filters + n + e)
                      : 0.0f;
    }
    finish.Write(position, n, values);
  }
}

// out [size] = the sum of partial [splits, size].
template <typename T>
ESPACE_KERNEL void SumSplits(const float* partial, int splits, int64_t size, T* out) {
  for (int64_t i = FirstElement(); i < size; i += ElementStep()) {
    Assign(out[i], SumOfSplits(partial, splits, size, i));
  }
}

// to [n, k] = from [k, n] transposed.
template <typename T>
ESPACE_KERNEL void Transpose(const T* from, int64_t k, int64_t n, T* to) {
  for (int64_t i = FirstElement(); i < k * n; i += ElementStep()) {
    const int64_t row = Quotient(i, k), column = i - row * k;
    to[i] = from[column * n + row];
  }
}

// The gradient of each computed position before its activation: the sum over the output rows that
// show it, where the activation lets it through.
template <typename T>
struct Fold {
  const T *grad_out, *out;        // [batch, rows_out, filters]; out is read with an activation
  const int32_t *starts, *shown;  // null: every computed row shows itself
  int64_t computed, rows_out, filters;
  Activation activation;

  ESPACE_DEVICE float At(int64_t position, int64_t n) const {
    const ImagePosition at = PositionOf(position, computed);
    const int64_t image = at.image * rows_out;
    const int32_t first = starts == nullptr ? 0 : starts[at.computed];
    const int32_t last = starts == nullptr ? 1 : starts[at.computed + 1];
    float sum = 0.0f;
    int64_t offset = -1;
    for (int32_t i = first; i < last; ++i) {
      offset = (image + (starts == nullptr ? at.computed : shown[i])) * filters + n;
      sum += ToFloat(grad_out[offset]);
    }
    if (activation == Activation::kNone || offset < 0) return sum;
    const float value = ToFloat(out[offset]);
    return value > 0.0f && (activation == Activation::kRelu || value < 6.0f) ? sum : 0.0f;
  }
};

// to [positions, filters].
template <typename T>
ESPACE_KERNEL void FoldAll(Fold<T> fold, int64_t positions, T* to) {
  for (int64_t i = FirstElement(); i < positions * fold.filters; i += ElementStep()) {
    const int64_t position = Quotient(i, fold.filters);
    Assign(to[i], fold.At(position, i - position * fold.filters));
  }
}

// partial [parts, columns]: sums of `rows_each` rows of values [rows, columns]. A block has a
// range of columns and of rows: block = part * column_blocks + column_block.
template <typename T>
ESPACE_KERNEL void ColumnSums(const T* values, int64_t rows, int64_t columns, int64_t rows_each,
                              int64_t column_blocks, float* partial) {
  const int64_t part = Block() / column_blocks;
  const int64_t column = (Block() - part * column_blocks) * Threads() + Thread();
  if (column >= columns) return;
  const int64_t end = (part + 1) * rows_each < rows ? (part + 1) * rows_each : rows;
  float sum = 0.0f;
  for (int64_t row = part * rows_each; row < end; ++row) {
    sum += ToFloat(values[row * columns + column]);
  }
  partial[part * columns + column] = sum;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_POINTWISE_H_
