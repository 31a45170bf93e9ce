// Experimental: these kernels have not run on a GPU so far.
// The product of two tiles in shared memory, accumulated in registers: on tensor cores in 16 bits
// (Tensor16) and TF32 (TensorTf32), or with fused multiply-adds in float (Scalar).
//
// Where the elements of mma.sync lie (PTX ISA, "Matrix Fragments"), with g = lane / 4, t = lane %
// 4:
//   m16n8k16   A register i, half h:  row g + 8 (i % 2), column 2 t + h + 8 (i / 2)
//              B register i, half h:  row 2 t + h + 8 i, column g
//   m16n8k8    A register i:          row g + 8 (i % 2), column t + 4 (i / 2)
//              B register i:          row t + 4 i,       column g
//   both       sum register i:        row g + 8 (i / 2), column 2 t + i % 2
// The A of m16n8k8 in 32-bit words and that of m16n8k16 are both the four matrices that ldmatrix
// loads, in the order [rows 0-7, rows 8-15] of the left half, then of the right one.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_MATH_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_MATH_H_

#include "core/cuda/loads.h"

namespace espace {

// The lane's row of matrix lane / 8 for ldmatrix: A from rows of m, A from rows of k (transposed),
// and two neighbouring B from rows of k (transposed).
struct MatrixRow {
  int row, column;
};
ESPACE_ANY MatrixRow RowOfA(int lane, int words) {  // words: elements of a matrix row
  return {lane % 8 + lane / 8 % 2 * 8, lane / 16 * words};
}
ESPACE_ANY MatrixRow RowOfTransposedA(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
}
ESPACE_ANY MatrixRow RowOfB(int lane) { return {lane % 8 + lane / 8 % 2 * 8, lane / 16 * 8}; }

// Element `i` of a lane's sum.
ESPACE_ANY int SumRow(int lane, int i) { return lane / 4 + i / 2 * 8; }
ESPACE_ANY int SumColumn(int lane, int i) { return lane % 4 * 2 + i % 2; }

// What both tensor-core products share: a block of kM x kN as warps of kWarpM x kWarpN.
template <typename T_, int kM_, int kN_, int kK_, int kWarpM, int kWarpN>
struct Warps {
  using T = T_;
  static constexpr int kM = kM_, kN = kN_, kK = kK_;
  static constexpr int kThreads = kM / kWarpM * (kN / kWarpN) * 32;
  static constexpr int kBlocks = 256 / kThreads;  // of a multiprocessor, for 255 registers a thread
  static constexpr int kTall = kWarpM / 16, kWide = kWarpN / 8;  // mma tiles of a warp
  float sum[kTall][kWide][4] = {};

  static ESPACE_ANY int FirstRow(int warp) { return warp / (kN / kWarpN) * kWarpM; }
  static ESPACE_ANY int FirstColumn(int warp) { return warp % (kN / kWarpN) * kWarpN; }

  // to [kM, stride] in shared memory.
  ESPACE_DEVICE void Store(float* to, int stride) const {
    const int lane = Thread() % 32, row = FirstRow(Thread() / 32);
    const int column = FirstColumn(Thread() / 32);
#pragma unroll
    for (int i = 0; i < kTall; ++i) {
#pragma unroll
      for (int j = 0; j < kWide; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          to[(row + i * 16 + SumRow(lane, e)) * stride + column + j * 8 + SumColumn(lane, e)] =
              sum[i][j][e];
        }
      }
    }
  }
};

template <typename T, int kM, int kN, int kWarpM, int kWarpN>
struct Tensor16 : Warps<T, kM, kN, 32, kWarpM, kWarpN> {
  using Base = Warps<T, kM, kN, 32, kWarpM, kWarpN>;
  using Base::sum;

  // kTransposed: a is [k, m], else [m, k]; b is [k, n].
  template <bool kTransposed, class ATile, class BTile>
  ESPACE_DEVICE void Add(const T* a, const T* b) {
    const int lane = Thread() % 32, warp = Thread() / 32;
    const MatrixRow at = kTransposed ? RowOfTransposedA(lane) : RowOfA(lane, 8);
    const MatrixRow bt = RowOfB(lane);
    a += at.row * ATile::kStride + at.column +
         Base::FirstRow(warp) * (kTransposed ? 1 : ATile::kStride);
    b += bt.row * BTile::kStride + bt.column + Base::FirstColumn(warp);
#pragma unroll
    for (int k = 0; k < Base::kK; k += 16) {
      uint32_t left[Base::kTall][4], right[Base::kWide / 2][4];
#pragma unroll
      for (int i = 0; i < Base::kTall; ++i) {
        if (kTransposed) {
          LoadTransposed(a + k * ATile::kStride + i * 16, left[i]);
        } else {
          LoadMatrices(a + i * 16 * ATile::kStride + k, left[i]);
        }
      }
#pragma unroll
      for (int j = 0; j < Base::kWide / 2; ++j) {
        LoadTransposed(b + k * BTile::kStride + j * 16, right[j]);
      }
#pragma unroll
      for (int i = 0; i < Base::kTall; ++i) {
#pragma unroll
        for (int j = 0; j < Base::kWide; ++j) {
          const uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          Multiply(T(), sum[i][j], left[i], pair);
        }
      }
    }
  }
};

template <int kM, int kN, int kWarpM, int kWarpN>
struct TensorTf32 : Warps<float, kM, kN, 16, kWarpM, kWarpN> {
  using Base = Warps<float, kM, kN, 16, kWarpM, kWarpN>;
  using Base::sum;

  template <bool kTransposed, class ATile, class BTile>
  ESPACE_DEVICE void Add(const float* a, const float* b) {
    const int lane = Thread() % 32, warp = Thread() / 32, g = lane / 4, t = lane % 4;
    const MatrixRow at = kTransposed ? MatrixRow{t, g} : RowOfA(lane, 4);
    a += at.row * ATile::kStride + at.column +
         Base::FirstRow(warp) * (kTransposed ? 1 : ATile::kStride);
    b += t * BTile::kStride + g + Base::FirstColumn(warp);
#pragma unroll
    for (int k = 0; k < Base::kK; k += 8) {
      uint32_t left[Base::kTall][4];
#pragma unroll
      for (int i = 0; i < Base::kTall; ++i) {
        if (kTransposed) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            left[i][e] = Bits(a[(k + e / 2 * 4) * ATile::kStride + i * 16 + e % 2 * 8]);
          }
        } else {
          LoadMatrices(a + i * 16 * ATile::kStride + k, left[i]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) left[i][e] = ToTf32(left[i][e]);
      }
#pragma unroll
      for (int j = 0; j < Base::kWide; ++j) {
        const float* from = b + k * BTile::kStride + j * 8;
        const uint32_t right[2] = {ToTf32(Bits(from[0])), ToTf32(Bits(from[4 * BTile::kStride]))};
#pragma unroll
        for (int i = 0; i < Base::kTall; ++i) Multiply(0.0f, sum[i][j], left[i], right);
      }
    }
  }
};

// Each thread sums 8 x 8 elements: 4 neighbouring rows and columns, and those half a tile on.
template <int kM_, int kN_>
struct Scalar {
  using T = float;
  static constexpr int kM = kM_, kN = kN_, kK = 16, kThreads = kM / 8 * (kN / 8);
  static constexpr int kBlocks = 384 / kThreads;  // 168 registers a thread; at 128 sums spill
  float sum[8][8] = {};

  static ESPACE_ANY int Row(int thread, int i) {
    return thread / (kN / 8) * 4 + i / 4 * (kM / 2) + i % 4;
  }
  static ESPACE_ANY int Column(int thread, int j) {
    return thread % (kN / 8) * 4 + j / 4 * (kN / 2) + j % 4;
  }

  template <bool kTransposed, class ATile, class BTile>
  ESPACE_DEVICE void Add(const float* a, const float* b) {
    const int row = Row(Thread(), 0), column = Column(Thread(), 0);
#pragma unroll
    for (int k = 0; k < kK; k += 4) {
      Chunk<float> left[8];  // kTransposed: [k 0-3][rows 0-3], then rows 4-7; else [row][k 0-3]
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float* from = kTransposed ? a + (k + i % 4) * ATile::kStride + row + i / 4 * (kM / 2)
                                        : a + (row + i / 4 * (kM / 2) + i % 4) * ATile::kStride + k;
        left[i] = *reinterpret_cast<const Chunk<float>*>(from);
      }
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        Chunk<float> right[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          right[half] = *reinterpret_cast<const Chunk<float>*>(b + (k + kk) * BTile::kStride +
                                                               column + half * (kN / 2));
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float value = kTransposed ? left[i / 4 * 4 + kk].values[i % 4] : left[i].values[kk];
#pragma unroll
          for (int j = 0; j < 8; ++j) sum[i][j] += value * right[j / 4].values[j % 4];
        }
      }
    }
  }

  ESPACE_DEVICE void Store(float* to, int stride) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        to[Row(Thread(), i) * stride + Column(Thread(), j)] = sum[i][j];
      }
    }
  }
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_MATH_H_
