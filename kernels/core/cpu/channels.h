// Loops over the channels of one position, compiled for every instruction set of variants.h.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_CHANNELS_H_
#define ESPACE_TF_KERNELS_CORE_CPU_CHANNELS_H_

#include <cstdint>

#include "core/cpu/variants.h"
#include "core/half.h"

namespace espace {

// The input rows that the taps of one position read, padding left out.
struct Reads {
  const float* const* rows;  // [count], each [columns]
  int64_t count;
};

// Rows of a filter times a factor each. Each row, and the sums, have room for whole vectors; next:
// the rows that come after these, which memory is asked for.
template <typename Float>
struct RowSum {
  const Float* const* rows;
  const float* const* factors;  // one float each
  int64_t count;
  const Float* const* next;
  int64_t next_count;
  int64_t offset;  // added to every pointer of rows and next
  int64_t columns;
  float* sums;
};

struct ChannelKernels {
  // out[i] = clamp(bias[i] + sum over k < count of rows[k][i] * weights[k][i], low, high); NaN
  // stays NaN. No bias: null.
  void (*weigh)(const Reads& reads, const float* const* weights, const float* bias, float low,
                float high, int64_t columns, float* out);
  // out[i] = the largest of rows[k][i], NaN if one of them is; count >= 1.
  void (*largest)(const Reads& reads, int64_t columns, float* out);
  // out[i] = the mean of rows[k][i]; count >= 1.
  void (*mean)(const Reads& reads, int64_t columns, float* out);
  // to[k][i] += grad[i] for the first k with the largest rows[k][i]; the pointers of to may repeat.
  void (*add_to_largest)(const Reads& reads, const float* grad, int64_t columns, float* const* to);
  // sums[i] += sum over k < count of factors[k] * rows[k][offset + i]
  void (*add_rows)(const RowSum<float>& sum);
  void (*add_half_rows)(const RowSum<Half>& sum);
  // to[i] = from[i], of whole vectors
  void (*widen)(const Half* from, int64_t columns, float* to);
  // to[i] += scale * from[i]
  void (*add)(const float* from, float scale, int64_t columns, float* to);
  // to[i] += a[i] * b[i]
  void (*add_product)(const float* a, const float* b, int64_t columns, float* to);
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_CHANNELS_H_
