// Experimental: these kernels have not run on a GPU so far.
// How tiles of the operands come into shared memory. All products here are
//   D [m, n] = A [m, k] B [k, n],
// with A gathered through the index table and B a plain matrix. A thread owns a column of 16-byte
// chunks of a tile: the same chunk of every kStep-th row.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_LOADS_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_LOADS_H_

#include "core/cuda/device.h"

namespace espace {

// A tile in shared memory, kRows x kColumns of T. Rows are padded by a chunk (two for 32 bits along
// n), which spreads what a warp reads at once over all banks.
template <typename T, int kRowsOf, int kColumnsOf, int kThreads>
struct Tile {
  static constexpr int kRows = kRowsOf, kColumns = kColumnsOf;
  static constexpr int kChunk = Chunk<T>::kSize;
  static constexpr int kStride = kColumns + (sizeof(T) == 4 && kColumns > 16 ? 2 : 1) * kChunk;
  static constexpr int kSize = kRows * kStride;
  static constexpr int kChunks = kColumns / kChunk;  // of one row
  static constexpr int kStep = kThreads / kChunks;   // rows between two chunks of one thread
  static constexpr int kCount = kRows / kStep;       // chunks of one thread
  static_assert(kThreads % kChunks == 0 && kRows % kStep == 0 && kCount > 0, "uneven tile");

  static ESPACE_ANY int Row(int thread, int i) { return thread / kChunks + i * kStep; }
  static ESPACE_ANY int Column(int thread) { return thread % kChunks * kChunk; }
};

// A = the gathered rows: position p = image * computed + q reads, at k = tap * channels + c,
// rows[image, table[q, tap], c]. Without a table position q reads row q.
template <typename T>
struct Gather {
  const T* rows;         // [batch, rows_in, channels]
  const int32_t* table;  // [computed, taps] or null
  int64_t rows_in, computed, positions;
  int32_t channels, taps;
  bool vector;  // channels is a whole number of chunks and rows is aligned to a chunk

  ESPACE_DEVICE int32_t Read(int64_t q, int32_t tap) const {
    return table == nullptr ? static_cast<int32_t>(q) : table[q * taps + tap];
  }
  ESPACE_DEVICE const T* Image(int64_t image) const { return rows + image * rows_in * channels; }
  ESPACE_DEVICE T Element(int64_t image, int64_t q, int32_t k) const {
    T value = {};
    if (k >= channels * taps) return value;
    const int32_t tap = k / channels, row = Read(q, tap);
    return row < 0 ? value : Image(image)[int64_t{row} * channels + (k - tap * channels)];
  }
};

// Tiles [positions, k] of A, walking along k. The table is read one tile ahead of the rows.
template <typename T, class Tile>
class RowLoader {
 public:
  ESPACE_DEVICE RowLoader(const Gather<T>& from, int64_t m, int64_t k, int64_t)
      : from_(from),
        k_(static_cast<int32_t>(k) + Tile::Column(Thread())),
        tap_(k_ / from.channels),
        channel_(k_ - tap_ * from.channels) {
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      const int64_t p = m + Tile::Row(Thread(), i);
      image_[i] = -1;
      q_[i] = 0;
      if (p < from_.positions) {
        const int64_t image = Quotient(p, from_.computed);
        image_[i] = static_cast<int32_t>(image);
        q_[i] = static_cast<int32_t>(p - image * from_.computed);
      }
    }
    Fetch();
  }

  // Starts the copy of the tile to `to`, and goes on to the next one.
  ESPACE_DEVICE void Load(T* to) {
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      T* chunk = to + Tile::Row(Thread(), i) * Tile::kStride + Tile::Column(Thread());
      if (from_.vector) {
        const bool valid = next_[i] >= 0;
        CopyAsync16(chunk,
                    valid ? from_.Image(image_[i]) + int64_t{next_[i]} * from_.channels + channel_
                          : from_.rows,
                    valid);
      } else {
        for (int e = 0; e < Tile::kChunk; ++e) {
          chunk[e] = image_[i] < 0 ? T{} : from_.Element(image_[i], q_[i], k_ + e);
        }
      }
    }
    k_ += Tile::kColumns;
    channel_ += Tile::kColumns;
    while (channel_ >= from_.channels) {
      channel_ -= from_.channels;
      ++tap_;
    }
    Fetch();
  }

 private:
  ESPACE_DEVICE void Fetch() {
    if (!from_.vector) return;
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      next_[i] = image_[i] >= 0 && tap_ < from_.taps ? from_.Read(q_[i], tap_) : -1;
    }
  }

  const Gather<T>& from_;
  int32_t k_, tap_, channel_;
  int32_t image_[Tile::kCount], q_[Tile::kCount], next_[Tile::kCount];
};

// Tiles [k, positions] of A transposed, [positions, k] in memory, walking along the positions: for
// sums over positions. Here "m" counts tap * channels + c.
template <typename T, class Tile>
class ColumnLoader {
 public:
  ESPACE_DEVICE ColumnLoader(const Gather<T>& from, int64_t m, int64_t position, int64_t end)
      : from_(from),
        column_(static_cast<int32_t>(m) + Tile::Column(Thread())),
        tap_(column_ / from.channels),
        channel_(column_ - tap_ * from.channels),
        left_(end - position) {
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      const int64_t p = position + Tile::Row(Thread(), i), image = Quotient(p, from_.computed);
      image_[i] = static_cast<int32_t>(image);
      q_[i] = static_cast<int32_t>(p - image * from_.computed);
    }
    Fetch();
  }

  ESPACE_DEVICE void Load(T* to) {
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      T* chunk = to + Tile::Row(Thread(), i) * Tile::kStride + Tile::Column(Thread());
      if (from_.vector) {
        const bool valid = next_[i] >= 0;
        CopyAsync16(chunk,
                    valid ? from_.Image(image_[i]) + int64_t{next_[i]} * from_.channels + channel_
                          : from_.rows,
                    valid);
      } else {
        for (int e = 0; e < Tile::kChunk; ++e) {
          chunk[e] = Inside(i) ? from_.Element(image_[i], q_[i], column_ + e) : T{};
        }
      }
    }
    left_ -= Tile::kRows;
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      int64_t q = int64_t{q_[i]} + Tile::kRows;
      if (q >= from_.computed) {
        const int64_t images = Quotient(q, from_.computed);
        q -= images * from_.computed;
        image_[i] += static_cast<int32_t>(images);
      }
      q_[i] = static_cast<int32_t>(q);
    }
    Fetch();
  }

 private:
  ESPACE_DEVICE bool Inside(int i) const { return Tile::Row(Thread(), i) < left_; }
  ESPACE_DEVICE void Fetch() {
    if (!from_.vector) return;
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      next_[i] = Inside(i) && tap_ < from_.taps ? from_.Read(q_[i], tap_) : -1;
    }
  }

  const Gather<T>& from_;
  const int32_t column_, tap_, channel_;
  int64_t left_;
  int32_t image_[Tile::kCount], q_[Tile::kCount], next_[Tile::kCount];
};

// B: a matrix [k, n] in rows.
template <typename T>
struct Matrix {
  const T* values;
  int64_t columns;
  bool vector;  // columns is a whole number of chunks and values is aligned to a chunk
};

// Tiles [k, n] of B up to row `end`, walking along k.
template <typename T, class Tile>
class MatrixLoader {
 public:
  ESPACE_DEVICE MatrixLoader(const Matrix<T>& from, int64_t n, int64_t k, int64_t end)
      : from_(from), column_(n + Tile::Column(Thread())), row_(k), end_(end) {}

  ESPACE_DEVICE void Load(T* to) {
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) {
      const int64_t row = row_ + Tile::Row(Thread(), i);
      T* chunk = to + Tile::Row(Thread(), i) * Tile::kStride + Tile::Column(Thread());
      const T* source = from_.values + row * from_.columns + column_;
      if (from_.vector) {
        const bool valid = row < end_ && column_ < from_.columns;
        CopyAsync16(chunk, valid ? source : from_.values, valid);
      } else {
        for (int e = 0; e < Tile::kChunk; ++e) {
          chunk[e] = row < end_ && column_ + e < from_.columns ? source[e] : T{};
        }
      }
    }
    row_ += Tile::kRows;
  }

 private:
  const Matrix<T>& from_;
  const int64_t column_;
  int64_t row_;
  const int64_t end_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_LOADS_H_
