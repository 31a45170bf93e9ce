// Experimental: these kernels have not run on a GPU so far.
// What the launches of all operations share: scratch memory, the fold of the gradient, the bias's
// gradient, the float sum of the gradient of rows.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_LAUNCHES_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_LAUNCHES_H_

#include "core/cuda/masked_conv2d.h"
#include "core/cuda/pointwise.h"

namespace espace {

// Hands out pieces of one allocation, or only counts what it would hand out: the same code states
// the need and uses it, so that they cannot differ.
class Scratch {
 public:
  Scratch(void* memory, bool counting) : memory_(static_cast<char*>(memory)), counting_(counting) {}

  template <typename T>
  T* Take(int64_t count) {
    char* const piece = counting_ ? nullptr : memory_ + used_;
    used_ += DivideUp(count * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return reinterpret_cast<T*>(piece);
  }
  bool counting() const { return counting_; }
  int64_t used() const { return used_; }

 private:
  char* const memory_;
  const bool counting_;
  int64_t used_ = 0;
};

// Runs one call on a stream, or counts its scratch.
struct Job {
  bool gradients;
  void* scratch;
  bool counting;
  Stream stream;
};

template <typename T>
Finish<T> FinishOf(const CudaCall& call) {
  const ConvShape& s = call.shape;
  const bool vector =
      s.filters % Chunk<T>::kSize == 0 && reinterpret_cast<uintptr_t>(call.out) % kChunkBytes == 0;
  return {static_cast<T*>(call.out),
          static_cast<const T*>(call.bias),
          call.starts,
          call.shown,
          s.computed,
          s.rows_out,
          s.filters,
          call.activation,
          vector};
}

// *gradient [positions, filters]: grad_out itself where there is nothing to fold.
template <typename T>
Status FoldGradient(const CudaCall& call, Scratch& scratch, Stream stream, const T** gradient) {
  const ConvShape& s = call.shape;
  const int64_t positions = s.batch * s.computed;
  if (call.starts == nullptr && call.activation == Activation::kNone) {
    *gradient = static_cast<const T*>(call.grad_out);
    return kOk;
  }
  T* folded = scratch.Take<T>(positions * s.filters);
  *gradient = folded;
  if (scratch.counting()) return kOk;
  const Fold<T> fold{static_cast<const T*>(call.grad_out),
                     static_cast<const T*>(call.out),
                     call.starts,
                     call.shown,
                     s.computed,
                     s.rows_out,
                     s.filters,
                     call.activation};
  return Launch(FoldAll<T>, PointBlocks(positions * s.filters), kPointThreads, 0, stream, fold,
                positions, folded);
}

// Positions in about `wanted` equal parts.
struct Parts {
  int64_t each, count;
  Parts(int64_t positions, int64_t wanted)
      : each(DivideUp(positions, std::max<int64_t>(std::min(wanted, positions), 1))),
        count(DivideUp(positions, each)) {}
};

template <typename T>
Status BiasGradient(const CudaCall& call, const T* gradient, Scratch& scratch, Stream stream) {
  const ConvShape& s = call.shape;
  const int64_t positions = s.batch * s.computed;
  const int64_t column_blocks = DivideUp(s.filters, kPointThreads);
  const Parts parts(positions, DivideUp(4 * call.multiprocessors, column_blocks));
  float* partial = scratch.Take<float>(parts.count * s.filters);
  if (scratch.counting()) return kOk;
  const Status status = Launch(ColumnSums<T>, parts.count * column_blocks, kPointThreads, 0, stream,
                               gradient, positions, s.filters, parts.each, column_blocks, partial);
  if (status != kOk) return status;
  return Launch(SumSplits<T>, PointBlocks(s.filters), kPointThreads, 0, stream, partial,
                static_cast<int>(parts.count), s.filters, static_cast<T*>(call.grad_bias));
}

// Where grad_rows is summed: in float; in place where that is its type.
template <typename T>
class RowsSum {
 public:
  RowsSum(const CudaCall& call, Scratch& scratch)
      : size_(call.shape.batch * call.shape.rows_in * call.shape.channels),
        out_(static_cast<T*>(call.grad_rows)) {
    if constexpr (std::is_same_v<T, float>) {
      sum_ = out_;
    } else {
      sum_ = scratch.Take<float>(size_);
    }
  }
  float* values() const { return sum_; }
  bool aligned() const { return reinterpret_cast<uintptr_t>(sum_) % kChunkBytes == 0; }
  Status Clear(Stream stream) const {
    return espace::Clear(sum_, size_ * static_cast<int64_t>(sizeof(float)), stream);
  }
  Status WriteTo(Stream stream) const {
    if constexpr (std::is_same_v<T, float>) return kOk;
    return Launch(SumSplits<T>, PointBlocks(size_), kPointThreads, 0, stream,
                  static_cast<const float*>(sum_), 1, size_, out_);
  }

 private:
  const int64_t size_;
  T* const out_;
  float* sum_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_LAUNCHES_H_
