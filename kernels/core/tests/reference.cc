#include "core/tests/reference.h"

#include <algorithm>
#include <vector>

#include "core/cpu/masked_conv2d.h"

namespace espace {

void MaskedConv2DReference(const ForwardArgs& args) {
  const ConvShape& s = args.shape;
  for (int64_t image = 0; image < s.batch; ++image) {
    for (int64_t row = 0; row < s.rows_out; ++row) {
      const int64_t position = args.spread == nullptr ? row : args.spread[row];
      for (int64_t n = 0; n < s.filters; ++n) {
        double sum = args.bias == nullptr ? 0.0 : args.bias[n];
        for (int64_t tap = 0; tap < s.taps; ++tap) {
          const int32_t read = args.table[position * s.taps + tap];
          if (read < 0) continue;
          for (int64_t c = 0; c < s.channels; ++c) {
            sum += double{args.rows[(image * s.rows_in + read) * s.channels + c]} *
                   args.filter[(tap * s.channels + c) * s.filters + n];
          }
        }
        args.out[(image * s.rows_out + row) * s.filters + n] =
            static_cast<float>(Activate(args.activation, sum));
      }
    }
  }
}

void MaskedConv2DGradientsReference(const BackwardArgs& args) {
  const ConvShape& s = args.shape;
  std::vector<double> rows(s.batch * s.rows_in * s.channels), bias(s.filters);
  std::vector<double> filter(s.taps * s.channels * s.filters);
  for (int64_t image = 0; image < s.batch; ++image) {
    for (int64_t row = 0; row < s.rows_out; ++row) {
      const int64_t position = args.spread == nullptr ? row : args.spread[row];
      for (int64_t n = 0; n < s.filters; ++n) {
        const int64_t at = (image * s.rows_out + row) * s.filters + n;
        if (args.activation != Activation::kNone && !Passes(args.activation, args.out[at]))
          continue;
        const double gradient = args.grad_out[at];
        bias[n] += gradient;
        for (int64_t tap = 0; tap < s.taps; ++tap) {
          const int32_t read = args.table[position * s.taps + tap];
          if (read < 0) continue;
          for (int64_t c = 0; c < s.channels; ++c) {
            const int64_t input = (image * s.rows_in + read) * s.channels + c;
            const int64_t weight = (tap * s.channels + c) * s.filters + n;
            rows[input] += gradient * args.filter[weight];
            filter[weight] += gradient * args.rows[input];
          }
        }
      }
    }
  }
  if (args.grad_rows != nullptr) std::copy(rows.begin(), rows.end(), args.grad_rows);
  if (args.grad_filter != nullptr) std::copy(filter.begin(), filter.end(), args.grad_filter);
  if (args.grad_bias != nullptr) std::copy(bias.begin(), bias.end(), args.grad_bias);
}

}  // namespace espace
