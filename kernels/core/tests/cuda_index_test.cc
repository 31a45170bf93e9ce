// The index arithmetic of the GPU kernels by itself: every map from threads to elements is onto and
// one to one, tilings cover what they tile.
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <utility>

#include "core/cuda/masked_conv2d.h"
#include "core/cuda/tiling.h"

namespace espace {
namespace {

int64_t failures = 0, cases = 0;

void Expect(bool holds, const std::string& what) {
  ++cases;
  if (holds) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

// Whether `place(i)` for i < count are all the pairs [0, rows) x [0, columns), each once.
template <typename Place>
bool Covers(int count, int rows, int columns, const Place& place) {
  std::set<std::pair<int64_t, int64_t>> places;
  for (int i = 0; i < count; ++i) {
    const std::pair<int64_t, int64_t> at = place(i);
    if (at.first < 0 || at.first >= rows || at.second < 0 || at.second >= columns) return false;
    places.insert(at);
  }
  return count == rows * columns && static_cast<int>(places.size()) == count;
}

template <class Tile>
void CheckTile(int threads, const char* name) {
  Expect(Covers(threads * Tile::kCount, Tile::kRows, Tile::kChunks,
                [&](int i) {
                  return std::make_pair(Tile::Row(i % threads, i / threads),
                                        Tile::Column(i % threads) / Tile::kChunk);
                }),
         std::string("chunks of a tile of ") + name);
  Expect(Tile::kStride % Tile::kChunk == 0, "rows of a tile start at chunks");
}

template <class Math>
void CheckLayout(const char* name) {
  CheckTile<typename Layout<Math, false>::ATile>(Math::kThreads, name);
  CheckTile<typename Layout<Math, true>::ATile>(Math::kThreads, name);
  CheckTile<typename Layout<Math, false>::BTile>(Math::kThreads, name);
  // Two blocks share the 227 KB of a multiprocessor's memory, 163 KB on compute capability 8.0.
  Expect(Layout<Math, true>::kBytes <= 81 * 1024 && Layout<Math, false>::kBytes <= 81 * 1024,
         std::string("shared memory of ") + name);
}

template <class Math>
void CheckWarps(const char* name) {
  CheckLayout<Math>(name);
  constexpr int kEach = Math::kTall * Math::kWide * 4;
  Expect(Covers(Math::kThreads * kEach, Math::kM, Math::kN,
                [](int i) {
                  const int thread = i / kEach, lane = thread % 32, e = i % 4;
                  const int wide = i % kEach / 4 % Math::kWide, tall = i % kEach / 4 / Math::kWide;
                  return std::make_pair(
                      Math::FirstRow(thread / 32) + tall * 16 + SumRow(lane, e),
                      Math::FirstColumn(thread / 32) + wide * 8 + SumColumn(lane, e));
                }),
         std::string("sums of ") + name);
}

template <class Math>
void CheckScalar(const char* name) {
  CheckLayout<Math>(name);
  Expect(Covers(Math::kThreads * 64, Math::kM, Math::kN,
                [](int i) {
                  return std::make_pair(Math::Row(i / 64, i % 64 / 8), Math::Column(i / 64, i % 8));
                }),
         std::string("sums of ") + name);
}

// Lane 8 i + r addresses row r of matrix i, and the four matrices are the quarters of a fragment.
void CheckMatrixRows() {
  const auto rows = [](const auto& of, int words) {
    return Covers(32, 16, 2,
                  [&](int lane) { return std::make_pair(of(lane).row, of(lane).column / words); });
  };
  Expect(rows([](int lane) { return RowOfA(lane, 8); }, 8), "ldmatrix of A");
  Expect(rows([](int lane) { return RowOfA(lane, 4); }, 4), "ldmatrix of A in 32 bits");
  Expect(rows([](int lane) { return RowOfTransposedA(lane); }, 8), "ldmatrix of A transposed");
  Expect(rows([](int lane) { return RowOfB(lane); }, 8), "ldmatrix of B");
}

void CheckTilings() {
  std::mt19937 random(3);
  const auto integer = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int i = 0; i < 2000; ++i) {
    const int64_t m = integer(1, int64_t{1} << integer(1, 36)), n = integer(1, 3000);
    const int64_t k = integer(1, 9000);
    const int depth = i % 2 ? 16 : 32;
    const Tiling tiling = ChooseTiling(m, n, k, depth, static_cast<int>(integer(1, 200)), i % 3);
    const Product& p = tiling.product;
    const TileSize& tile = kTileSizes[tiling.size];
    const bool covers = int64_t{p.m_tiles} * tile.m >= m && int64_t{p.n_tiles} * tile.n >= n &&
                        p.splits * p.k_per_split >= k && (p.splits - 1) * p.k_per_split < k &&
                        p.k_per_split % depth == 0 && (i % 3 != 0 || p.splits == 1);
    Expect(covers, "tiling " + std::to_string(i));
  }
  using Math = Scalar<64, 64>;
  const Product product{300, 130, 64, 16, 5, 3, 4};
  std::set<std::pair<int64_t, int64_t>> places;
  for (int64_t block = 0; block < 60; ++block) {
    const BlockPlace at = PlaceOf<Math>(product, block);
    Expect(at.m % 64 == 0 && at.m < 300 && at.n % 64 == 0 && at.n < 192 && at.split < 4, "place");
    places.insert({at.m * 1000 + at.n, at.split});
  }
  Expect(places.size() == 60, "every block has its place");
  Expect(Quotient((int64_t{1} << 40) + 5, 7) == ((int64_t{1} << 40) + 5) / 7 &&
             Quotient(0xffffffffLL, 0x7fffffff) == 2,
         "quotients of more than 32 bits");
}

void CheckSpread() {
  const int32_t spread[] = {2, 0, 2, 3, 0};
  int32_t starts[6], shown[5];
  InvertSpread(spread, 5, 5, starts, shown);
  const int32_t want_starts[] = {0, 2, 2, 4, 5, 5}, want_shown[] = {1, 4, 0, 2, 3};
  Expect(std::equal(starts, starts + 6, want_starts), "starts of a spread");
  Expect(std::equal(shown, shown + 5, want_shown), "rows of a spread");
}

}  // namespace
}  // namespace espace

int main() {
  using namespace espace;
  CheckMatrixRows();
  CheckWarps<Tensor16<Half, 128, 128, 64, 64>>("128 x 128 in 16 bits");
  CheckWarps<Tensor16<Half, 128, 64, 32, 64>>("128 x 64 in 16 bits");
  CheckWarps<Tensor16<Half, 64, 64, 32, 32>>("64 x 64 in 16 bits");
  CheckWarps<TensorTf32<128, 128, 64, 64>>("128 x 128 in TF32");
  CheckWarps<TensorTf32<128, 64, 32, 64>>("128 x 64 in TF32");
  CheckWarps<TensorTf32<64, 64, 32, 32>>("64 x 64 in TF32");
  CheckScalar<Scalar<128, 128>>("128 x 128 in float");
  CheckScalar<Scalar<128, 64>>("128 x 64 in float");
  CheckScalar<Scalar<64, 64>>("64 x 64 in float");
  CheckTilings();
  CheckSpread();
  std::printf("%lld checks, %lld failures\n", static_cast<long long>(cases),
              static_cast<long long>(failures));
  return failures != 0;
}
