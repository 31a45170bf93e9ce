#include "pooling.h"

#include <vector>

#include "channels.h"
#include "fold.h"
#include "tables.h"

namespace espace {

void Pool(const Variant& variant, Pooling pooling, const ForwardArgs& args,
          const ParallelFor& parallel_for) {
  const ChannelKernels& kernels = ChannelsOf(variant);
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

void PoolGradient(const Variant& variant, Pooling pooling, const BackwardArgs& args, int threads,
                  const ParallelFor& parallel_for) {
  const ChannelKernels& kernels = ChannelsOf(variant);
  const ConvShape& shape = args.shape;
  const Folded folded(args, shape.channels, parallel_for);
  const auto piece = [&](int64_t image, int64_t column, int64_t columns) {
    const int64_t offset = image * shape.rows_in * shape.channels + column;
    float* grad = args.grad_rows + offset;
    for (int64_t m = 0; m < shape.rows_in; ++m)
      std::fill_n(grad + m * shape.channels, columns, 0.f);
    std::vector<const float*> inputs;
    std::vector<float*> to;
    for (int64_t q = 0; q < shape.computed; ++q) {
      inputs.clear();
      to.clear();
      for (int64_t t = 0; t < shape.taps; ++t) {
        const int32_t read = args.table[q * shape.taps + t];
        if (read < 0) continue;
        inputs.push_back(args.rows + offset + read * shape.channels);
        to.push_back(grad + read * shape.channels);
      }
      const int64_t count = static_cast<int64_t>(inputs.size());
      const float* upstream =
          folded.data() + (image * shape.computed + q) * shape.channels + column;
      if (count == 0) continue;
      if (pooling == Pooling::kMax) {
        kernels.add_to_largest({inputs.data(), count}, upstream, columns, to.data());
      } else {
        for (float* target : to) {
          kernels.add(upstream, 1.0f / static_cast<float>(count), columns, target);
        }
      }
    }
  };
  ForEachPiece(shape.batch, shape.channels, threads, parallel_for, piece);
}

}  // namespace espace
