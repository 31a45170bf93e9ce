// Experimental: these kernels have not run on a GPU so far.
// Depthwise convolution and pooling over an index table: every channel for itself, so that all is
// bound by memory. A thread takes a chunk of neighbouring columns of one computed position.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_CHANNELS_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_CHANNELS_H_

#include "core/cuda/launches.h"

namespace espace {

// What all these kernels read. filters = channels * multiplier.
template <typename T>
struct Channels {
  const T *rows, *filter;
  const int32_t* table;
  int64_t rows_in, channels, filters, multiplier, computed, positions;
  int32_t taps;
  bool vector;  // chunks of rows and filter can be read whole: multiplier 1

  ESPACE_DEVICE int32_t Read(int64_t computed_position, int32_t tap) const {
    return table[computed_position * taps + tap];
  }
  ESPACE_DEVICE int64_t Input(int64_t image, int32_t row, int64_t n) const {
    return (image * rows_in + row) * channels + (multiplier == 1 ? n : n / multiplier);
  }
  // Columns n, n + 1, ... of an input row, each by its channel; past the end zeros.
  ESPACE_DEVICE Chunk<T> Load(int64_t image, int32_t row, int64_t n) const {
    if (vector) return *reinterpret_cast<const Chunk<T>*>(rows + Input(image, row, n));
    Chunk<T> chunk = {};
    for (int e = 0; e < Chunk<T>::kSize && n + e < filters; ++e) {
      chunk.values[e] = rows[Input(image, row, n + e)];
    }
    return chunk;
  }
  ESPACE_DEVICE Chunk<T> Weights(int32_t tap, int64_t n) const {
    const T* from = filter + tap * filters + n;
    if (vector) return *reinterpret_cast<const Chunk<T>*>(from);
    Chunk<T> chunk = {};
    for (int e = 0; e < Chunk<T>::kSize && n + e < filters; ++e) chunk.values[e] = from[e];
    return chunk;
  }
  ESPACE_ANY int64_t chunks() const { return DivideUp(filters, Chunk<T>::kSize); }
};

template <typename T>
ESPACE_KERNEL void DepthwiseForward(Channels<T> of, Finish<T> finish) {
  for (int64_t i = FirstElement(); i < of.positions * of.chunks(); i += ElementStep()) {
    const int64_t position = Quotient(i, of.chunks());
    const int64_t n = (i - position * of.chunks()) * Chunk<T>::kSize;
    const ImagePosition at = PositionOf(position, of.computed);
    float sum[Chunk<T>::kSize] = {};
    for (int32_t tap = 0; tap < of.taps; ++tap) {
      const int32_t row = of.Read(at.computed, tap);
      if (row < 0) continue;
      const Chunk<T> values = of.Load(at.image, row, n), weights = of.Weights(tap, n);
      for (int e = 0; e < Chunk<T>::kSize; ++e) {
        sum[e] += ToFloat(values.values[e]) * ToFloat(weights.values[e]);
      }
    }
    finish.Write(position, n, sum);
  }
}

// The largest (the first of equals; what is not a number wins) or the mean of what is not padding.
template <typename T>
ESPACE_KERNEL void PoolForward(Channels<T> of, bool maximum, Finish<T> finish) {
  for (int64_t i = FirstElement(); i < of.positions * of.chunks(); i += ElementStep()) {
    const int64_t position = Quotient(i, of.chunks());
    const int64_t n = (i - position * of.chunks()) * Chunk<T>::kSize;
    const ImagePosition at = PositionOf(position, of.computed);
    float found[Chunk<T>::kSize] = {};
    int count = 0;
    for (int32_t tap = 0; tap < of.taps; ++tap) {
      const int32_t row = of.Read(at.computed, tap);
      if (row < 0) continue;
      const Chunk<T> values = of.Load(at.image, row, n);
      for (int e = 0; e < Chunk<T>::kSize; ++e) {
        const float value = ToFloat(values.values[e]);
        if (!maximum) {
          found[e] += value;
        } else if (count == 0 || value > found[e] || value != value) {
          found[e] = value;
        }
      }
      ++count;
    }
    if (!maximum && count > 1) {
      for (float& value : found) value /= static_cast<float>(count);
    }
    finish.Write(position, n, found);
  }
}

// sum [batch, rows_in, channels] += each position's gradient times the tap's weight.
template <typename T>
ESPACE_KERNEL void DepthwiseRows(Channels<T> of, const T* gradient, float* sum) {
  for (int64_t i = FirstElement(); i < of.positions * of.filters; i += ElementStep()) {
    const int64_t position = Quotient(i, of.filters), n = i - position * of.filters;
    const ImagePosition at = PositionOf(position, of.computed);
    const float value = ToFloat(gradient[i]);
    for (int32_t tap = 0; tap < of.taps; ++tap) {
      const int32_t row = of.Read(at.computed, tap);
      if (row < 0) continue;
      AtomicAdd(sum + of.Input(at.image, row, n), value * ToFloat(of.filter[tap * of.filters + n]));
    }
  }
}

// The first of the largest takes the gradient; or all that are not padding, in equal parts.
template <typename T>
ESPACE_KERNEL void PoolRows(Channels<T> of, bool maximum, const T* gradient, float* sum) {
  for (int64_t i = FirstElement(); i < of.positions * of.filters; i += ElementStep()) {
    const int64_t position = Quotient(i, of.filters), n = i - position * of.filters;
    const ImagePosition at = PositionOf(position, of.computed);
    int count = 0;
    int64_t largest_at = -1;
    float largest = 0.0f;
    for (int32_t tap = 0; tap < of.taps; ++tap) {
      const int32_t row = of.Read(at.computed, tap);
      if (row < 0) continue;
      ++count;
      if (!maximum) continue;
      const int64_t input = of.Input(at.image, row, n);
      const float value = ToFloat(of.rows[input]);
      if (largest_at < 0 || value > largest || (value != value && largest == largest)) {
        largest = value;
        largest_at = input;
      }
    }
    if (count == 0) continue;
    const float value = ToFloat(gradient[i]);
    if (maximum) {
      AtomicAdd(sum + largest_at, value);
      continue;
    }
    for (int32_t tap = 0; tap < of.taps; ++tap) {
      const int32_t row = of.Read(at.computed, tap);
      if (row >= 0) AtomicAdd(sum + of.Input(at.image, row, n), value / static_cast<float>(count));
    }
  }
}

// partial [parts, taps, filters]: a block has a tap, a range of columns and one of positions; block
// = (part * taps + tap) * column_blocks + column_block.
template <typename T>
ESPACE_KERNEL void DepthwiseFilter(Channels<T> of, const T* gradient, int64_t each,
                                   int64_t column_blocks, float* partial) {
  const int64_t part_tap = Block() / column_blocks, part = part_tap / of.taps;
  const int32_t tap = static_cast<int32_t>(part_tap - part * of.taps);
  const int64_t n = (Block() - part_tap * column_blocks) * Threads() + Thread();
  if (n >= of.filters) return;
  const int64_t end = (part + 1) * each < of.positions ? (part + 1) * each : of.positions;
  ImagePosition at = PositionOf(part * each, of.computed);
  float sum = 0.0f;
  for (int64_t position = part * each; position < end; ++position) {
    const int32_t row = of.Read(at.computed, tap);
    if (row >= 0) {
      sum += ToFloat(of.rows[of.Input(at.image, row, n)]) *
             ToFloat(gradient[position * of.filters + n]);
    }
    if (++at.computed == of.computed) {
      at.computed = 0;
      ++at.image;
    }
  }
  partial[part_tap * of.filters + n] = sum;
}

template <typename T>
class ChannelJob {
 public:
  ChannelJob(const CudaCall& call, const Job& job)
      : call_(call), s_(call.shape), scratch_(job.scratch, job.counting), stream_(job.stream) {
    const int64_t multiplier = s_.filters / s_.channels;
    of_ = {static_cast<const T*>(call.rows),
           static_cast<const T*>(call.filter),
           call.table,
           s_.rows_in,
           s_.channels,
           s_.filters,
           multiplier,
           s_.computed,
           s_.batch * s_.computed,
           static_cast<int32_t>(s_.taps),
           multiplier == 1 && s_.channels % Chunk<T>::kSize == 0 &&
               (reinterpret_cast<uintptr_t>(call.rows) | reinterpret_cast<uintptr_t>(call.filter)) %
                       kChunkBytes ==
                   0};
  }

  Status Forward() {
    if (scratch_.counting()) return kOk;
    const int64_t blocks = PointBlocks(of_.positions * of_.chunks());
    if (depthwise()) {
      return Launch(DepthwiseForward<T>, blocks, kPointThreads, 0, stream_, of_,
                    FinishOf<T>(call_));
    }
    return Launch(PoolForward<T>, blocks, kPointThreads, 0, stream_, of_, maximum(),
                  FinishOf<T>(call_));
  }

  Status Gradients() {
    const T* gradient = nullptr;
    Status status = FoldGradient<T>(call_, scratch_, stream_, &gradient);
    if (depthwise()) {
      if (status == kOk && call_.grad_bias != nullptr) {
        status = BiasGradient<T>(call_, gradient, scratch_, stream_);
      }
      if (status == kOk && call_.grad_filter != nullptr) status = FilterGradient(gradient);
    }
    if (status == kOk && call_.grad_rows != nullptr) status = RowsGradient(gradient);
    return status;
  }

  int64_t scratch_bytes() const { return scratch_.used(); }

 private:
  bool depthwise() const { return call_.operation == Operation::kDepthwise; }
  bool maximum() const { return call_.operation == Operation::kMaximum; }

  Status FilterGradient(const T* gradient) {
    const int64_t column_blocks = DivideUp(s_.filters, kPointThreads);
    const Parts parts(of_.positions, DivideUp(8 * call_.multiprocessors, column_blocks * s_.taps));
    const int64_t size = s_.taps * s_.filters;
    float* partial = scratch_.Take<float>(parts.count * size);
    if (scratch_.counting()) return kOk;
    const Status status =
        Launch(DepthwiseFilter<T>, parts.count * s_.taps * column_blocks, kPointThreads, 0, stream_,
               of_, gradient, parts.each, column_blocks, partial);
    if (status != kOk) return status;
    return Launch(SumSplits<T>, PointBlocks(size), kPointThreads, 0, stream_, partial,
                  static_cast<int>(parts.count), size, static_cast<T*>(call_.grad_filter));
  }

  Status RowsGradient(const T* gradient) {
    const RowsSum<T> sum(call_, scratch_);
    if (scratch_.counting()) return kOk;
    Status status = sum.Clear(stream_);
    if (status != kOk) return status;
    const int64_t blocks = PointBlocks(of_.positions * of_.filters);
    status = depthwise() ? Launch(DepthwiseRows<T>, blocks, kPointThreads, 0, stream_, of_,
                                  gradient, sum.values())
                         : Launch(PoolRows<T>, blocks, kPointThreads, 0, stream_, of_, maximum(),
                                  gradient, sum.values());
    return status == kOk ? sum.WriteTo(stream_) : status;
  }

  const CudaCall& call_;
  const ConvShape& s_;
  Scratch scratch_;
  const Stream stream_;
  Channels<T> of_;
};

template <typename T>
Status RunChannels(const CudaCall& call, const Job& job, int64_t* bytes) {
  ChannelJob<T> channels(call, job);
  const Status status = job.gradients ? channels.Gradients() : channels.Forward();
  *bytes = channels.scratch_bytes();
  return status;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_CHANNELS_H_
