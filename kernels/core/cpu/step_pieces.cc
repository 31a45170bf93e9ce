#include "core/cpu/step_pieces.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/cpu/pointwise.h"
#include "core/cpu/windows.h"

namespace espace {
namespace {

using Kind = Program::Kind;
using Place = Program::Place;

// Rows that windows write before their activation.
constexpr int64_t kCurvedRows = 64;

}  // namespace

void StepPieces::Compute(size_t s, const Images& images, const Division& division, int64_t part,
                         int64_t piece) const {
  const Program::Step& step = program_.steps[s];
  const int64_t rows = images.count * program_.Computed(step);
  const auto own = [&](int64_t total) {
    return std::pair(division.Begin(total, part, piece), division.Begin(total, part, piece + 1));
  };
  if (prepared_.steps[s].dense != nullptr) {
    const int64_t columns = program_.tensors[step.out].channels;
    const auto [begin, end] = own(CeilDiv(columns, kLine));
    return Multiply(s, images, begin * kLine, std::min(end * kLine, columns));
  }
  if (prepared_.steps[s].narrow != nullptr) {
    const auto [begin, end] = own(CeilDiv(rows, kLine));
    return ConvolveNarrow(s, images, begin * kLine, std::min(end * kLine, rows));
  }
  if (step.kind == Kind::kConvolve) {
    const Convolution& convolution = *prepared_.steps[s].convolution;
    const auto [begin, end] =
        own(convolution.panels().count() * CeilDiv(rows, convolution.tile_rows()));
    return Tiles(s, images, begin, end);
  }
  const auto [begin, end] = own(rows);
  Combine(s, images, begin, end);
}

void StepPieces::Tiles(size_t s, const Images& images, int64_t begin, int64_t end) const {
  const Convolution& convolution = *prepared_.steps[s].convolution;
  const int64_t rows = images.count * program_.Computed(program_.steps[s]);
  const int64_t height = convolution.tile_rows(), panels = convolution.panels().count();
  while (begin < end) {
    const int64_t row = begin / panels * height, first = begin % panels;
    const int64_t whole = first == 0 ? (end - begin) / panels : 0;
    const int64_t last = whole > 0 ? panels : std::min(first + end - begin, panels);
    const int64_t below = std::min(row + std::max(whole, int64_t{1}) * height, rows);
    Convolve(s, images, row, below, first, last);
    begin += whole > 0 ? whole * panels : last - first;
  }
}

void StepPieces::Multiply(size_t s, const Images& images, int64_t left, int64_t right) const {
  const Program::Step& step = program_.steps[s];
  const Bounds bounds(step.activation);
  const View<float> out = Write(step.out, images);
  const auto compute = [&](const auto* filter) {
    using Float = std::remove_cv_t<std::remove_pointer_t<decltype(filter)>>;
    prepared_.steps[s].dense->Compute(
        Dense::Operands<Float>{Read(step.ins[0], images), out, filter, packed_.biases[s].data(),
                               bounds.low, bounds.high, packed_.finite[s]},
        0, images.count, left, right);
  };
  prepared_.steps[s].half ? compute(packed_.halves[s].data()) : compute(weights_[step.filter]);
  Activate(s, out, 0, images.count, left, right);
}

void StepPieces::ConvolveNarrow(size_t s, const Images& images, int64_t begin, int64_t end) const {
  const Program::Step& step = program_.steps[s];
  const Bounds bounds(step.activation);
  const View<float> out = Write(step.out, images);
  prepared_.steps[s].narrow->Compute({Read(step.ins[0], images), out, weights_[step.filter],
                                      packed_.biases[s].data(), bounds.low, bounds.high},
                                     begin, end);
  Activate(s, out, begin, end, 0, program_.tensors[step.out].channels);
}

void StepPieces::Convolve(size_t s, const Images& images, int64_t begin, int64_t end, int64_t first,
                          int64_t last) const {
  const Program::Step& step = program_.steps[s];
  const Convolution& convolution = *prepared_.steps[s].convolution;
  const Bounds bounds(step.activation);
  const Convolution::Operands operands{Read(step.ins[0], images),
                                       Write(step.out, images),
                                       packed_.panels[s].data(),
                                       packed_.biases[s].data(),
                                       bounds.low,
                                       bounds.high};
  const int64_t blocks = CeilDiv(end - begin, convolution.block_rows());
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = begin + (end - begin) * i / blocks;
    const int64_t next = begin + (end - begin) * (i + 1) / blocks;
    convolution.Compute(operands, row, next, first, last);
    const Panels& panels = convolution.panels();
    const int64_t columns = program_.tensors[step.out].channels;
    Activate(s, operands.out, row, next, panels.begin(first),
             std::min(panels.begin(last), columns));
  }
}

void StepPieces::Activate(size_t s, const View<float>& out, int64_t begin, int64_t end,
                          int64_t left, int64_t right) const {
  const Program::Step& step = program_.steps[s];
  if (IsBound(step.activation)) return;
  const ConvShape shape = program_.Shape(step);
  const auto activate = prepared_.variant.pointwise.activate;
  const float* slopes = step.slopes < 0 ? nullptr : weights_[step.slopes] + left;
  const int64_t columns = right - left;
  // Rows without a gap are one.
  const bool joined = step.spread < 0 && slopes == nullptr && columns == out.row;
  if (joined) {
    for (int64_t row = begin; row < end;) {
      const Position at(shape, row);
      const int64_t rows = std::min(end - row, shape.computed - at.computed);
      activate(step.activation, nullptr, rows * columns, out.at(at.image, at.computed));
      row += rows;
    }
    return;
  }
  for (Position at(shape, begin); at.flat < end; at.Next()) {
    if (step.spread < 0) {
      activate(step.activation, slopes, columns, out.at(at.image, at.computed) + left);
    } else {
      const Destinations& shown = *prepared_.steps[s].destinations;
      for (int32_t d = shown.start[at.computed]; d < shown.start[at.computed + 1]; ++d) {
        activate(step.activation, slopes, columns, out.at(at.image, shown.row[d]) + left);
      }
    }
  }
}

void StepPieces::Combine(size_t s, const Images& images, int64_t begin, int64_t end) const {
  const Program::Step& step = program_.steps[s];
  const bool by_row = step.kind == Kind::kSum || step.kind == Kind::kProduct;
  if (by_row && Joined(step, images, begin, end)) return;
  if (prepared_.steps[s].windows != nullptr) {
    const Bounds bounds(step.activation);
    const View<float> out = Write(step.out, images);
    // Few enough rows to be in the cache when their activation comes.
    const int64_t blocks = IsBound(step.activation) ? 1 : CeilDiv(end - begin, kCurvedRows);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = begin + (end - begin) * i / blocks;
      const int64_t next = begin + (end - begin) * (i + 1) / blocks;
      prepared_.steps[s].windows->Compute(
          {Read(step.ins[0], images), out, step.filter < 0 ? nullptr : Given(step.filter),
           step.bias < 0 ? nullptr : Given(step.bias), bounds.low, bounds.high},
          row, next);
      Activate(s, out, row, next, 0, program_.tensors[step.out].channels);
    }
    return;
  }
  const ConvShape shape = program_.Shape(step);
  const View<float> out = Write(step.out, images);
  const Destinations& destinations = *prepared_.steps[s].destinations;
  const std::vector<float>& blended = prepared_.steps[s].factors;
  thread_local std::vector<const float*> rows, factors;
  std::vector<View<const float>> ins;
  for (int64_t in : step.ins) {
    ins.push_back(Read(in, images));
    if (program_.tensors[in].rows == 1) ins.back().row = 0;
  }
  const int32_t* table = step.gathers() ? program_.Values(step.table) : nullptr;
  for (Position at(shape, begin); at.flat < end; at.Next()) {
    rows.clear();
    factors.clear();
    if (table == nullptr) {
      for (const auto& in : ins) rows.push_back(in.at(at.image, at.computed));
      factors.assign(rows.size(), Given(step.filter));
    }
    for (int64_t t = 0; table != nullptr && t < shape.taps; ++t) {
      const int32_t read = table[at.computed * shape.taps + t];
      if (read < 0) continue;
      rows.push_back(ins[0].at(at.image, read));
      if (step.kind == Kind::kBlend) factors.push_back(&blended[at.computed * shape.taps + t]);
      if (step.filter >= 0) factors.push_back(Given(step.filter) + t * shape.channels);
    }
    Show(step, shape, destinations, rows, factors, at, out);
  }
}

bool StepPieces::Joined(const Program::Step& step, const Images& images, int64_t begin,
                        int64_t end) const {
  const Program::Tensor& to = program_.tensors[step.out];
  const int64_t period = to.channels;
  bool joined = step.slopes < 0 && to.stride == period;
  for (int64_t in : step.ins) {
    const Program::Tensor& each = program_.tensors[in];
    joined &= each.rows == 1 || (each.stride == period && each.rows == to.rows);
  }
  if (!joined) return false;
  const int64_t most = std::min(end - begin, to.rows) * period;
  const int64_t longest = std::clamp(kLongRow / period * period, period, std::max(most, period));
  const View<float> out = Write(step.out, images);
  for (int64_t row = begin; row < end;) {
    const int64_t image = row / to.rows, first = row % to.rows * period;
    const int64_t floats = std::min(end - row, to.rows - row % to.rows) * period;
    const LongRows long_rows = Repeated(step, images, image, longest);
    for (int64_t at = first; at < first + floats; at += longest) {
      CombineLong(step, long_rows, at, std::min(longest, first + floats - at),
                  out.at(image, 0) + at);
    }
    row += floats / period;
  }
  return true;
}

StepPieces::LongRows StepPieces::Repeated(const Program::Step& step, const Images& images,
                                          int64_t image, int64_t longest) const {
  thread_local std::vector<float> memory;
  const int64_t period = program_.tensors[step.out].channels;
  const bool single = program_.tensors[step.out].rows == 1;
  float* next = Scratch(memory, (static_cast<int64_t>(step.ins.size()) + 2) * longest);
  const auto repeat = [&](const float* from) {
    float* to = next;
    for (int64_t at = 0; at < longest; at += period) std::copy_n(from, period, to + at);
    next += longest;
    return to;
  };
  LongRows rows{{}, {}, prepared_.ones.data(), nullptr};
  for (int64_t in : step.ins) {
    const float* from = Read(in, images).at(image, 0);
    const bool once = program_.tensors[in].rows == 1 && !single;
    rows.ins.push_back(once ? repeat(from) : from);
    rows.steps.push_back(once ? 0 : 1);
  }
  if (step.filter >= 0) rows.factor = repeat(weights_[step.filter]);
  if (step.bias >= 0) rows.bias = repeat(weights_[step.bias]);
  return rows;
}

void StepPieces::CombineLong(const Program::Step& step, const LongRows& from, int64_t at,
                             int64_t count, float* out) const {
  thread_local std::vector<const float*> rows, factors;
  rows.clear();
  for (size_t i = 0; i < from.ins.size(); ++i) rows.push_back(from.ins[i] + from.steps[i] * at);
  const Reads reads{rows.data(), static_cast<int64_t>(rows.size())};
  const Bounds bounds(step.activation);
  const PointwiseKernels& pointwise = prepared_.variant.pointwise;
  if (step.kind == Kind::kProduct) {
    pointwise.multiply(reads, bounds.low, bounds.high, count, out);
  } else {
    factors.assign(rows.size(), from.factor);
    prepared_.variant.channels.weigh(reads, factors.data(), from.bias, bounds.low, bounds.high,
                                     count, out);
  }
  if (!IsBound(step.activation)) pointwise.activate(step.activation, nullptr, count, out);
}

void StepPieces::Show(const Program::Step& step, const ConvShape& shape,
                      const Destinations& destinations, const std::vector<const float*>& rows,
                      const std::vector<const float*>& factors, const Position& at,
                      const View<float>& out) const {
  const int32_t own = static_cast<int32_t>(at.computed);
  const int32_t *first = &own, *last = first + 1;
  if (step.spreads()) {
    first = destinations.row.data() + destinations.start[at.computed];
    last = destinations.row.data() + destinations.start[at.computed + 1];
    if (first == last) return;
  }
  float* to = out.at(at.image, *first);
  ComputeRow(step, shape.filters, rows, factors, to);
  if (!IsBound(step.activation)) {
    const float* slopes = step.slopes < 0 ? nullptr : weights_[step.slopes];
    prepared_.variant.pointwise.activate(step.activation, slopes, shape.filters, to);
  }
  for (++first; first < last; ++first) {
    std::memcpy(out.at(at.image, *first), to, shape.filters * sizeof(float));
  }
}

void StepPieces::ComputeRow(const Program::Step& step, int64_t channels,
                            const std::vector<const float*>& rows,
                            const std::vector<const float*>& factors, float* out) const {
  const ChannelKernels& kernels = prepared_.variant.channels;
  const PointwiseKernels& pointwise = prepared_.variant.pointwise;
  const Reads reads{rows.data(), static_cast<int64_t>(rows.size())};
  const Bounds bounds(step.activation);
  switch (step.kind) {
    case Kind::kDepthwise:
    case Kind::kSum: {
      const float* bias = step.bias < 0 ? nullptr : Given(step.bias);
      return kernels.weigh(reads, factors.data(), bias, bounds.low, bounds.high, channels, out);
    }
    case Kind::kProduct:
      return pointwise.multiply(reads, bounds.low, bounds.high, channels, out);
    case Kind::kBlend:
      return pointwise.blend(reads, factors.data(), bounds.low, bounds.high, channels, out);
    case Kind::kSoftmax:
      return pointwise.softmax(rows[0], channels, out);
    case Kind::kShuffle: {
      const int32_t* from = program_.Values(step.table);
      for (int64_t n = 0; n < channels; ++n) out[n] = rows[0][from[n]];
      return;
    }
    default:
      if (rows.empty()) {
        std::fill_n(out, channels, 0.0f);
      } else {
        (step.kind == Kind::kMax ? kernels.largest : kernels.mean)(reads, channels, out);
      }
  }
}

const float* StepPieces::Given(int64_t weight) const {
  return weight < 0 ? prepared_.ones.data() : weights_[weight];
}

View<const float> StepPieces::Read(int64_t tensor, const Images& images) const {
  const Program::Tensor& t = program_.tensors[tensor];
  if (t.place != Place::kInput) {
    const View<float> view = Write(tensor, images);
    return {view.data, view.image, view.row};
  }
  const int64_t size = t.rows * t.stride;
  return {inputs_[t.index] + images.first * size + t.start, size, t.stride};
}

View<float> StepPieces::Write(int64_t tensor, const Images& images) const {
  const Program::Tensor& t = program_.tensors[tensor];
  if (t.place == Place::kScratch) return {images.scratch + t.start, program_.scratch, t.stride};
  const int64_t size = t.rows * t.stride;
  return {outputs_[t.index] + images.first * size + t.start, size, t.stride};
}

}  // namespace espace
