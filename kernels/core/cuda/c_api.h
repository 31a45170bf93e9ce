/* Experimental: these kernels have not run on a GPU so far.
 *
 * The GPU operators without TensorFlow, for any language: build with `make cuda`.
 *
 * Every function returns 0, or a code from EspaceStatus with espace_cuda_error() saying what was
 * wrong, which is the calling thread's until its next call. Pointers in EspaceCudaCall are to the
 * memory of the device that is current and that the map was made on. Nothing waits for the GPU
 * except making and freeing a map. */
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_C_API_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_C_API_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum EspaceStatus { ESPACE_OK = 0, ESPACE_INVALID = 1, ESPACE_CUDA = 2, ESPACE_MEMORY = 3 };

/* An index map on the GPU. */
typedef struct EspaceCudaMap EspaceCudaMap;

/* operation: 0 convolution, filter [taps, channels, filters]; 1 depthwise convolution, filter
 * [taps, filters], filters a multiple of channels; 2 maximum and 3 average pooling, filters =
 * channels. type: 0 float32, 1 float16, 2 bfloat16. activation: 0 none, 1 relu, 2 relu6 (not for
 * pooling). */
typedef struct {
  int32_t operation, type, activation;
  int32_t allow_tf32; /* 1: float32 on tensor cores, with 10 bits of mantissa */
  int64_t batch, channels, filters;
  const void* rows; /* [batch, rows_in, channels] */
  const void* filter;
  const void* bias;     /* [filters] or null */
  void* out;            /* [batch, rows_out, filters]; read by the gradients */
  const void* grad_out; /* [batch, rows_out, filters]; gradients only */
  void* grad_rows;      /* null: not wanted; so the next two */
  void* grad_filter;
  void* grad_bias;
  void* scratch;         /* aligned to 16 bytes */
  int64_t scratch_bytes; /* at least what espace_cuda_scratch says */
} EspaceCudaCall;

/* table [computed, taps] in [-1, rows_in); spread [rows_out] in [0, computed), or null, which shows
 * the computed rows: both in the caller's memory, checked here. */
int espace_cuda_map_create(const int32_t* table, int64_t computed, int64_t taps, int64_t rows_in,
                           const int32_t* spread, int64_t rows_out, EspaceCudaMap** map);
/* Waits for the device first. Null is allowed. */
int espace_cuda_map_free(EspaceCudaMap* map);

/* Bytes of scratch for the forward pass, or for the gradients that the call has places for. */
int espace_cuda_scratch(const EspaceCudaMap* map, const EspaceCudaCall* call, int32_t gradients,
                        int64_t* bytes);

/* Queued on the stream (a cudaStream_t; null is the default stream). */
int espace_cuda_forward(const EspaceCudaMap* map, const EspaceCudaCall* call, void* stream);
int espace_cuda_gradients(const EspaceCudaMap* map, const EspaceCudaCall* call, void* stream);

const char* espace_cuda_error(void);

#ifdef __cplusplus
}
#endif

#endif /* ESPACE_TF_KERNELS_CORE_CUDA_C_API_H_ */
