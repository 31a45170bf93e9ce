#include "core/cuda/channels.h"
#include "core/cuda/convolution.h"
#include "core/cuda/run.h"

namespace espace {

Status RunBFloat16(const CudaCall& call, const Job& job, int64_t* bytes) {
  return call.operation == Operation::kConvolution
             ? RunConvolution<TensorKind<BFloat16>>(call, job, bytes)
             : RunChannels<BFloat16>(call, job, bytes);
}

}  // namespace espace
