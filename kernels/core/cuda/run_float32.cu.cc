#include "core/cuda/channels.h"
#include "core/cuda/convolution.h"
#include "core/cuda/run.h"

namespace espace {

Status RunFloat32(const CudaCall& call, const Job& job, int64_t* bytes) {
  if (call.operation != Operation::kConvolution) return RunChannels<float>(call, job, bytes);
  return call.allow_tf32 ? RunConvolution<Tf32Kind>(call, job, bytes)
                         : RunConvolution<ScalarKind>(call, job, bytes);
}

}  // namespace espace
