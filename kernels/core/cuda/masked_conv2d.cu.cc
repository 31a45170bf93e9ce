#include "core/cuda/masked_conv2d.h"

#include <algorithm>

#include "core/cuda/run.h"

namespace espace {
namespace {

Status Run(const CudaCall& call, const Job& job, int64_t* bytes) {
  switch (call.type) {
    case DataType::kFloat16:
      return RunFloat16(call, job, bytes);
    case DataType::kBFloat16:
      return RunBFloat16(call, job, bytes);
    default:
      return RunFloat32(call, job, bytes);
  }
}

int64_t CountScratch(const CudaCall& call, bool gradients) {
  if (call.shape.batch == 0) return 0;
  int64_t bytes = 0;
  Run(call, {gradients, nullptr, true, {}}, &bytes);
  return bytes;
}

}  // namespace

void InvertSpread(const int32_t* spread, int64_t rows_out, int64_t computed, int32_t* starts,
                  int32_t* shown) {
  // Counting sort: starts[q + 1] counts, then runs on to where q + 1 begins, one place behind, so
  // that filling moves every start to its place.
  std::fill_n(starts, computed + 1, 0);
  for (int64_t r = 0; r < rows_out; ++r) ++starts[spread[r]];
  int32_t sum = 0;
  for (int64_t q = 0; q <= computed; ++q) starts[q] = sum += starts[q];
  for (int64_t r = rows_out; r-- > 0;) shown[--starts[spread[r]]] = static_cast<int32_t>(r);
}

const char* CheckSizes(Operation operation, const ConvShape& s) {
  // Kernels count taps * channels and single sizes in 32 bits, with room for one tile.
  constexpr int64_t kMost = (int64_t{1} << 31) - 4096;
  constexpr int64_t kMostElements = int64_t{1} << 55;
  if (s.batch < 0 || s.batch > kMost) return "the batch must be in [0, 2^31 - 4096]";
  for (const int64_t size : {s.rows_in, s.channels, s.taps, s.computed, s.rows_out, s.filters}) {
    if (size < 1 || size > kMost) {
      return "positions, channels, taps, computed and shown rows and filters must be in "
             "[1, 2^31 - 4096]";
    }
  }
  if (s.taps > kMost / s.channels || s.taps > kMost / s.filters) {
    return "taps * channels and taps * filters must be at most 2^31 - 4096";
  }
  const int64_t images = std::max<int64_t>(s.batch, 1);
  for (const int64_t rows : {s.rows_in, s.computed, s.rows_out}) {
    if (rows > kMostElements / std::max(s.channels, s.filters) / images) {
      return "batch * rows * channels must be at most 2^55";
    }
    if (rows > (int64_t{1} << 36) / images) return "batch * rows must be at most 2^36";
  }
  if (operation == Operation::kDepthwise && s.filters % s.channels != 0) {
    return "the filters of a depthwise convolution must be a multiple of its channels";
  }
  if ((operation == Operation::kMaximum || operation == Operation::kAverage) &&
      s.filters != s.channels) {
    return "pooling must have as many filters as channels";
  }
  return nullptr;
}

int64_t ForwardScratch(const CudaCall& call) { return CountScratch(call, false); }
int64_t GradientScratch(const CudaCall& call) { return CountScratch(call, true); }

Status CudaForward(const CudaCall& call, void* scratch, Stream stream) {
  if (call.shape.batch == 0) return kOk;
  int64_t bytes = 0;
  return Run(call, {false, scratch, false, stream}, &bytes);
}

Status CudaGradients(const CudaCall& call, void* scratch, Stream stream) {
  int64_t bytes = 0;
  if (call.shape.batch > 0) return Run(call, {true, scratch, false, stream}, &bytes);
  const ConvShape& s = call.shape;
  const int64_t size = call.type == DataType::kFloat32 ? 4 : 2;
  const int64_t depth = call.operation == Operation::kDepthwise ? s.taps : s.taps * s.channels;
  Status status = kOk;
  if (call.grad_filter != nullptr)
    status = Clear(call.grad_filter, depth * s.filters * size, stream);
  if (status == kOk && call.grad_bias != nullptr) {
    status = Clear(call.grad_bias, s.filters * size, stream);
  }
  return status;
}

}  // namespace espace
