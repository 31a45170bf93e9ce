// A stretch of a network as one call, whose intermediate maps never leave the processor's cache.
#ifndef ESPACE_TF_KERNELS_CORE_FUSED_GRAPH_H_
#define ESPACE_TF_KERNELS_CORE_FUSED_GRAPH_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "channels.h"
#include "convolution.h"
#include "params.h"
#include "program.h"
#include "variants.h"

namespace espace {

class FusedGraph {
 public:
  // The weights of a program in the form in which its steps read them.
  struct Weights {
    std::vector<AlignedFloats> packed;       // by step
    std::vector<std::vector<Panel>> panels;  // by step
    std::vector<std::vector<float>> biases;  // by step, padded to whole vectors
    std::vector<const float*> given;         // as they came; must outlive this
  };

  // program: what ParseProgram accepted.
  FusedGraph(const Variant& variant, Program program);

  const Program& program() const { return program_; }
  // About the multiply-accumulates per image.
  double cost() const { return cost_; }

  // given: as many as the program has weights, each of its size.
  Weights Prepare(std::vector<const float*> given) const;

  // Runs the program on `batch` images. nanoseconds: null, or room for the time of each step, which
  // one thread would need `threads` times of. Throws bad_alloc before any thread has begun.
  void Run(int64_t batch, const std::vector<const float*>& inputs,
           const std::vector<float*>& outputs, const Weights& weights, int threads,
           const ParallelFor& parallel_for, int64_t* nanoseconds) const;

 private:
  class Call;

  // What is found out once about a step.
  struct Prepared {
    std::unique_ptr<Convolution> convolution;
    std::unique_ptr<Destinations> destinations;
    double cost;  // about the multiply-accumulates per image
  };

  // Scratch memory that is kept between calls: fresh pages cost more than the steps that fill them.
  AlignedFloats TakeScratch(int64_t size) const;
  void ReturnScratch(int64_t size, AlignedFloats memory) const;

  const Variant& variant_;
  const Program program_;
  std::vector<Prepared> steps_;
  double cost_ = 0;
  std::vector<float> ones_;
  mutable std::mutex mutex_;
  mutable std::vector<std::pair<int64_t, AlignedFloats>> scratch_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_FUSED_GRAPH_H_
