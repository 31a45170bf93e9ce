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

// How far back a step is looked for that another one needs; the one before those counts as needed.
constexpr int64_t kLooksBack = 64;

}  // namespace

PreparedProgram::PreparedProgram(const Variant& variant, Program given, int64_t dense_floats,
                                 const std::vector<bool>& halves)
    : variant(variant),
      program(std::move(given)),
      is_packed(program.weights.size()),
      is_read(program.weights.size()) {
  for (const Program::Step& step : program.steps) {
    steps.push_back(Prepare(step, dense_floats));
    steps.back().after = After(static_cast<int64_t>(steps.size()) - 1);
    steps.back().half = steps.back().dense != nullptr && !halves.empty() && halves[step.filter];
    Mark(step, steps.back());
    is_of_rows &= program.Computed(step) == 1;
    cost += steps.back().cost;
  }
}

PreparedStep PreparedProgram::Prepare(const Program::Step& step, int64_t dense_floats) {
  const ConvShape shape = program.Shape(step);
  const int32_t* table = program.Values(step.table);
  const int32_t* spread = step.spreads() ? program.Values(step.spread) : nullptr;
  const double results = static_cast<double>(shape.computed) * static_cast<double>(shape.filters);
  PreparedStep prepared{};
  prepared.cost = results * static_cast<double>(shape.taps);
  if (step.kind == Kind::kBlend) {
    prepared.factors.resize(shape.computed * shape.taps);
    std::memcpy(prepared.factors.data(), program.Values(step.spread),
                prepared.factors.size() * sizeof(float));
  }
  const bool convolves = step.kind == Kind::kConvolve;
  if (convolves) {
    prepared.cost *= static_cast<double>(shape.channels);
    const bool joined = program.tensors[step.ins[0]].stride == shape.channels;
    if (Dense::Suits(shape, step.spreads(), dense_floats)) {
      prepared.dense = std::make_unique<Dense>(variant, shape, table);
    } else if (Narrow::Suits(variant, shape, joined)) {
      prepared.narrow = std::make_unique<Narrow>(variant, shape, table, spread);
    } else {
      prepared.convolution = std::make_unique<Convolution>(variant, shape, table, spread, joined);
      if (prepared.convolution->has_runs()) prepared.convolution->FindRuns(0, shape.computed);
    }
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
  if ((!convolves && prepared.windows == nullptr) || curved) {
    prepared.destinations = std::make_unique<Destinations>(shape, spread);
  }
  return prepared;
}

// The last step before s that writes what s reads, or reads or writes what s writes.
int64_t PreparedProgram::After(int64_t s) const {
  const Program::Step& step = program.steps[s];
  const auto touches = [this](const std::vector<int64_t>& ins, int64_t out) {
    return std::any_of(ins.begin(), ins.end(), [&](int64_t in) {
      return Overlap(program.tensors[in], program.tensors[out]);
    });
  };
  int64_t before = s - 1;
  for (; before >= 0 && before > s - 1 - kLooksBack; --before) {
    const Program::Step& other = program.steps[before];
    if (touches(step.ins, other.out) || touches(other.ins, step.out) ||
        touches({step.out}, other.out)) {
      break;
    }
  }
  return before;
}

// The weights of a step as packed, or read, or both.
void PreparedProgram::Mark(const Program::Step& step, const PreparedStep& prepared) {
  const bool convolves = step.kind == Kind::kConvolve;
  const auto mark = [](std::vector<bool>& marks, int64_t weight) {
    if (weight >= 0) marks[weight] = true;
  };
  if (convolves) mark(is_packed, step.filter);
  if (convolves) mark(is_packed, step.bias);
  const bool as_it_lies = prepared.narrow != nullptr || (prepared.dense != nullptr && !prepared.half);
  if (!convolves || as_it_lies) mark(is_read, step.filter);
  if (!convolves) mark(is_read, step.bias);
  mark(is_read, step.slopes);
}

PackedWeights PreparedProgram::Pack(const std::vector<const float*>& weights) const {
  PackedWeights packed;
  for (size_t s = 0; s < steps.size(); ++s) {
    packed.filters.emplace_back();
    packed.panels.emplace_back();
    packed.biases.emplace_back();
    packed.halves.emplace_back();
    const Program::Step& step = program.steps[s];
    const Dense* dense = steps[s].dense.get();
    if (steps[s].half) {
      packed.halves[s].resize(program.weights[step.filter]);
      std::transform(weights[step.filter], weights[step.filter] + packed.halves[s].size(),
                     packed.halves[s].begin(), ToHalf);
      packed.finite.push_back(dense->IsFinite(packed.halves[s].data()));
    } else {
      packed.finite.push_back(dense != nullptr && dense->IsFinite(weights[step.filter]));
    }
    if (step.kind != Kind::kConvolve) continue;
    const Panels panels(variant, program.tensors[step.out].channels);
    const int64_t columns = panels.begin(panels.count());
    packed.biases[s].assign(columns, 0.0f);
    if (step.bias >= 0) {
      std::copy_n(weights[step.bias], program.weights[step.bias], packed.biases[s].begin());
    }
    if (steps[s].convolution == nullptr) continue;
    const Convolution& convolution = *steps[s].convolution;
    const int64_t depth = convolution.depth();
    packed.filters[s] = AlignedFloats(depth * columns);
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      float* to = packed.filters[s].get() + depth * panels.begin(panel);
      convolution.Pack(weights[step.filter], panel, 0, depth, to);
      packed.panels[s].push_back({to, panels.width(panel)});
    }
  }
  return packed;
}

}  // namespace espace
