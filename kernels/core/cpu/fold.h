// The gradient of every computed position, before its activation.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_FOLD_H_
#define ESPACE_TF_KERNELS_CORE_CPU_FOLD_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/params.h"

namespace espace {

// data() is [batch * computed, width]: the sum of grad_out over the output rows that show a
// position, times the activation's slope, padded with zeros to width >= filters. grad_out itself
// where that is the same.
class Folded {
 public:
  Folded(const BackwardArgs& args, int64_t width, const ParallelFor& parallel_for)
      : args_(args), width_(width), data_(args.grad_out) {
    const ConvShape& shape = args.shape;
    if (args.spread == nullptr && args.activation == Activation::kNone && width == shape.filters) {
      return;
    }
    const int64_t total = shape.batch * shape.computed;
    sums_.assign(total * width, 0.0f);
    data_ = sums_.data();
    const Destinations destinations(shape, args.spread);
    parallel_for(total, [&](int64_t begin, int64_t end) {
      for (Position at(shape, begin); at.flat < end; at.Next()) Row(destinations, at);
    });
  }

  const float* data() const { return data_; }

 private:
  void Row(const Destinations& destinations, const Position& at) {
    const ConvShape& shape = args_.shape;
    const bool spread = args_.spread != nullptr;
    const int64_t first = spread ? destinations.start[at.computed] : 0;
    const int64_t last = spread ? destinations.start[at.computed + 1] : 1;
    if (first == last) return;
    float* to = sums_.data() + at.flat * width_;
    int64_t offset = 0;
    for (int64_t d = first; d < last; ++d) {
      const int64_t row = spread ? destinations.row[d] : at.computed;
      offset = (at.image * shape.rows_out + row) * shape.filters;
      for (int64_t n = 0; n < shape.filters; ++n) to[n] += args_.grad_out[offset + n];
    }
    if (args_.activation == Activation::kNone) return;
    const float high = args_.activation == Activation::kRelu6 ? 6.0f : INFINITY;
    for (int64_t n = 0; n < shape.filters; ++n) {
      const float out = args_.out[offset + n];
      if (!(out > 0.0f && out < high)) to[n] = 0.0f;
    }
  }

  const BackwardArgs& args_;
  const int64_t width_;
  const float* data_;
  std::vector<float> sums_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_FOLD_H_
