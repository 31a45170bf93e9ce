// A convolution that computes one row of each image with a filter too large for the caches: the
// dense layers of a network.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_DENSE_H_
#define ESPACE_TF_KERNELS_CORE_CPU_DENSE_H_

#include <cstdint>

#include "core/cpu/convolution.h"
#include "core/cpu/variants.h"
#include "core/half.h"
#include "core/params.h"

namespace espace {

// What takes long is to read the filter. It is read as it lies in memory, a few of its rows at
// once, once for all images of a block; and not at all where every one of them is multiplied by
// zero, as many are that come from a ReLU.
class Dense {
 public:
  // Floats of a filter that is too large for a second-level cache.
  static constexpr int64_t kLeastFloats = 1 << 18;

  // Whether a convolution is one: of a filter of so many floats, and no spread.
  static bool Suits(const ConvShape& shape, bool spreads, int64_t least_floats);

  template <typename Float>
  struct Operands {
    View<const float> in;
    View<float> out;
    const Float* filter;  // [taps, C, N]; float or Half
    const float* bias;    // [N]
    float low, high;
    bool skip_zeros;  // only where 0 * filter = 0
  };

  // table must outlive this; shape.batch is not read.
  Dense(const Variant& variant, const ConvShape& shape, const int32_t* table);

  // Whether every float of a filter is finite, so that zeros may be skipped.
  template <typename Float>
  bool IsFinite(const Float* filter) const;

  // Images [begin, end), columns [left, right) of the result; left is the beginning of a vector.
  template <typename Float>
  void Compute(const Operands<Float>& operands, int64_t begin, int64_t end, int64_t left,
               int64_t right) const;

 private:
  template <typename Float>
  struct Rows;
  template <typename Float>
  class Walk;

  template <typename Float>
  void Block(const Operands<Float>& operands, int64_t begin, int64_t count, int64_t left,
             int64_t right) const;
  template <typename Float>
  void Add(const Rows<Float>& rows, const Rows<Float>& next, int64_t count, int64_t left,
           int64_t columns, float* sums) const;

  const Variant& variant_;
  const ConvShape shape_;
  const int32_t* const table_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_DENSE_H_
