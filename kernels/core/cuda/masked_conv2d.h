// Experimental: these kernels have not run on a GPU so far.
// The masked convolution, its depthwise form and pooling on a GPU: forward and gradients. Needs the
// CUDA runtime only.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_MASKED_CONV2D_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_MASKED_CONV2D_H_

#include "core/cuda/device.h"
#include "core/params.h"

namespace espace {

enum class DataType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// kDepthwise: filter [taps, filters], filters a multiple of channels, column n reads channel
// n / (filters / channels). Pooling: filters = channels, no filter, bias or activation; padding
// (-1) does not take part, and the mean of nothing is 0.
enum class Operation : int32_t { kConvolution = 0, kDepthwise = 1, kMaximum = 2, kAverage = 3 };

// All pointers are to the GPU's memory. The caller guarantees table in [-1, M), that starts and
// shown are what InvertSpread made of a spread in [0, Q), and what CheckSizes checks.
struct CudaCall {
  Operation operation = Operation::kConvolution;
  DataType type = DataType::kFloat32;
  Activation activation = Activation::kNone;
  bool allow_tf32 = false;  // float32 products on tensor cores, with 10 bits of mantissa
  int multiprocessors = 1;
  ConvShape shape;
  const int32_t* table = nullptr;   // [Q, taps]
  const int32_t* starts = nullptr;  // [Q + 1] or null: no spread
  const int32_t* shown = nullptr;   // [R] or null
  const void* rows = nullptr;       // [B, M, C]
  const void* filter = nullptr;     // [taps, C, N]
  const void* bias = nullptr;       // [N] or null
  void* out = nullptr;              // [B, R, N]; read by the gradients if there is an activation
  const void* grad_out = nullptr;   // [B, R, N]
  void* grad_rows = nullptr;        // [B, M, C] or null: not wanted; so the next two
  void* grad_filter = nullptr;      // [taps, C, N]
  void* grad_bias = nullptr;        // [N]
};

// spread [R] as the output rows that show each computed position: shown[starts[q] ... starts[q +
// 1]), both in the caller's memory of [Q + 1] and [R].
void InvertSpread(const int32_t* spread, int64_t rows_out, int64_t computed, int32_t* starts,
                  int32_t* shown);

// Null, or what is wrong with the sizes.
const char* CheckSizes(Operation operation, const ConvShape& shape);

// Bytes of scratch memory that the call needs, of the GPU's, aligned to 16.
int64_t ForwardScratch(const CudaCall& call);
int64_t GradientScratch(const CudaCall& call);

// Queue the work on the stream and return. The sums over positions in grad_filter and grad_bias are
// the same in every run; those in grad_rows come in any order.
Status CudaForward(const CudaCall& call, void* scratch, Stream stream);
Status CudaGradients(const CudaCall& call, void* scratch, Stream stream);

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_MASKED_CONV2D_H_
