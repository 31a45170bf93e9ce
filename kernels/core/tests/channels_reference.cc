#include <algorithm>
#include <vector>

#include "core/cpu/depthwise.h"
#include "core/cpu/pooling.h"
#include "core/tests/reference.h"

namespace espace {

void MaskedDepthwiseReference(const ForwardArgs& args) {
  const ConvShape& s = args.shape;
  const int64_t multiplier = s.filters / s.channels;
  for (int64_t image = 0; image < s.batch; ++image) {
    for (int64_t row = 0; row < s.rows_out; ++row) {
      const int64_t position = args.spread == nullptr ? row : args.spread[row];
      for (int64_t n = 0; n < s.filters; ++n) {
        double sum = args.bias == nullptr ? 0.0 : args.bias[n];
        for (int64_t tap = 0; tap < s.taps; ++tap) {
          const int32_t read = args.table[position * s.taps + tap];
          if (read < 0) continue;
          sum += double{args.rows[(image * s.rows_in + read) * s.channels + n / multiplier]} *
                 args.filter[tap * s.filters + n];
        }
        args.out[(image * s.rows_out + row) * s.filters + n] =
            static_cast<float>(Activate(args.activation, sum));
      }
    }
  }
}

void MaskedDepthwiseGradientsReference(const BackwardArgs& args) {
  const ConvShape& s = args.shape;
  const int64_t multiplier = s.filters / s.channels;
  std::vector<double> rows(s.batch * s.rows_in * s.channels), bias(s.filters);
  std::vector<double> filter(s.taps * s.filters);
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
          const int64_t input = (image * s.rows_in + read) * s.channels + n / multiplier;
          rows[input] += gradient * args.filter[tap * s.filters + n];
          filter[tap * s.filters + n] += gradient * args.rows[input];
        }
      }
    }
  }
  if (args.grad_rows != nullptr) std::copy(rows.begin(), rows.end(), args.grad_rows);
  if (args.grad_filter != nullptr) std::copy(filter.begin(), filter.end(), args.grad_filter);
  if (args.grad_bias != nullptr) std::copy(bias.begin(), bias.end(), args.grad_bias);
}

namespace {

// The elements of rows that one window of one channel holds, padding left out.
std::vector<int64_t> Window(const ConvShape& s, const int32_t* table, const int32_t* spread,
                            int64_t image, int64_t row, int64_t channel) {
  const int64_t position = spread == nullptr ? row : spread[row];
  std::vector<int64_t> elements;
  for (int64_t tap = 0; tap < s.taps; ++tap) {
    const int32_t read = table[position * s.taps + tap];
    if (read >= 0) elements.push_back((image * s.rows_in + read) * s.channels + channel);
  }
  return elements;
}

// Calls body(window, element of the result) for every window.
template <typename Args, typename Body>
void ForEachWindow(const Args& args, const Body& body) {
  const ConvShape& s = args.shape;
  for (int64_t image = 0; image < s.batch; ++image) {
    for (int64_t row = 0; row < s.rows_out; ++row) {
      for (int64_t c = 0; c < s.channels; ++c) {
        body(Window(s, args.table, args.spread, image, row, c),
             (image * s.rows_out + row) * s.channels + c);
      }
    }
  }
}

int64_t FirstLargest(const std::vector<int64_t>& window, const float* rows) {
  return *std::max_element(window.begin(), window.end(),
                           [rows](int64_t a, int64_t b) { return rows[a] < rows[b]; });
}

}  // namespace

void PoolReference(Pooling pooling, const ForwardArgs& args) {
  ForEachWindow(args, [&](const std::vector<int64_t>& window, int64_t to) {
    double sum = 0.0;
    for (int64_t element : window) sum += args.rows[element];
    args.out[to] = window.empty() ? 0.0f
                   : pooling == Pooling::kMax
                       ? args.rows[FirstLargest(window, args.rows)]
                       : static_cast<float>(sum / static_cast<double>(window.size()));
  });
}

void PoolGradientReference(Pooling pooling, const BackwardArgs& args) {
  const ConvShape& s = args.shape;
  std::vector<double> rows(s.batch * s.rows_in * s.channels);
  ForEachWindow(args, [&](const std::vector<int64_t>& window, int64_t from) {
    if (window.empty()) return;
    if (pooling == Pooling::kMax) {
      rows[FirstLargest(window, args.rows)] += args.grad_out[from];
      return;
    }
    for (int64_t element : window) {
      rows[element] += double{args.grad_out[from]} / static_cast<double>(window.size());
    }
  });
  std::copy(rows.begin(), rows.end(), args.grad_rows);
}

}  // namespace espace
