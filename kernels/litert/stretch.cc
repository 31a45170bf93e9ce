#include "litert/stretch.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/half.h"
#include "core/throwing.h"

namespace espace {
namespace litert {
namespace {

float Value(const Stretch::Constant& constant, int64_t index) {
  const char* data = static_cast<const char*>(constant.data);
  if (constant.half) {
    Half half;
    std::memcpy(&half, data + index * sizeof(half), sizeof(half));
    return ToFloat(half);
  }
  float value;
  std::memcpy(&value, data + index * sizeof(value), sizeof(value));
  return value;
}

// The floats in the program's order.
std::vector<float> Floats(const Stretch::Constant& constant, int64_t size, int64_t columns) {
  std::vector<float> floats(size);
  const int64_t width = std::max<int64_t>(columns, 1), height = size / width;
  for (int64_t column = 0; column < width; ++column) {
    for (int64_t row = 0; row < height; ++row) {
      floats[row * width + column] = Value(constant, column * height + row);
    }
  }
  return floats;
}

}  // namespace

std::string Stretch::Make(const Constant& words, const std::vector<Constant>& weights,
                          std::unique_ptr<Stretch>* made) {
  const int64_t count = words.bytes / static_cast<int64_t>(sizeof(int32_t));
  std::vector<int32_t> all(count);
  if (count > 0) std::memcpy(all.data(), words.data, count * sizeof(int32_t));
  const int64_t own = static_cast<int64_t>(weights.size());
  if (count < 2 || all[0] != kStretchMagic) return "its words are not those of a stretch";
  if (all[1] != own || count - 2 < own) {
    return "its words are of " + std::to_string(all[1]) + " weights, it has " + std::to_string(own);
  }
  const auto first = all.begin() + 2 + own;
  Program program;
  const std::string error = ParseProgram(std::vector<int32_t>(first, all.end()), &program);
  if (!error.empty()) return error;
  if (static_cast<int64_t>(program.weights.size()) != own) {
    return "its program takes " + std::to_string(program.weights.size()) + " weights, it has " +
           std::to_string(own);
  }
  std::vector<bool> halves;
  for (const Constant& each : weights) halves.push_back(each.half);
  std::unique_ptr<Stretch> stretch(new Stretch(std::move(program), halves));
  const std::string wrong = stretch->Fill(std::vector<int32_t>(all.begin() + 2, first), weights);
  if (wrong.empty()) *made = std::move(stretch);
  return wrong;
}

std::string Stretch::Fill(const std::vector<int32_t>& columns,
                          const std::vector<Constant>& weights) {
  const std::vector<int64_t>& sizes = program().weights;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t each = weights[i].half ? 2 : 4;
    const bool whole = columns[i] >= 0 && sizes[i] % std::max(columns[i], 1) == 0;
    if (weights[i].bytes == sizes[i] * each && whole) continue;
    return "its weight " + std::to_string(i) + " has " + std::to_string(weights[i].bytes) +
           " bytes and " + std::to_string(columns[i]) + " columns, where the program takes " +
           std::to_string(sizes[i]) + " floats";
  }
  std::vector<std::vector<float>> floats;
  std::vector<const float*> all;
  for (size_t i = 0; i < weights.size(); ++i) {
    floats.push_back(Floats(weights[i], sizes[i], columns[i]));
    all.push_back(floats.back().data());
  }
  packed_ = graph_.Pack(all);
  // What has become panels, and nothing reads any more, is given up.
  for (size_t i = 0; i < weights.size(); ++i) {
    kept_.push_back(graph_.IsRead(i) ? std::move(floats[i]) : std::vector<float>());
  }
  for (const std::vector<float>& each : kept_) pointers_.push_back(each.data());
  return "";
}

void Stretch::Run(int64_t batch, const std::vector<const float*>& inputs,
                  const std::vector<float*>& outputs, int threads, Team& team) const {
  // Waking a thread costs more than it saves below this many vectors of multiply-accumulates.
  constexpr double kAlone = 5e5;
  if (static_cast<double>(batch) * graph_.cost() / 16 < kAlone) threads = 1;
  threads = std::clamp(threads, 1, Team::kMostThreads);
  const ParallelFor parallel_for =
      Throwing([&team](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
        team.Run(count, body);
      });
  graph_.Run(batch, inputs, pointers_, packed_, outputs, threads, parallel_for, nullptr);
}

}  // namespace litert
}  // namespace espace
