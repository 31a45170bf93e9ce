// A stretch of a network as a file for LiteRT holds it: checked, packed, and run by the core.
#ifndef ESPACE_TF_KERNELS_LITERT_STRETCH_H_
#define ESPACE_TF_KERNELS_LITERT_STRETCH_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/cpu/fused_graph.h"
#include "core/program.h"
#include "litert/team.h"

namespace espace {
namespace litert {

constexpr int32_t kStretchMagic = 0x4553504c;

class Stretch {
 public:
  // A constant of the file, of any alignment.
  struct Constant {
    const void* data = nullptr;
    int64_t bytes = 0;
    bool half = false;  // float16, else float32
  };

  // An empty text, and the stretch; else what is wrong. words are int32,
  //   [kStretchMagic, weights, each weight's columns, the words of a program (core/program.h)],
  // columns being 0 for a weight that lies as the program has it, or [size / columns, columns] of
  // one that lies transposed, as LiteRT's own operators take it. Reads all of the constants here
  // and never again.
  static std::string Make(const Constant& words, const std::vector<Constant>& weights,
                          std::unique_ptr<Stretch>* made);

  const Program& program() const { return graph_.program(); }

  // Runs it on at most `threads` threads; may throw bad_alloc.
  void Run(int64_t batch, const std::vector<const float*>& inputs,
           const std::vector<float*>& outputs, int threads, Team& team) const;

 private:
  Stretch(Program program, const std::vector<bool>& halves)
      : graph_(BestVariant(), std::move(program), FusedGraph::kPieceCost, Dense::kLeastFloats,
               halves) {}

  std::string Fill(const std::vector<int32_t>& columns, const std::vector<Constant>& weights);

  const FusedGraph graph_;
  FusedGraph::Packed packed_;
  std::vector<std::vector<float>> kept_;  // the weights that are read where they lie
  std::vector<const float*> pointers_;    // to those
};

}  // namespace litert
}  // namespace espace

#endif  // ESPACE_TF_KERNELS_LITERT_STRETCH_H_
