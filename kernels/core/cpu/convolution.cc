#include "core/cpu/convolution.h"

#include <algorithm>
#include <cstring>

namespace espace {
namespace {

// What a block may keep: pointers to its inputs, and copies of them.
constexpr int64_t kBlockPointers = 1 << 17, kBlockFloats = 1 << 20;

// In place of an input row.
constexpr int32_t kZeros = -1, kScattered = -2;

// Below this many channels a tap is too short a loop; above this many filters that costs more than
// to copy taps that do not lie one after the other.
constexpr int64_t kFewChannels = 8, kManyFilters = 64;

// How many taps to take as one. With few channels: those of a kernel's row, which read neighbouring
// input rows almost everywhere; where no such run is found all of them or none. A few positions are
// looked at, since one alone may lie on the border; a prime apart, so that no two of them are in one
// column of the map whatever its width.
int64_t TapsAtOnce(const ConvShape& shape, const int32_t* table, bool joined) {
  constexpr int64_t kLooks = 16, kFar = 2654435761;
  if (shape.channels >= kFewChannels || shape.computed == 0) return 1;
  int64_t longest = 1;
  for (int64_t look = 0; joined && look < kLooks; ++look) {
    const int32_t* reads = table + look * kFar % shape.computed * shape.taps;
    int64_t run = 1;
    while (reads[0] >= 0 && run < shape.taps && reads[run] == reads[0] + run) ++run;
    longest = std::max(longest, run);
  }
  if (longest > 1 && shape.taps % longest == 0) return longest;
  return shape.filters > kManyFilters ? shape.taps : 1;
}

}  // namespace

Convolution::Convolution(const Variant& variant, const ConvShape& shape, const int32_t* table,
                         const int32_t* spread, bool joined)
    : variant_(variant),
      shape_(shape),
      table_(table),
      spread_(spread),
      joined_(joined),
      run_(TapsAtOnce(shape, table, joined)),
      taps_(shape.taps / run_),
      channels_(shape.channels * run_),
      destinations_(shape, spread),
      panels_(variant, shape.filters),
      zeros_(channels_, 0.0f) {
  if (has_runs()) runs_.resize(shape.computed * taps_);
}

int64_t Convolution::block_rows() const {
  const int64_t most = run_ == 1 ? kBlockRows : kBlockFloats / depth();
  return std::clamp(std::min(kBlockPointers / taps_, most), int64_t{1}, kBlockRows);
}

// Where each run of taps of each computed position reads: kZeros, the first of neighbouring input
// rows, or kScattered when its rows do not lie one after the other.
void Convolution::FindRuns(int64_t begin, int64_t end) {
  const uint32_t run = static_cast<uint32_t>(run_);
  for (int64_t i = begin * taps_; i < end * taps_; ++i) {
    const int32_t* reads = table_ + i * run_;
    // Any bit that differs from neighbours'; a sign that all of them have.
    const uint32_t first = static_cast<uint32_t>(reads[0]);
    uint32_t apart = joined_ ? 0 : 1;
    int32_t common = -1;
    for (uint32_t t = 0; t < run; ++t) {
      apart |= static_cast<uint32_t>(reads[t]) ^ (first + t);
      common &= reads[t];
    }
    runs_[i] = common < 0 ? kZeros : apart == 0 && reads[0] >= 0 ? reads[0] : kScattered;
  }
}

void Convolution::Pack(const float* filter, int64_t panel, int64_t begin, int64_t end,
                       float* to) const {
  const int64_t column = panels_.begin(panel), width = panels_.width(panel);
  const int64_t columns = std::min(width, shape_.filters - column);
  for (int64_t k = begin; k < end; ++k, to += width) {
    std::memcpy(to, filter + k * shape_.filters + column, columns * sizeof(float));
    std::fill(to + columns, to + width, 0.0f);
  }
}

void Convolution::Compute(const Operands& operands, int64_t begin, int64_t end, int64_t first,
                          int64_t last) const {
  thread_local std::vector<const float*> inputs;
  thread_local std::vector<float> patches, results;
  FindInputs(operands, begin, end, inputs, patches);
  const int64_t left = panels_.begin(first);
  const int64_t columns = std::min(panels_.begin(last), shape_.filters) - left;
  float* block = operands.stream ? Lined(results, (end - begin) * columns) : nullptr;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t column = panels_.begin(panel), width = panels_.width(panel);
    TileArgs tile{nullptr,
                  taps_,
                  channels_,
                  operands.panels[panel].data,
                  operands.panels[panel].stride,
                  operands.bias + column,
                  operands.low,
                  operands.high,
                  nullptr,
                  width};
    const int64_t tiles =
        CeilDiv(end - begin, variant_.rows(static_cast<int>(width / variant_.lanes)));
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = (end - begin) * i / tiles, next = (end - begin) * (i + 1) / tiles;
      tile.a = inputs.data() + row * taps_;
      const int count = static_cast<int>(next - row);
      if (operands.stream) {
        RunTile(tile, count, width, block + row * columns + column - left, columns);
      } else {
        RunTile(operands, tile, begin + row, count, column, width);
      }
    }
  }
  if (operands.stream) {
    Stream(operands, begin, end, left, columns, block);
  } else {
    Spread(operands, begin, end, left, columns);
  }
}

bool Convolution::CanStream(const View<float>& out) const {
  return variant_.stream != nullptr && shape_.filters % kLine == 0 && out.row % kLine == 0 &&
         out.image % kLine == 0 && reinterpret_cast<uintptr_t>(out.data) % kLineBytes == 0;
}

// Copies results [end - begin, columns] to all their destinations.
void Convolution::Stream(const Operands& operands, int64_t begin, int64_t end, int64_t column,
                         int64_t columns, const float* results) const {
  thread_local std::vector<const float*> from;
  thread_local std::vector<float*> to;
  from.clear();
  to.clear();
  for (Position at(shape_, begin); at.flat < end; at.Next(), results += columns) {
    const int64_t shown = Shown(at);
    for (int64_t d = 0; d < shown; ++d) {
      from.push_back(results);
      to.push_back(Output(operands, at, d) + column);
    }
  }
  variant_.stream({from.data(), to.data(), static_cast<int64_t>(to.size()), columns});
}

// Copies columns of rows from their first destination to the others, whole rows of a block at
// once: its rows still are in the second-level cache, and long pieces are what memory likes.
void Convolution::Spread(const Operands& operands, int64_t begin, int64_t end, int64_t column,
                         int64_t columns) const {
  if (spread_ == nullptr) return;
  for (Position at(shape_, begin); at.flat < end; at.Next()) {
    const int64_t shown = Shown(at);
    for (int64_t d = 1; d < shown; ++d) {
      std::memcpy(Output(operands, at, d) + column, Output(operands, at, 0) + column,
                  columns * sizeof(float));
    }
  }
}

// inputs [end - begin, taps_]: where each row's taps, or runs of taps, read.
void Convolution::FindInputs(const Operands& operands, int64_t begin, int64_t end,
                             std::vector<const float*>& inputs, std::vector<float>& patches) const {
  inputs.resize((end - begin) * taps_);
  const float** to = inputs.data();
  if (run_ > 1) return FindRunInputs(operands, begin, end, to, patches);
  for (int64_t flat = begin; flat < end;) {  // what is of one image at once
    const Position at(shape_, flat);
    const int64_t rows = std::min(end - flat, shape_.computed - at.computed);
    variant_.find({table_ + at.computed * taps_, rows * taps_, operands.in.at(at.image, 0),
                   operands.in.row, zeros_.data(), to});
    to += rows * taps_;
    flat += rows;
  }
}

// The same for runs of taps; those that do not lie one after the other are copied.
void Convolution::FindRunInputs(const Operands& operands, int64_t begin, int64_t end,
                                const float** to, std::vector<float>& patches) const {
  float* patch = Scratch(patches, (end - begin) * taps_ * channels_);
  for (Position at(shape_, begin); at.flat < end; at.Next()) {
    const float* image = operands.in.at(at.image, 0);
    const int32_t* reads = table_ + at.computed * shape_.taps;
    const int32_t* runs = runs_.data() + at.computed * taps_;
    for (int64_t t = 0; t < taps_; ++t) {
      if (runs[t] == kScattered) {
        CopyTaps(reads + t * run_, run_, shape_.channels, image, operands.in.row, patch);
        *to++ = patch;
        patch += channels_;
      } else {
        *to++ = runs[t] < 0 ? zeros_.data() : image + runs[t] * operands.in.row;
      }
    }
  }
}

// Writes rows `stride` floats apart.
void Convolution::RunTile(TileArgs& tile, int count, int64_t width, float* to,
                          int64_t stride) const {
  float* out[kMaxTileRows];
  for (int r = 0; r < count; ++r) out[r] = to + r * stride;
  tile.out = out;
  variant_.tile(count, static_cast<int>(width / variant_.lanes))(tile);
}

// Writes to the first destination; what nobody shows to a buffer.
void Convolution::RunTile(const Operands& operands, TileArgs& tile, int64_t row, int count,
                          int64_t column, int64_t width) const {
  float buffer[kMaxTileColumns];
  float* out[kMaxTileRows];
  Position at(shape_, row);
  for (int r = 0; r < count; ++r, at.Next()) {
    out[r] = Shown(at) > 0 ? Output(operands, at, 0) + column : buffer;
  }
  tile.out = out;
  tile.columns = std::min(width, shape_.filters - column);
  variant_.tile(count, static_cast<int>(width / variant_.lanes))(tile);
}

int64_t Convolution::Shown(const Position& at) const {
  if (spread_ == nullptr) return 1;
  return destinations_.start[at.computed + 1] - destinations_.start[at.computed];
}

float* Convolution::Output(const Operands& operands, const Position& at, int64_t index) const {
  const int64_t row = spread_ == nullptr
                          ? at.computed
                          : destinations_.row[destinations_.start[at.computed] + index];
  return operands.out.at(at.image, row);
}

}  // namespace espace
