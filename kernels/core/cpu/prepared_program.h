// What is found out once about the program of a fused graph, before it runs on any images.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_PREPARED_PROGRAM_H_
#define ESPACE_TF_KERNELS_CORE_CPU_PREPARED_PROGRAM_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "core/cpu/convolution.h"
#include "core/cpu/variants.h"
#include "core/cpu/windows.h"
#include "core/program.h"

namespace espace {

// Floats that a sum or product of joined rows takes at once.
constexpr int64_t kLongRow = 2048;

// The weights of a program's convolutions in the form in which they read them, by step.
struct PackedWeights {
  std::vector<AlignedFloats> filters;
  std::vector<std::vector<Panel>> panels;
  std::vector<std::vector<float>> biases;  // padded to whole vectors
};

struct PreparedStep {
  std::unique_ptr<Convolution> convolution;
  std::unique_ptr<Windows> windows;
  std::unique_ptr<Destinations> destinations;
  double cost;                 // about the multiply-accumulates per image
  std::vector<float> factors;  // of a blend, as large as its table
};

struct PreparedProgram {
  // program: what ParseProgram accepted.
  PreparedProgram(const Variant& variant, Program program);

  // weights: as many as the program has, each of its size.
  PackedWeights Pack(const std::vector<const float*>& weights) const;

  const Variant& variant;
  const Program program;
  std::vector<PreparedStep> steps;
  std::vector<bool> is_packed;  // by weight: whether a convolution reads it
  double cost = 0;              // about the multiply-accumulates per image
  std::vector<float> ones;      // for what has no factors
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_PREPARED_PROGRAM_H_
