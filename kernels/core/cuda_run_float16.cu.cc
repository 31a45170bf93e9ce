#include "cuda_channels.h"
#include "cuda_convolution.h"
#include "cuda_run.h"

namespace espace {

Status RunFloat16(const CudaCall& call, const Job& job, int64_t* bytes) {
  return call.operation == Operation::kConvolution
             ? RunConvolution<TensorKind<Half>>(call, job, bytes)
             : RunChannels<Half>(call, job, bytes);
}

}  // namespace espace
