// Experimental: these kernels have not run on a GPU so far.
// The convolution's forward pass and gradients as launches, for one element type; included by the
// file of that type so that types compile side by side.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_CONVOLUTION_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_CONVOLUTION_H_

#include "core/cuda/launches.h"
#include "core/cuda/pointwise.h"
#include "core/cuda/tiling.h"

namespace espace {

// How a type multiplies. kDepth: of a tile.
template <typename T_>
struct TensorKind {
  using T = T_;
  static constexpr int kDepth = 32;
  template <int m, int n, int warp_m, int warp_n>
  using Math = Tensor16<T, m, n, warp_m, warp_n>;
};
struct Tf32Kind {
  using T = float;
  static constexpr int kDepth = 16;
  template <int m, int n, int warp_m, int warp_n>
  using Math = TensorTf32<m, n, warp_m, warp_n>;
};
struct ScalarKind {
  using T = float;
  static constexpr int kDepth = 16;
  template <int m, int n, int, int>
  using Math = Scalar<m, n>;
};

template <class Math, bool kTransposed, class Store>
Status LaunchTile(const Gather<typename Math::T>& a, const Matrix<typename Math::T>& b,
                  const Product& product, const Store& store, Stream stream) {
  return Launch(ProductKernel<Math, kTransposed, Store>,
                int64_t{product.m_tiles} * product.n_tiles * product.splits, Math::kThreads,
                Layout<Math, kTransposed>::kBytes, stream, a, b, product, store);
}

template <class Kind, bool kTransposed, class Store>
Status LaunchProduct(const Gather<typename Kind::T>& a, const Matrix<typename Kind::T>& b,
                     const Tiling& tiling, const Store& store, Stream stream) {
  switch (tiling.size) {
    case 0:
      return LaunchTile<typename Kind::template Math<128, 128, 64, 64>, kTransposed>(
          a, b, tiling.product, store, stream);
    case 1:
      return LaunchTile<typename Kind::template Math<128, 64, 32, 64>, kTransposed>(
          a, b, tiling.product, store, stream);
    default:
      return LaunchTile<typename Kind::template Math<64, 64, 32, 32>, kTransposed>(
          a, b, tiling.product, store, stream);
  }
}

template <class Kind>
class Convolution {
  using T = typename Kind::T;

 public:
  Convolution(const CudaCall& call, const Job& job)
      : call_(call),
        s_(call.shape),
        positions_(s_.batch * s_.computed),
        depth_(s_.taps * s_.channels),
        scratch_(job.scratch, job.counting),
        stream_(job.stream) {}

  Status Forward() {
    const Tiling tiling = Choose(positions_, s_.filters, depth_, true);
    const int splits = tiling.product.splits;
    float* partial = splits > 1 ? scratch_.Take<float>(splits * positions_ * s_.filters) : nullptr;
    if (scratch_.counting()) return kOk;
    const Finish<T> finish = FinishOf<T>(call_);
    const Matrix<T> filter = AsMatrix(call_.filter, s_.filters);
    if (splits == 1) {
      return LaunchProduct<Kind, false>(Rows(), filter, tiling, FinishTile<T>{finish}, stream_);
    }
    const Status status =
        LaunchProduct<Kind, false>(Rows(), filter, tiling, PartialTile{partial}, stream_);
    if (status != kOk) return status;
    return Launch(FinishSums<T>, PointBlocks(positions_ * DivideUp(s_.filters, Chunk<T>::kSize)),
                  kPointThreads, 0, stream_, partial, splits, positions_, finish);
  }

  Status Gradients() {
    const T* gradient = nullptr;
    Status status = FoldGradient<T>(call_, scratch_, stream_, &gradient);
    if (status == kOk && call_.grad_bias != nullptr) {
      status = BiasGradient<T>(call_, gradient, scratch_, stream_);
    }
    if (status == kOk && call_.grad_filter != nullptr) status = FilterGradient(gradient);
    if (status == kOk && call_.grad_rows != nullptr) status = RowsGradient(gradient);
    return status;
  }

  int64_t scratch_bytes() const { return scratch_.used(); }

 private:
  Tiling Choose(int64_t m, int64_t n, int64_t k, bool may_split) const {
    return ChooseTiling(m, n, k, Kind::kDepth, call_.multiprocessors, may_split);
  }

  static bool Aligned(const void* pointer, int64_t columns) {
    return reinterpret_cast<uintptr_t>(pointer) % kChunkBytes == 0 &&
           columns % Chunk<T>::kSize == 0;
  }

  static Matrix<T> AsMatrix(const void* values, int64_t columns) {
    return {static_cast<const T*>(values), columns, Aligned(values, columns)};
  }

  Gather<T> Rows() const {
    return {static_cast<const T*>(call_.rows),
            call_.table,
            s_.rows_in,
            s_.computed,
            positions_,
            static_cast<int32_t>(s_.channels),
            static_cast<int32_t>(s_.taps),
            Aligned(call_.rows, s_.channels)};
  }

  // grad_filter [depth, filters] = gathered rows^T [depth, positions] gradient [positions,
  // filters].
  Status FilterGradient(const T* gradient) {
    const Tiling tiling = Choose(depth_, s_.filters, positions_, true);
    const int64_t size = depth_ * s_.filters;
    float* partial = scratch_.Take<float>(tiling.product.splits * size);
    if (scratch_.counting()) return kOk;
    const Status status = LaunchProduct<Kind, true>(Rows(), AsMatrix(gradient, s_.filters), tiling,
                                                    PartialTile{partial}, stream_);
    if (status != kOk) return status;
    return Launch(SumSplits<T>, PointBlocks(size), kPointThreads, 0, stream_, partial,
                  tiling.product.splits, size, static_cast<T*>(call_.grad_filter));
  }

  // Each position sends gradient [positions, filters] filter^T [filters, depth] to the rows that
  // its taps read: the work of the computed positions.
  Status RowsGradient(const T* gradient) {
    T* transposed = scratch_.Take<T>(depth_ * s_.filters);
    RowsSum<T> sum(call_, scratch_);
    if (scratch_.counting()) return kOk;
    Status status =
        Launch(Transpose<T>, PointBlocks(depth_ * s_.filters), kPointThreads, 0, stream_,
               static_cast<const T*>(call_.filter), depth_, s_.filters, transposed);
    if (status == kOk) status = sum.Clear(stream_);
    if (status != kOk) return status;
    const Gather<T> gradients{gradient,    nullptr,
                              s_.computed, s_.computed,
                              positions_,  static_cast<int32_t>(s_.filters),
                              1,           Aligned(gradient, s_.filters)};
    const ScatterTile scatter{sum.values(),
                              call_.table,
                              s_.rows_in,
                              s_.computed,
                              static_cast<int32_t>(s_.channels),
                              static_cast<int32_t>(s_.taps),
                              s_.channels % 4 == 0 && sum.aligned()};
    const Tiling tiling = Choose(positions_, depth_, s_.filters, false);
    status = LaunchProduct<Kind, false>(gradients, AsMatrix(transposed, depth_), tiling, scatter,
                                        stream_);
    return status == kOk ? sum.WriteTo(stream_) : status;
  }

  const CudaCall& call_;
  const ConvShape& s_;
  const int64_t positions_, depth_;
  Scratch scratch_;
  const Stream stream_;
};

template <class Kind>
Status RunConvolution(const CudaCall& call, const Job& job, int64_t* bytes) {
  Convolution<Kind> convolution(call, job);
  const Status status = job.gradients ? convolution.Gradients() : convolution.Forward();
  *bytes = convolution.scratch_bytes();
  return status;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_CONVOLUTION_H_
