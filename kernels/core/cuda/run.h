// Experimental: these kernels have not run on a GPU so far.
// One function per element type, each in a file of its own so that they compile side by side.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_RUN_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_RUN_H_

#include "core/cuda/launches.h"

namespace espace {

// Runs a job, or counts its scratch; *bytes is the scratch.
Status RunFloat32(const CudaCall& call, const Job& job, int64_t* bytes);
Status RunFloat16(const CudaCall& call, const Job& job, int64_t* bytes);
Status RunBFloat16(const CudaCall& call, const Job& job, int64_t* bytes);

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_RUN_H_
