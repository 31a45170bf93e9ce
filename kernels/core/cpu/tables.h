// Walking over the computed positions of a table, for operators whose channels do not mix.
#ifndef ESPACE_TF_KERNELS_CORE_CPU_TABLES_H_
#define ESPACE_TF_KERNELS_CORE_CPU_TABLES_H_

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/params.h"

namespace espace {

// Calls compute(position, out) for every computed position that is shown, out being [filters] of
// its first output row, and copies the result to its other rows.
template <typename Compute>
void ForEachShown(const ConvShape& shape, const int32_t* spread, float* out,
                  const ParallelFor& parallel_for, const Compute& compute) {
  const Destinations destinations(shape, spread);
  const int64_t columns = shape.filters;
  parallel_for(shape.batch * shape.computed, [&](int64_t begin, int64_t end) {
    for (Position at(shape, begin); at.flat < end; at.Next()) {
      float* image = out + at.image * shape.rows_out * columns;
      if (spread == nullptr) {
        compute(at, image + at.computed * columns);
        continue;
      }
      const int32_t* first = destinations.row.data() + destinations.start[at.computed];
      const int32_t* last = destinations.row.data() + destinations.start[at.computed + 1];
      if (first == last) continue;
      compute(at, image + *first * columns);
      for (const int32_t* row = first + 1; row < last; ++row) {
        std::memcpy(image + *row * columns, image + *first * columns, columns * sizeof(float));
      }
    }
  });
}

// Calls body(image, first column, columns) for pieces that share no element of [batch, rows,
// columns]: whole images where there are enough of them, else panels of whole cache lines.
template <typename Body>
void ForEachPiece(int64_t batch, int64_t columns, int threads, const ParallelFor& parallel_for,
                  const Body& body) {
  constexpr int64_t kLine = 16;
  if (batch == 0) return;
  const int64_t wanted = CeilDiv(std::max(threads, 1), batch);
  const int64_t width = CeilDiv(CeilDiv(columns, wanted), kLine) * kLine;
  const int64_t panels = CeilDiv(columns, width);
  parallel_for(batch * panels, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t column = piece % panels * width;
      body(piece / panels, column, std::min(width, columns - column));
    }
  });
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CPU_TABLES_H_
