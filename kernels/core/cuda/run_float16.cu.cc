#include "core/cuda/channels.h"
#include "core/cuda/convolution.h"
#include "core/cuda/run.h"

namespace espace {

Status RunFloat16(const CudaCall& call, const Job& job, int64_t* bytes) {
  return call.operation == Operation::kConvolution
             ? RunConvolution<TensorKind<Half>>(call, job, bytes)
             : RunChannels<Half>(call, job, bytes);
}

}  // namespace espace
