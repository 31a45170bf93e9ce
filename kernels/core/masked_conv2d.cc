#include "masked_conv2d.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#include "blocks.h"

namespace espace {
namespace {

// Rows of a block: its input (rows x channels, shared by overlapping taps) and one panel of the
// filter stay in the second-level cache together while the tiles walk over them.
constexpr int64_t kBlockRows = 256;
// Pieces of work per thread: threads take the next piece when they are done with one, so that one
// that came late or was held up does not hold up the others.
constexpr int64_t kPiecesPerThread = 8;
// Rows of the filter (or of the table) that are prepared as one piece.
constexpr int64_t kPrepareRows = 256;
// With fewer tiles of rows than this the filter is read where it lies: packing it costs more.
constexpr int64_t kPackTiles = 4;
// Pointers to the inputs of a block: what a block may keep of them.
constexpr int64_t kBlockPointers = 1 << 17;

// In place of an input row.
constexpr int32_t kZeros = -1, kScattered = -2;

// Below this many channels a tap is too short a loop.
constexpr int64_t kFewChannels = 16;

// How many taps to take as one. With few channels: those of a kernel's row, which read neighbouring
// input rows almost everywhere; all of them where no such run is found. A few positions are looked
// at, since one alone may lie on the border.
int64_t TapsAtOnce(const ConvShape& shape, const int32_t* table) {
  constexpr int64_t kLooks = 16;
  if (shape.channels >= kFewChannels) return 1;
  int64_t longest = 1;
  for (int64_t look = 0; look < kLooks; ++look) {
    const int32_t* reads = table + shape.computed * (2 * look + 1) / (2 * kLooks) * shape.taps;
    int64_t run = 1;
    while (reads[0] >= 0 && run < shape.taps && reads[run] == reads[0] + run) ++run;
    longest = std::max(longest, run);
  }
  return longest > 1 && shape.taps % longest == 0 ? longest : shape.taps;
}

// Whole cache lines, not initialised.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(int64_t size)
      : data_(static_cast<float*>(::operator new(size * sizeof(float), kAlignment))) {}
  AlignedFloats& operator=(AlignedFloats&& other) {
    std::swap(data_, other.data_);
    return *this;
  }
  ~AlignedFloats() { ::operator delete(data_, kAlignment); }

  float* get() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  float* data_ = nullptr;
};

class Forward {
 public:
  Forward(const Variant& variant, const ForwardArgs& args)
      : variant_(variant),
        args_(args),
        shape_(args.shape),
        total_(shape_.batch * shape_.computed),
        run_(TapsAtOnce(shape_, args.table)),
        taps_(shape_.taps / run_),
        channels_(shape_.channels * run_),
        destinations_(shape_, args.spread),
        panels_(variant, shape_.filters),
        zeros_(channels_, 0.0f),
        bias_(panels_.begin(panels_.count()), 0.0f) {
    if (args.bias != nullptr) std::copy_n(args.bias, shape_.filters, bias_.begin());
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    low_ = args.activation == Activation::kNone ? -kInfinity : 0.0f;
    high_ = args.activation == Activation::kRelu6 ? 6.0f : kInfinity;
  }

  // One fork and join for all: every thread first helps to prepare, then takes pieces.
  void Run(int threads, const ParallelFor& parallel_for) {
    if (total_ == 0 || panels_.count() == 0) return;
    Divide(std::max(threads, 1));
    parallel_for(std::max(threads, 1), [this](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) Work();
    });
  }

 private:
  // Panels are divided among the pieces before rows are: a panel is read once per block of rows.
  // packed_: each panel's weights one after the other, [taps * channels, width], the last panel
  // padded with zeros. With few rows only a panel that needs the zeros is packed.
  void Divide(int64_t threads) {
    const int64_t wanted = kPiecesPerThread * threads;
    const int64_t most = std::clamp(kBlockPointers / taps_, int64_t{1}, kBlockRows);
    groups_ = std::min(panels_.count(), CeilDiv(wanted, CeilDiv(total_, most)));
    const int64_t tiles = CeilDiv(total_, variant_.tile_rows);
    blocks_ = std::max(CeilDiv(total_, most), std::min(tiles, CeilDiv(wanted, groups_)));

    const int64_t last = panels_.count() - 1;
    packs_all_ = tiles >= kPackTiles;
    const bool ragged = panels_.begin(last) + panels_.width(last) != shape_.filters;
    first_packed_ = packs_all_ ? 0 : ragged ? last : last + 1;
    const int64_t columns = panels_.begin(last + 1) - panels_.begin(first_packed_);
    packed_ = AlignedFloats(Depth() * columns);
    slices_ = CeilDiv(Depth(), kPrepareRows);
    if (run_ > 1) runs_.resize(shape_.computed * taps_);
    preparations_ = (last + 1 - first_packed_) * slices_ +
                    (run_ > 1 ? CeilDiv(shape_.computed, kPrepareRows) : 0);
  }

  void Work() {
    int64_t i;
    while ((i = next_preparation_.fetch_add(1)) < preparations_) {
      Prepare(i);
      prepared_.fetch_add(1, std::memory_order_release);
    }
    // What is not done yet is being done by a thread that runs.
    while (prepared_.load(std::memory_order_acquire) < preparations_) std::this_thread::yield();
    while ((i = next_piece_.fetch_add(1)) < blocks_ * groups_) {
      const int64_t block = i / groups_, group = i % groups_;
      Block(total_ * block / blocks_, total_ * (block + 1) / blocks_,
            panels_.count() * group / groups_, panels_.count() * (group + 1) / groups_);
    }
  }

  void Prepare(int64_t i) {
    const int64_t packs = (panels_.count() - first_packed_) * slices_;
    if (i < packs) {
      const int64_t begin = i % slices_ * kPrepareRows;
      Pack(first_packed_ + i / slices_, begin, std::min(begin + kPrepareRows, Depth()));
    } else {
      const int64_t begin = (i - packs) * kPrepareRows;
      FindRuns(begin, std::min(begin + kPrepareRows, shape_.computed));
    }
  }

  int64_t Depth() const { return taps_ * channels_; }

  float* Packed(int64_t panel) const {
    return packed_.get() + Depth() * (panels_.begin(panel) - panels_.begin(first_packed_));
  }

  // Rows [begin, end) of a panel of the filter.
  void Pack(int64_t panel, int64_t begin, int64_t end) const {
    const int64_t column = panels_.begin(panel), width = panels_.width(panel);
    const int64_t columns = std::min(width, shape_.filters - column);
    for (int64_t k = begin; k < end; ++k) {
      float* to = Packed(panel) + k * width;
      std::memcpy(to, args_.filter + k * shape_.filters + column, columns * sizeof(float));
      std::fill(to + columns, to + width, 0.0f);
    }
  }

  // Rows [begin, end) of the flattened [batch, computed], panels [first, last) of the filter.
  void Block(int64_t begin, int64_t end, int64_t first, int64_t last) const {
    thread_local std::vector<const float*> inputs;
    thread_local std::vector<float> patches;
    FindInputs(begin, end, inputs, patches);
    const int64_t tiles = CeilDiv(end - begin, variant_.tile_rows);
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t column = panels_.begin(panel), width = panels_.width(panel);
      TileArgs tile{
          nullptr, taps_, channels_, args_.filter + column, shape_.filters, bias_.data() + column,
          low_,    high_, nullptr};
      if (packs_all_ || column + width > shape_.filters) {
        tile.b = Packed(panel);
        tile.b_stride = width;
      }
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t row = (end - begin) * i / tiles, next = (end - begin) * (i + 1) / tiles;
        tile.a = inputs.data() + row * taps_;
        RunTile(tile, begin + row, static_cast<int>(next - row), column, width);
      }
    }
    const int64_t left = panels_.begin(first);
    Spread(begin, end, left, std::min(panels_.begin(last), shape_.filters) - left);
  }

  // Copies columns of rows from their first destination to the others, whole rows of a block at
  // once: its rows still are in the second-level cache, and long pieces are what memory likes.
  void Spread(int64_t begin, int64_t end, int64_t column, int64_t columns) const {
    if (args_.spread == nullptr) return;
    for (Position at(shape_, begin); at.flat < end; at.Next()) {
      const int64_t shown = Shown(at);
      for (int64_t d = 1; d < shown; ++d) {
        std::memcpy(Output(at, d) + column, Output(at, 0) + column, columns * sizeof(float));
      }
    }
  }

  // Where each run of taps of each computed position reads: kZeros, the first of neighbouring input
  // rows, or kScattered when its rows do not lie one after the other.
  void FindRuns(int64_t begin, int64_t end) {
    for (int64_t i = begin * taps_; i < end * taps_; ++i) {
      const int32_t* reads = args_.table + i * run_;
      bool neighbours = true, zeros = true;
      for (int64_t t = 0; t < run_; ++t) {
        neighbours &= reads[t] == reads[0] + t;
        zeros &= reads[t] < 0;
      }
      runs_[i] = zeros ? kZeros : neighbours && reads[0] >= 0 ? reads[0] : kScattered;
    }
  }

  // inputs [end - begin, taps_]: where each row's taps, or runs of taps, read.
  void FindInputs(int64_t begin, int64_t end, std::vector<const float*>& inputs,
                  std::vector<float>& patches) const {
    inputs.resize((end - begin) * taps_);
    float* patch = run_ == 1 ? nullptr : Scratch(patches, (end - begin) * taps_ * channels_);
    const float** to = inputs.data();
    for (Position at(shape_, begin); at.flat < end; at.Next()) {
      const float* image = args_.rows + at.image * shape_.rows_in * shape_.channels;
      const int32_t* reads = args_.table + at.computed * shape_.taps;
      const int32_t* runs = run_ == 1 ? reads : runs_.data() + at.computed * taps_;
      for (int64_t t = 0; t < taps_; ++t) {
        if (runs[t] == kScattered) {
          CopyTaps(reads + t * run_, run_, shape_.channels, image, patch);
          *to++ = patch;
          patch += channels_;
        } else {
          *to++ = runs[t] < 0 ? zeros_.data() : image + runs[t] * shape_.channels;
        }
      }
    }
  }

  // Writes to the first destination: straight where whole vectors fit, through a buffer otherwise.
  void RunTile(TileArgs& tile, int64_t row, int count, int64_t column, int64_t width) const {
    float buffer[kMaxTileRows * kMaxTileColumns];
    float* out[kMaxTileRows];
    const int64_t columns = std::min(width, shape_.filters - column);
    const Position first(shape_, row);
    Position at = first;
    for (int r = 0; r < count; ++r, at.Next()) {
      const bool direct = columns == width && Shown(at) > 0;
      out[r] = direct ? Output(at, 0) + column : buffer + r * kMaxTileColumns;
    }
    tile.out = out;
    variant_.tile(count, static_cast<int>(width / variant_.lanes))(tile);
    if (columns == width) return;
    at = first;
    for (int r = 0; r < count; ++r, at.Next()) {
      if (Shown(at) > 0) std::memcpy(Output(at, 0) + column, out[r], columns * sizeof(float));
    }
  }

  int64_t Shown(const Position& at) const {
    if (args_.spread == nullptr) return 1;
    return destinations_.start[at.computed + 1] - destinations_.start[at.computed];
  }

  float* Output(const Position& at, int64_t index) const {
    const int64_t row = args_.spread == nullptr
                            ? at.computed
                            : destinations_.row[destinations_.start[at.computed] + index];
    return args_.out + (at.image * shape_.rows_out + row) * shape_.filters;
  }

  const Variant& variant_;
  const ForwardArgs& args_;
  const ConvShape& shape_;
  const int64_t total_;
  const int64_t run_;              // neighbouring taps that the product takes as one
  const int64_t taps_, channels_;  // of the product
  const Destinations destinations_;
  const Panels panels_;
  const std::vector<float> zeros_;
  std::vector<float> bias_;
  std::vector<int32_t> runs_;
  float low_, high_;
  int64_t groups_ = 0, blocks_ = 0;  // pieces: groups of panels x blocks of rows
  bool packs_all_ = false;
  int64_t first_packed_ = 0;  // panel
  AlignedFloats packed_;
  int64_t slices_ = 0, preparations_ = 0;
  std::atomic<int64_t> next_preparation_{0}, prepared_{0}, next_piece_{0};
};

}  // namespace

void MaskedConv2D(const Variant& variant, const ForwardArgs& args, int threads,
                  const ParallelFor& parallel_for) {
  Forward(variant, args).Run(threads, parallel_for);
}

}  // namespace espace
