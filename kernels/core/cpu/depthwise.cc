#include "core/cpu/depthwise.h"

#include <cmath>
#include <vector>

#include "core/cpu/channels.h"
#include "core/cpu/fold.h"
#include "core/cpu/tables.h"

namespace espace {
namespace {

// Positions per partial sum: short sums in float, then one addition in double.
constexpr int64_t kSumRows = 512;

// rows [B, M, N]: each channel repeated for its filters; the rows themselves with one filter each.
class Repeated {
 public:
  Repeated(const ConvShape& shape, const float* rows, const ParallelFor& parallel_for)
      : rows_(rows) {
    const int64_t multiplier = shape.filters / shape.channels;
    if (multiplier == 1) return;
    copies_.resize(shape.batch * shape.rows_in * shape.filters);
    rows_ = copies_.data();
    parallel_for(shape.batch * shape.rows_in, [&](int64_t begin, int64_t end) {
      float* to = copies_.data() + begin * shape.filters;
      for (int64_t i = begin * shape.channels; i < end * shape.channels; ++i) {
        to = std::fill_n(to, multiplier, rows[i]);
      }
    });
  }
  const float* image(const ConvShape& shape, int64_t image) const {
    return rows_ + image * shape.rows_in * shape.filters;
  }

 private:
  const float* rows_;
  std::vector<float> copies_;
};

class Gradients {
 public:
  Gradients(const Variant& variant, const BackwardArgs& args, int threads,
            const ParallelFor& parallel_for)
      : kernels_(variant.channels),
        args_(args),
        shape_(args.shape),
        threads_(threads),
        parallel_for_(parallel_for),
        folded_(args, args.shape.filters, parallel_for) {}

  void Run() {
    if (args_.grad_filter != nullptr || args_.grad_bias != nullptr) Weights();
    if (args_.grad_rows != nullptr) Rows();
  }

 private:
  void Weights() {
    const Repeated rows(shape_, args_.rows, parallel_for_);
    ForEachPiece(
        1, shape_.filters, threads_, parallel_for_,
        [&](int64_t, int64_t column, int64_t columns) { WeightsPiece(rows, column, columns); });
  }

  // Columns [column, column + columns) of the gradients of filter and bias; the bias stands after
  // the taps.
  void WeightsPiece(const Repeated& rows, int64_t column, int64_t columns) const {
    const int64_t size = (shape_.taps + 1) * columns;
    std::vector<double> sums(size, 0.0);
    std::vector<float> part(size);
    for (Position at(shape_, 0); at.flat < shape_.batch * shape_.computed;) {
      std::fill(part.begin(), part.end(), 0.0f);
      const int64_t end = std::min(at.flat + kSumRows, shape_.batch * shape_.computed);
      for (; at.flat < end; at.Next()) {
        const float* gradient = folded_.data() + at.flat * shape_.filters + column;
        const float* image = rows.image(shape_, at.image) + column;
        const int32_t* reads = args_.table + at.computed * shape_.taps;
        for (int64_t t = 0; t < shape_.taps; ++t) {
          if (reads[t] < 0) continue;
          kernels_.add_product(image + reads[t] * shape_.filters, gradient, columns,
                               part.data() + t * columns);
        }
        kernels_.add(gradient, 1.0f, columns, part.data() + shape_.taps * columns);
      }
      for (int64_t i = 0; i < size; ++i) sums[i] += part[i];
    }
    for (int64_t t = 0; t < shape_.taps && args_.grad_filter != nullptr; ++t) {
      std::copy_n(sums.data() + t * columns, columns,
                  args_.grad_filter + t * shape_.filters + column);
    }
    if (args_.grad_bias != nullptr) {
      std::copy_n(sums.data() + shape_.taps * columns, columns, args_.grad_bias + column);
    }
  }

  // With several filters a channel: as if every filter had a channel of its own, then their sum.
  void Rows() {
    const int64_t multiplier = shape_.filters / shape_.channels;
    std::vector<float> repeated;
    float* grad_rows = args_.grad_rows;
    if (multiplier > 1) {
      repeated.resize(shape_.batch * shape_.rows_in * shape_.filters);
      grad_rows = repeated.data();
    }
    ForEachPiece(shape_.batch, shape_.filters, threads_, parallel_for_,
                 [&](int64_t image, int64_t column, int64_t columns) {
                   RowsPiece(image, column, columns, grad_rows);
                 });
    if (multiplier == 1) return;
    parallel_for_(shape_.batch * shape_.rows_in, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * shape_.channels; i < end * shape_.channels; ++i) {
        float sum = 0.0f;
        for (int64_t m = 0; m < multiplier; ++m) sum += repeated[i * multiplier + m];
        args_.grad_rows[i] = sum;
      }
    });
  }

  void RowsPiece(int64_t image, int64_t column, int64_t columns, float* grad_rows) const {
    float* to = grad_rows + image * shape_.rows_in * shape_.filters + column;
    for (int64_t m = 0; m < shape_.rows_in; ++m) std::fill_n(to + m * shape_.filters, columns, 0.f);
    for (int64_t q = 0; q < shape_.computed; ++q) {
      const float* gradient =
          folded_.data() + (image * shape_.computed + q) * shape_.filters + column;
      const int32_t* reads = args_.table + q * shape_.taps;
      for (int64_t t = 0; t < shape_.taps; ++t) {
        if (reads[t] < 0) continue;
        kernels_.add_product(gradient, args_.filter + t * shape_.filters + column, columns,
                             to + reads[t] * shape_.filters);
      }
    }
  }

  const ChannelKernels& kernels_;
  const BackwardArgs& args_;
  const ConvShape& shape_;
  const int threads_;
  const ParallelFor& parallel_for_;
  const Folded folded_;
};

}  // namespace

void MaskedDepthwise(const Variant& variant, const ForwardArgs& args,
                     const ParallelFor& parallel_for) {
  const ChannelKernels& kernels = variant.channels;
  const ConvShape& shape = args.shape;
  const float low = args.activation == Activation::kNone ? -INFINITY : 0.0f;
  const float high = args.activation == Activation::kRelu6 ? 6.0f : INFINITY;
  const Repeated rows(shape, args.rows, parallel_for);
  ForEachShown(shape, args.spread, args.out, parallel_for, [&](const Position& at, float* out) {
    thread_local std::vector<const float*> inputs, weights;
    inputs.clear();
    weights.clear();
    const float* image = rows.image(shape, at.image);
    const int32_t* reads = args.table + at.computed * shape.taps;
    for (int64_t t = 0; t < shape.taps; ++t) {
      if (reads[t] < 0) continue;
      inputs.push_back(image + reads[t] * shape.filters);
      weights.push_back(args.filter + t * shape.filters);
    }
    kernels.weigh({inputs.data(), static_cast<int64_t>(inputs.size())}, weights.data(), args.bias,
                  low, high, shape.filters, out);
  });
}

void MaskedDepthwiseGradients(const Variant& variant, const BackwardArgs& args, int threads,
                              const ParallelFor& parallel_for) {
  Gradients(variant, args, threads, parallel_for).Run();
}

}  // namespace espace
