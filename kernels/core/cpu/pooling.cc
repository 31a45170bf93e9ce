#include "core/cpu/pooling.h"

#include <vector>

#include "core/cpu/channels.h"
#include "core/cpu/fold.h"
#include "core/cpu/tables.h"

namespace espace {

void Pool(const Variant& variant, Pooling pooling, const ForwardArgs& args,
          const ParallelFor& parallel_for) {
  const ChannelKernels& kernels = variant.channels;
  const ConvShape& shape = args.shape;
  const auto kernel = pooling == Pooling::kMax ? kernels.largest : kernels.mean;
  ForEachShown(shape, args.spread, args.out, parallel_for, [&](const Position& at, float* out) {
    thread_local std::vector<const float*> inputs;
    inputs.clear();
    const float* image = args.rows + at.image * shape.rows_in * shape.channels;
    const int32_t* reads = args.table + at.computed * shape.taps;
    for (int64_t t = 0; t < shape.taps; ++t) {
      if (reads[t] >= 0) inputs.push_back(image + reads[t] * shape.channels);
    }
    if (inputs.empty()) {
      std::fill_n(out, shape.channels, 0.0f);
    } else {
      kernel({inputs.data(), static_cast<int64_t>(inputs.size())}, shape.channels, out);
    }
  });
}

namespace {

// Pieces of the gradient: no two write to one element.
class PoolPiece {
 public:
  PoolPiece(const ChannelKernels& kernels, const BackwardArgs& args, const Folded& folded,
            int64_t image, int64_t column, int64_t columns)
      : kernels_(kernels),
        args_(args),
        shape_(args.shape),
        columns_(columns),
        rows_(args.rows + image * shape_.rows_in * shape_.channels + column),
        grad_rows_(args.grad_rows + image * shape_.rows_in * shape_.channels + column),
        upstream_(folded.data() + image * shape_.computed * shape_.channels + column) {
    for (int64_t m = 0; m < shape_.rows_in; ++m) {
      std::fill_n(grad_rows_ + m * shape_.channels, columns, 0.0f);
    }
  }

  void Largest() {
    std::vector<const float*> inputs;
    std::vector<float*> to;
    for (int64_t q = 0; q < shape_.computed; ++q) {
      inputs.clear();
      to.clear();
      for (int64_t t = 0; t < shape_.taps; ++t) {
        const int64_t read = args_.table[q * shape_.taps + t];
        if (read < 0) continue;
        inputs.push_back(rows_ + read * shape_.channels);
        to.push_back(grad_rows_ + read * shape_.channels);
      }
      if (inputs.empty()) continue;
      kernels_.add_to_largest({inputs.data(), static_cast<int64_t>(inputs.size())},
                              upstream_ + q * shape_.channels, columns_, to.data());
    }
  }

  // Windows read many of their rows several times: one addition for each row.
  void Average() {
    std::vector<int32_t> times(shape_.rows_in, 0);
    for (int64_t q = 0; q < shape_.computed; ++q) {
      const int32_t* reads = args_.table + q * shape_.taps;
      int64_t count = 0;
      for (int64_t t = 0; t < shape_.taps; ++t) {
        if (reads[t] < 0) continue;
        ++times[reads[t]];
        ++count;
      }
      for (int64_t t = 0; t < shape_.taps; ++t) {
        if (reads[t] < 0 || times[reads[t]] == 0) continue;
        const double share = static_cast<double>(times[reads[t]]) / static_cast<double>(count);
        kernels_.add(upstream_ + q * shape_.channels, static_cast<float>(share), columns_,
                     grad_rows_ + reads[t] * shape_.channels);
        times[reads[t]] = 0;
      }
    }
  }

 private:
  const ChannelKernels& kernels_;
  const BackwardArgs& args_;
  const ConvShape& shape_;
  const int64_t columns_;
  const float* rows_;
  float* grad_rows_;
  const float* upstream_;  // [computed, channels] of this image
};

}  // namespace

void PoolGradient(const Variant& variant, Pooling pooling, const BackwardArgs& args, int threads,
                  const ParallelFor& parallel_for) {
  const ConvShape& shape = args.shape;
  const Folded folded(args, shape.channels, parallel_for);
  ForEachPiece(shape.batch, shape.channels, threads, parallel_for,
               [&](int64_t image, int64_t column, int64_t columns) {
                 PoolPiece piece(variant.channels, args, folded, image, column, columns);
                 pooling == Pooling::kMax ? piece.Largest() : piece.Average();
               });
}

}  // namespace espace
