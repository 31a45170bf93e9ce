// Experimental: these kernels have not run on a GPU so far.
// What the kernels need of a GPU, under names that an emulation on the CPU (cuda/emulation.h, for
// tests) has too: there g++ compiles the same kernels and they run thread by thread.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_DEVICE_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_DEVICE_H_

#ifndef __CUDACC__
#include "core/cuda/emulation.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#define ESPACE_DEVICE __device__ __forceinline__
#define ESPACE_ANY __host__ __device__ __forceinline__
#define ESPACE_KERNEL __global__
#define ESPACE_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

namespace espace {

using Half = __half;
using BFloat16 = __nv_bfloat16;

ESPACE_DEVICE int Thread() { return static_cast<int>(threadIdx.x); }
ESPACE_DEVICE int Threads() { return static_cast<int>(blockDim.x); }
ESPACE_DEVICE int64_t Block() { return blockIdx.x; }
ESPACE_DEVICE int64_t Blocks() { return gridDim.x; }
ESPACE_DEVICE void Barrier() { __syncthreads(); }

ESPACE_DEVICE char* SharedMemory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

ESPACE_DEVICE uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 16 bytes, both addresses multiples of 16, into shared memory; zeros, reading nothing, unless
// `valid`. They are there once the group that they are committed in has been waited for.
ESPACE_DEVICE void CopyAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
ESPACE_DEVICE void CommitGroup() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most kPending of this thread's youngest groups are under way.
template <int kPending>
ESPACE_DEVICE void WaitGroups() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16 bits: lane 8 i + r gives the address of row r of matrix i, 16 bytes.
// Register i of lane L then holds the elements 2 (L % 4) and 2 (L % 4) + 1 of row L / 4 of matrix
// i: a 32-bit word, so that it also loads 8 x 4 matrices of 32 bits.
ESPACE_DEVICE void LoadMatrices(const void* row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(SharedAddress(row))
               : "memory");
}
// The same of each matrix transposed.
ESPACE_DEVICE void LoadTransposed(const void* row, uint32_t (&to)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// sum [16, 8] += a [16, k] b [k, 8]; k = 16, or 8 for Tf32. cuda/math.h says which element lies
// where.
#define ESPACE_MMA(types)                                                  \
  asm("mma.sync.aligned." types                                            \
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n" \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
ESPACE_DEVICE void Multiply(Half, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ESPACE_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
ESPACE_DEVICE void Multiply(BFloat16, float (&sum)[4], const uint32_t (&a)[4],
                            const uint32_t (&b)[2]) {
  ESPACE_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
ESPACE_DEVICE void Multiply(float, float (&sum)[4], const uint32_t (&a)[4],
                            const uint32_t (&b)[2]) {
  ESPACE_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef ESPACE_MMA

// The bits of a float, rounded to the nearest TF32.
ESPACE_DEVICE uint32_t ToTf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}
ESPACE_DEVICE uint32_t Bits(float value) { return __float_as_uint(value); }

ESPACE_DEVICE void AtomicAdd(float* to, float value) { atomicAdd(to, value); }
// `to` is a multiple of 16 bytes.
ESPACE_DEVICE void AtomicAdd4(float* to, const float (&values)[4]) {
#if __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
#else
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, values[i]);
#endif
}

ESPACE_DEVICE float ToFloat(float value) { return value; }
ESPACE_DEVICE float ToFloat(Half value) { return __half2float(value); }
ESPACE_DEVICE float ToFloat(BFloat16 value) { return __bfloat162float(value); }
ESPACE_DEVICE void Assign(float& to, float value) { to = value; }
ESPACE_DEVICE void Assign(Half& to, float value) { to = __float2half_rn(value); }
ESPACE_DEVICE void Assign(BFloat16& to, float value) { to = __float2bfloat16_rn(value); }

using Stream = cudaStream_t;
using Status = cudaError_t;
constexpr Status kOk = cudaSuccess;

// Runs kernel(arguments...) on `blocks` blocks; 0 blocks is nothing to do.
template <typename... Parameters, typename... Arguments>
Status Launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
              Stream stream, const Arguments&... arguments) {
  if (blocks == 0) return kOk;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 48 * 1024) {  // more must be asked for
    const Status status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (status != kOk) return status;
  }
  // clang-format would tear >>> apart.
  // clang-format off
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
  // clang-format on
  return cudaGetLastError();
}

inline Status Clear(void* memory, int64_t bytes, Stream stream) {
  return cudaMemsetAsync(memory, 0, bytes, stream);
}

inline const char* Describe(Status status) { return cudaGetErrorString(status); }

inline Status CurrentDevice(int* device) { return cudaGetDevice(device); }
inline Status Multiprocessors(int device, int* count) {
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

// A copy of `values` on the device; waits for it.
inline Status Upload(const int32_t* values, int64_t count, int32_t** copy) {
  Status status = cudaMalloc(copy, count * sizeof(int32_t));
  if (status != kOk) return status;
  status = cudaMemcpy(*copy, values, count * sizeof(int32_t), cudaMemcpyHostToDevice);
  if (status != kOk) cudaFree(*copy);
  return status;
}
// Waits for what uses it.
inline Status Free(int32_t* copy) { return cudaFree(copy); }

}  // namespace espace

#endif  // __CUDACC__

namespace espace {

// A chunk is what one thread moves at once.
constexpr int kChunkBytes = 16;

template <typename T>
struct alignas(kChunkBytes) Chunk {
  static constexpr int kSize = kChunkBytes / sizeof(T);
  T values[kSize];
};

ESPACE_ANY int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// number / by for number >= 0, by in [1, 2^31): 32 bits where they do, which is several times
// faster on a GPU.
ESPACE_ANY int64_t Quotient(int64_t number, int64_t by) {
  return number <= 0xffffffffLL ? static_cast<uint32_t>(number) / static_cast<uint32_t>(by)
                                : number / by;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_DEVICE_H_
