// Steps of a fused graph computed piece by piece, in whatever order and by whatever threads.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_STEP_PIECES_H_
#define ESPACE_TF_KERNELS_CORE_CPU_STEP_PIECES_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/channels.h"
#include "core/cpu/convolution.h"
#include "core/cpu/prepared_program.h"
#include "core/program.h"

namespace espace {

// A step divided among threads: each has a part of its own, in pieces that become smaller towards
// the end, of which others take what is left. Parts are the same rows in every step, which then
// mostly reads what its own core wrote.
class Division {
 public:
  // Pieces of a part at most; but for the last two, each has half the size of the former.
  static constexpr int64_t kMostPieces = 4;

  // worth: how many pieces there may be at most if all had the size of the smallest.
  Division(int64_t worth, int64_t threads, int64_t most_pieces = kMostPieces)
      : parts_(std::clamp(worth, int64_t{1}, threads)) {
    while (pieces_ < most_pieces && worth >= parts_ << pieces_) ++pieces_;
  }

  int64_t parts() const { return parts_; }
  int64_t pieces() const { return pieces_; }  // of a part
  int64_t count() const { return parts_ * pieces_; }

  // Where a piece of `total` things begins, which is where the piece before it ends.
  int64_t Begin(int64_t total, int64_t part, int64_t piece) const {
    const int64_t whole = int64_t{1} << (pieces_ - 1);
    const int64_t before = piece < pieces_ ? whole - (whole >> piece) : whole;
    return total * (part * whole + before) / (whole * parts_);
  }

 private:
  const int64_t parts_;
  int64_t pieces_ = 1;
};

class StepPieces {
 public:
  // The images of a call that one thread, or all of them together, have in scratch memory.
  struct Images {
    int64_t first, count;
    float* scratch;
  };

  // What one call reads and writes; all of it must outlive this. packed: of these weights.
  StepPieces(const PreparedProgram& prepared, const std::vector<const float*>& inputs,
             const std::vector<const float*>& weights, const PackedWeights& packed,
             const std::vector<float*>& outputs)
      : prepared_(prepared),
        program_(prepared.program),
        inputs_(inputs),
        weights_(weights),
        packed_(packed),
        outputs_(outputs) {}

  // One of the pieces that step s of these images is divided into. No piece reads what another one
  // of the same step writes.
  void Compute(size_t s, const Images& images, const Division& division, int64_t part,
               int64_t piece) const;

 private:
  // All images, columns [left, right).
  void Multiply(size_t s, const Images& images, int64_t left, int64_t right) const;

  // Rows [begin, end) of the flattened [images, computed].
  void ConvolveNarrow(size_t s, const Images& images, int64_t begin, int64_t end) const;

  // Tiles [begin, end) of all, a row of them after the other.
  void Tiles(size_t s, const Images& images, int64_t begin, int64_t end) const;

  // Rows [begin, end) of the flattened [images, computed], panels [first, last).
  void Convolve(size_t s, const Images& images, int64_t begin, int64_t end, int64_t first,
                int64_t last) const;

  // The activation that is no bound, of what has just been written of rows [begin, end), columns
  // [left, right): it still is in the second-level cache.
  void Activate(size_t s, const View<float>& out, int64_t begin, int64_t end, int64_t left,
                int64_t right) const;

  // Steps whose channels do not mix, rows [begin, end) of the flattened [images, computed].
  void Combine(size_t s, const Images& images, int64_t begin, int64_t end) const;

  // A sum or product of whole maps whose rows follow each other without a gap, as long rows: what
  // is the same for all rows is written several times side by side. Returns whether it is one.
  bool Joined(const Program::Step& step, const Images& images, int64_t begin, int64_t end) const;

  // What a sum or product of joined rows reads, and how far apart: 0 for what is there once.
  struct LongRows {
    std::vector<const float*> ins;
    std::vector<int64_t> steps;
    const float *factor, *bias;  // bias: or null
  };

  LongRows Repeated(const Program::Step& step, const Images& images, int64_t image,
                    int64_t longest) const;

  void CombineLong(const Program::Step& step, const LongRows& from, int64_t at, int64_t count,
                   float* out) const;

  // Computes one row and copies it to all rows that show it.
  void Show(const Program::Step& step, const ConvShape& shape, const Destinations& destinations,
            const std::vector<const float*>& rows, const std::vector<const float*>& factors,
            const Position& at, const View<float>& out) const;

  void ComputeRow(const Program::Step& step, int64_t channels,
                  const std::vector<const float*>& rows, const std::vector<const float*>& factors,
                  float* out) const;

  // A weight as it came; ones where there is none.
  const float* Given(int64_t weight) const;

  View<const float> Read(int64_t tensor, const Images& images) const;

  View<float> Write(int64_t tensor, const Images& images) const;

  const PreparedProgram& prepared_;
  const Program& program_;
  const std::vector<const float*>& inputs_;
  const std::vector<const float*>& weights_;
  const PackedWeights& packed_;
  const std::vector<float*>& outputs_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_STEP_PIECES_H_
