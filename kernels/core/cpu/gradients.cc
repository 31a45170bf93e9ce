#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/fold.h"
#include "core/cpu/masked_conv2d.h"

namespace espace {
namespace {

// Rows per step of the sum over positions: their gradients and inputs stay in the second-level
// cache.
constexpr int64_t kSumRows = 512;

// Below this many channels the patches of a block are copied out and their taps taken as one.
constexpr int64_t kFewChannels = 16;

class Gradients {
 public:
  Gradients(const Variant& variant, const BackwardArgs& args, int threads,
            const ParallelFor& parallel_for)
      : variant_(variant),
        args_(args),
        shape_(args.shape),
        total_(shape_.batch * shape_.computed),
        panels_(variant, shape_.filters),
        width_(panels_.begin(panels_.count())),
        tile_rows_(variant.rows(static_cast<int>(panels_.widest()))),
        threads_(std::max(threads, 1)),
        parallel_for_(parallel_for),
        folded_(args, width_, parallel_for),
        gradient_(folded_.data()) {}

  void Run() {
    if (args_.grad_bias != nullptr) Bias();
    if (args_.grad_filter != nullptr) Filter();
    if (args_.grad_rows != nullptr) Rows();
  }

 private:
  void Bias() {
    parallel_for_(CeilDiv(shape_.filters, variant_.lanes), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * variant_.lanes;
      const int64_t last = std::min(end * variant_.lanes, shape_.filters);
      std::vector<double> sum(last - first, 0.0);
      for (int64_t q = 0; q < total_; ++q) {
        for (int64_t n = first; n < last; ++n) sum[n - first] += gradient_[q * width_ + n];
      }
      std::copy(sum.begin(), sum.end(), args_.grad_bias + first);
    });
  }

  // grad_filter[t, c] = sum over positions of rows[table[q, t], c] * gradient[q]. A piece owns a
  // range of (tap, channel tile), so that no two threads add to one place.
  void Filter() {
    const int64_t depth = shape_.taps * shape_.channels;
    std::vector<float> sums(depth * width_, 0.0f);
    const bool copy = shape_.channels < kFewChannels && shape_.taps > 1;
    const int64_t taps = copy ? 1 : shape_.taps;
    const int64_t tiles = CeilDiv(depth / taps, tile_rows_);
    parallel_for_(std::min<int64_t>(taps * tiles, 2 * threads_), [&](int64_t begin, int64_t end) {
      const int64_t pieces = std::min<int64_t>(taps * tiles, 2 * threads_);
      for (int64_t row = 0; row < total_; row += kSumRows) {
        FilterBlock(row, std::min(total_, row + kSumRows), taps, tiles,
                    taps * tiles * begin / pieces, taps * tiles * end / pieces, sums.data());
      }
    });
    for (int64_t k = 0; k < depth; ++k) {
      std::copy_n(sums.data() + k * width_, shape_.filters, args_.grad_filter + k * shape_.filters);
    }
  }

  void FilterBlock(int64_t begin, int64_t end, int64_t taps, int64_t tiles, int64_t first,
                   int64_t last, float* sums) const {
    thread_local std::vector<float> patches;
    thread_local std::vector<const float*> inputs, gradients;
    const bool copied = taps != shape_.taps;
    const int64_t channels = shape_.taps * shape_.channels / taps;
    if (copied) {
      float* to = Scratch(patches, (end - begin) * channels);
      for (Position at(shape_, begin); at.flat < end; at.Next(), to += channels) {
        CopyTaps(args_.table + at.computed * shape_.taps, shape_.taps, shape_.channels,
                 args_.rows + at.image * shape_.rows_in * shape_.channels, shape_.channels, to);
      }
    }
    for (int64_t unit = first; unit < last;) {
      const int64_t tap = unit / tiles;
      inputs.clear();
      gradients.clear();
      for (Position at(shape_, begin); at.flat < end; at.Next()) {
        const float* input =
            copied ? patches.data() + (at.flat - begin) * channels : Input(at, tap);
        if (input == nullptr) continue;
        inputs.push_back(input);
        gradients.push_back(gradient_ + at.flat * width_);
      }
      for (; unit < last && unit / tiles == tap; ++unit) {
        const int64_t channel = unit % tiles * tile_rows_;
        const int rows = static_cast<int>(std::min<int64_t>(tile_rows_, channels - channel));
        for (int64_t panel = 0; panel < panels_.count(); ++panel) {
          const int64_t n = panels_.begin(panel);
          const int vectors = static_cast<int>(panels_.width(panel) / variant_.lanes);
          variant_.outer(rows, vectors)({inputs.data(), gradients.data(), channel, n,
                                         static_cast<int64_t>(inputs.size()),
                                         sums + (tap * channels + channel) * width_ + n, width_});
        }
      }
    }
  }

  const float* Input(const Position& at, int64_t tap) const {
    const int32_t row = args_.table[at.computed * shape_.taps + tap];
    return row < 0 ? nullptr : args_.rows + (at.image * shape_.rows_in + row) * shape_.channels;
  }

  // Each computed position sends gradient[q] . filter[t]^T to the input row that its tap t read. A
  // piece owns an image and a panel of channels, so that no two threads add to one place. The work
  // is that of the kept positions.
  void Rows() {
    const Panels panels(variant_, shape_.channels);
    const int64_t width = panels.begin(panels.count());
    Transpose(width);
    std::fill_n(args_.grad_rows, shape_.batch * shape_.rows_in * shape_.channels, 0.0f);
    parallel_for_(shape_.batch * panels.count(), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t panel = unit % panels.count();
        RowsPiece(unit / panels.count(), panels.begin(panel), panels.width(panel), width);
      }
    });
  }

  // transposed_ [taps, N, width]: the filter with its channels last, padded to whole vectors.
  void Transpose(int64_t width) {
    transposed_.assign(shape_.taps * shape_.filters * width, 0.0f);
    parallel_for_(shape_.taps, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t c = 0; c < shape_.channels; ++c) {
          const float* from = args_.filter + (t * shape_.channels + c) * shape_.filters;
          float* to = transposed_.data() + t * shape_.filters * width + c;
          for (int64_t n = 0; n < shape_.filters; ++n) to[n * width] = from[n];
        }
      }
    });
  }

  void RowsPiece(int64_t image, int64_t channel, int64_t panel_width, int64_t width) const {
    float buffer[kMaxTileRows * kMaxTileColumns];
    const float zero_bias[kMaxTileColumns] = {};
    float* out[kMaxTileRows];
    const float* inputs[kMaxTileRows];
    for (int r = 0; r < kMaxTileRows; ++r) out[r] = buffer + r * kMaxTileColumns;
    const int64_t columns = std::min(panel_width, shape_.channels - channel);
    const int vectors = static_cast<int>(panel_width / variant_.lanes);
    const int most = variant_.rows(vectors);
    float* grad = args_.grad_rows + image * shape_.rows_in * shape_.channels + channel;
    for (int64_t tap = 0; tap < shape_.taps; ++tap) {
      const TileArgs tile{inputs,
                          1,
                          shape_.filters,
                          transposed_.data() + tap * shape_.filters * width + channel,
                          width,
                          zero_bias,
                          -INFINITY,
                          INFINITY,
                          out};
      int32_t rows[kMaxTileRows];
      int count = 0;
      for (int64_t q = 0; q < shape_.computed; ++q) {
        const int32_t row = args_.table[q * shape_.taps + tap];
        if (row >= 0) {
          inputs[count] = gradient_ + (image * shape_.computed + q) * width_;
          rows[count++] = row;
        }
        if (count == most || (q + 1 == shape_.computed && count > 0)) {
          variant_.tile(count, vectors)(tile);
          for (int r = 0; r < count; ++r) {
            for (int64_t c = 0; c < columns; ++c) grad[rows[r] * shape_.channels + c] += out[r][c];
          }
          count = 0;
        }
      }
    }
  }

  const Variant& variant_;
  const BackwardArgs& args_;
  const ConvShape& shape_;
  const int64_t total_;
  const Panels panels_;
  const int64_t width_;
  const int64_t tile_rows_;  // that every panel has registers for
  const int threads_;
  const ParallelFor& parallel_for_;
  const Folded folded_;
  const float* const gradient_;  // [batch * computed, width_]
  std::vector<float> transposed_;
};

}  // namespace

void MaskedConv2DGradients(const Variant& variant, const BackwardArgs& args, int threads,
                           const ParallelFor& parallel_for) {
  Gradients(variant, args, threads, parallel_for).Run();
}

}  // namespace espace
