// What is found out once about the program of a fused graph, before it runs on any images.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_PREPARED_PROGRAM_H_
#define ESPACE_TF_KERNELS_CORE_CPU_PREPARED_PROGRAM_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "core/cpu/convolution.h"
#include "core/cpu/dense.h"
#include "core/cpu/narrow.h"
#include "core/cpu/variants.h"
#include "core/cpu/windows.h"
#include "core/half.h"
#include "core/program.h"

namespace espace {

// Floats that a sum or product of joined rows takes at once.
constexpr int64_t kLongRow = 2048;

// The weights of a program's convolutions in the form in which they read them, by step.
struct PackedWeights {
  std::vector<AlignedFloats> filters;
  std::vector<std::vector<Panel>> panels;
  std::vector<std::vector<float>> biases;  // padded to whole vectors
  std::vector<std::vector<Half>> halves;   // filters of dense layers that are to be stored so
  std::vector<bool> finite;                // filters of dense layers, which are not packed
};

struct PreparedStep {
  std::unique_ptr<Convolution> convolution;
  std::unique_ptr<Narrow> narrow;
  std::unique_ptr<Dense> dense;
  bool half;  // whether the filter of the dense layer is stored so
  std::unique_ptr<Windows> windows;
  std::unique_ptr<Destinations> destinations;
  double cost;                 // about the multiply-accumulates per image
  int64_t after;               // this step and all before it must have ended; -1: none
  std::vector<float> factors;  // of a blend, as large as its table
};

struct PreparedProgram {
  // program: what ParseProgram accepted. dense_floats: of filters that are read as they lie. halves:
  // by weight, whether such a filter is to be stored as Half; empty: none.
  PreparedProgram(const Variant& variant, Program program, int64_t dense_floats,
                  const std::vector<bool>& halves);

  // weights: as many as the program has, each of its size.
  PackedWeights Pack(const std::vector<const float*>& weights) const;

  const Variant& variant;
  const Program program;
  std::vector<PreparedStep> steps;
  std::vector<bool> is_packed, is_read;  // by weight: whether Pack reads it, and whether steps do
  bool is_of_rows = true;                // every step computes one row: images are rows
  double cost = 0;                       // about the multiply-accumulates per image
  std::vector<float> ones;               // for what has no factors

 private:
  PreparedStep Prepare(const Program::Step& step, int64_t dense_floats);
  int64_t After(int64_t s) const;
  void Mark(const Program::Step& step, const PreparedStep& prepared);
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_PREPARED_PROGRAM_H_
