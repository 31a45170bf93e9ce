// A stretch of a network as one call, whose intermediate maps never leave the processor's cache.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_FUSED_GRAPH_H_
#define ESPACE_TF_KERNELS_CORE_CPU_FUSED_GRAPH_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/prepared_program.h"
#include "core/cpu/variants.h"
#include "core/params.h"
#include "core/program.h"

namespace espace {

class FusedGraph {
 public:
  using Packed = PackedWeights;

  // Multiply-accumulates worth waking another thread for.
  static constexpr double kPieceCost = 2e5;

  // program: what ParseProgram accepted. piece_cost: of the pieces that a step is divided into when
  // a call has fewer images than threads. dense_floats: of filters that are read as they lie.
  // halves: by weight, whether such a filter is to be stored in 16 bits; empty: none.
  FusedGraph(const Variant& variant, Program program, double piece_cost = kPieceCost,
             int64_t dense_floats = Dense::kLeastFloats, const std::vector<bool>& halves = {})
      : prepared_(variant, std::move(program), dense_floats, halves), piece_cost_(piece_cost) {}

  const Program& program() const { return prepared_.program; }
  // About the multiply-accumulates per image.
  double cost() const { return prepared_.cost; }

  // Whether Pack reads this weight, and whether Run does.
  bool IsPacked(int64_t weight) const { return prepared_.is_packed[weight]; }
  bool IsRead(int64_t weight) const { return prepared_.is_read[weight]; }

  // weights: as many as the program has, each of its size; also below.
  Packed Pack(const std::vector<const float*>& weights) const { return prepared_.Pack(weights); }

  // Runs the program on `batch` images. packed: of these weights. nanoseconds: null, or room for
  // the time of each step, of which one thread would need `threads` times as much. parallel_for:
  // runs `threads` bodies, on as many threads as it likes, one after the other too; or the first of
  // them and any of the others, since each does what is left (team.h). They may throw bad_alloc
  // (throwing.h), and so may this.
  void Run(int64_t batch, const std::vector<const float*>& inputs,
           const std::vector<const float*>& weights, const Packed& packed,
           const std::vector<float*>& outputs, int threads, const ParallelFor& parallel_for,
           int64_t* nanoseconds) const;

 private:
  class Call;

  // Scratch memory that is kept between calls: fresh pages cost more than the steps that fill them.
  AlignedFloats TakeScratch(int64_t size) const;
  void ReturnScratch(int64_t size, AlignedFloats memory) const;

  const PreparedProgram prepared_;
  const double piece_cost_;
  mutable std::mutex mutex_;
  mutable std::vector<std::pair<int64_t, AlignedFloats>> scratch_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_FUSED_GRAPH_H_
