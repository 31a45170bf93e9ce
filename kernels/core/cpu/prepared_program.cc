#include "core/cpu/prepared_program.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/cpu/pointwise.h"

namespace espace {
namespace {

using Kind = Program::Kind;

// A pooling or a sum does one operation for each number that it loads.
constexpr double kLoadCost = 8;
// An activation that is no bound takes as long as so many.
constexpr double kActivationCost = 64;

bool IsWindowed(Kind kind) {
  return kind == Kind::kMax || kind == Kind::kAverage || kind == Kind::kDepthwise;
}

Windows::Kind WindowsKind(Kind kind) {
  return kind == Kind::kMax       ? Windows::Kind::kMax
         : kind == Kind::kAverage ? Windows::Kind::kAverage
                                  : Windows::Kind::kDepthwise;
}

}  // namespace

PreparedProgram::PreparedProgram(const Variant& variant, Program given)
    : variant(variant), program(std::move(given)), is_packed(program.weights.size()) {
  for (const Program::Step& step : program.steps) {
    const ConvShape shape = program.Shape(step);
    const int32_t* table = program.Values(step.table);
    const int32_t* spread = step.spreads() ? program.Values(step.spread) : nullptr;
    const double results = static_cast<double>(shape.computed) * static_cast<double>(shape.filters);
    PreparedStep prepared{nullptr, nullptr, nullptr, results * static_cast<double>(shape.taps), {}};
    if (step.kind == Kind::kBlend) {
      prepared.factors.resize(shape.computed * shape.taps);
      std::memcpy(prepared.factors.data(), program.Values(step.spread),
                  prepared.factors.size() * sizeof(float));
    }
    if (step.kind == Kind::kConvolve) {
      const bool joined = program.tensors[step.ins[0]].stride == shape.channels;
      prepared.convolution = std::make_unique<Convolution>(variant, shape, table, spread, joined);
      if (prepared.convolution->has_runs()) prepared.convolution->FindRuns(0, shape.computed);
      prepared.cost *= static_cast<double>(shape.channels);
      is_packed[step.filter] = true;
      if (step.bias >= 0) is_packed[step.bias] = true;
    } else {
      if (IsWindowed(step.kind) && shape.taps <= Windows::kMostTaps) {
        prepared.windows =
            std::make_unique<Windows>(variant, WindowsKind(step.kind), shape, table, spread);
      }
      prepared.cost *= kLoadCost * static_cast<double>(step.ins.size());
      const auto most = static_cast<size_t>(std::max(kLongRow, shape.channels));
      ones.resize(std::max(ones.size(), most), 1.0f);
    }
    const bool curved = !IsBound(step.activation);
    if (curved) prepared.cost += kActivationCost * results;
    if (step.kind == Kind::kSoftmax) prepared.cost += kActivationCost * results;
    if ((prepared.convolution == nullptr && prepared.windows == nullptr) || curved) {
      prepared.destinations = std::make_unique<Destinations>(shape, spread);
    }
    cost += prepared.cost;
    steps.push_back(std::move(prepared));
  }
}

PackedWeights PreparedProgram::Pack(const std::vector<const float*>& weights) const {
  PackedWeights packed;
  for (size_t s = 0; s < steps.size(); ++s) {
    packed.filters.emplace_back();
    packed.panels.emplace_back();
    packed.biases.emplace_back();
    if (steps[s].convolution == nullptr) continue;
    const Program::Step& step = program.steps[s];
    const Convolution& convolution = *steps[s].convolution;
    const Panels& panels = convolution.panels();
    const int64_t depth = convolution.depth(), columns = panels.begin(panels.count());
    packed.filters[s] = AlignedFloats(depth * columns);
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      float* to = packed.filters[s].get() + depth * panels.begin(panel);
      convolution.Pack(weights[step.filter], panel, 0, depth, to);
      packed.panels[s].push_back({to, panels.width(panel)});
    }
    packed.biases[s].assign(columns, 0.0f);
    if (step.bias < 0) continue;
    std::copy_n(weights[step.bias], program.weights[step.bias], packed.biases[s].begin());
  }
  return packed;
}

}  // namespace espace
