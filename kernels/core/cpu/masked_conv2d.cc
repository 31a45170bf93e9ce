#include "core/cpu/masked_conv2d.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "core/cpu/blocks.h"
#include "core/cpu/convolution.h"

namespace espace {
namespace {

// Pieces of work per thread: threads take the next piece when they are done with one, so that one
// that came late or was held up does not hold up the others.
constexpr int64_t kPiecesPerThread = 8;
// Rows of the filter (or of the table) that are prepared as one piece.
constexpr int64_t kPrepareRows = 256;
// With fewer tiles of rows than this the filter is read where it lies: packing it costs more.
constexpr int64_t kPackTiles = 4;

class Forward {
 public:
  Forward(const Variant& variant, const ForwardArgs& args)
      : variant_(variant),
        args_(args),
        total_(args.shape.batch * args.shape.computed),
        convolution_(variant, args.shape, args.table, args.spread, true),
        bias_(convolution_.panels().begin(convolution_.panels().count()), 0.0f) {
    if (args.bias != nullptr) std::copy_n(args.bias, args.shape.filters, bias_.begin());
  }

  // One fork and join for all: every thread first helps to prepare, then takes pieces.
  void Run(int threads, const ParallelFor& parallel_for) {
    if (total_ == 0 || convolution_.panels().count() == 0) return;
    Divide(std::max(threads, 1));
    parallel_for(std::max(threads, 1), [this](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) Work();
    });
  }

 private:
  // Panels are divided among the pieces before rows are: a panel is read once per block of rows.
  // Each packed panel's weights lie one after the other; with few rows only a panel that needs
  // zeros to fill it is packed.
  void Divide(int64_t threads) {
    const Panels& panels = convolution_.panels();
    const int64_t wanted = kPiecesPerThread * threads, most = convolution_.block_rows();
    groups_ = std::min(panels.count(), CeilDiv(wanted, CeilDiv(total_, most)));
    const int rows = variant_.rows(static_cast<int>(panels.widest()));
    const int64_t tiles = CeilDiv(total_, rows);
    blocks_ = std::max(CeilDiv(total_, most), std::min(tiles, CeilDiv(wanted, groups_)));

    const int64_t filters = args_.shape.filters, last = panels.count() - 1;
    const bool ragged = panels.begin(last) + panels.width(last) != filters;
    first_packed_ = tiles >= kPackTiles ? 0 : ragged ? last : last + 1;
    const int64_t depth = convolution_.depth(), unpacked = panels.begin(first_packed_);
    packed_ = AlignedFloats(depth * (panels.begin(last + 1) - unpacked));
    for (int64_t panel = 0; panel <= last; ++panel) {
      const int64_t column = panels.begin(panel);
      panels_.push_back(panel < first_packed_
                            ? Panel{args_.filter + column, filters}
                            : Panel{Packed(panel), panels.width(panel)});
    }
    slices_ = CeilDiv(depth, kPrepareRows);
    packs_ = (last + 1 - first_packed_) * slices_;
    preparations_ = packs_;
    if (convolution_.has_runs()) preparations_ += CeilDiv(args_.shape.computed, kPrepareRows);
  }

  float* Packed(int64_t panel) const {
    const Panels& panels = convolution_.panels();
    return packed_.get() +
           convolution_.depth() * (panels.begin(panel) - panels.begin(first_packed_));
  }

  void Work() {
    int64_t i;
    while ((i = next_preparation_.fetch_add(1)) < preparations_) {
      Prepare(i);
      prepared_.fetch_add(1, std::memory_order_release);
    }
    // What is not done yet is being done by a thread that runs.
    while (prepared_.load(std::memory_order_acquire) < preparations_) std::this_thread::yield();
    const ConvShape& shape = args_.shape;
    const Bounds bounds(args_.activation);
    Convolution::Operands operands{
        {args_.rows, shape.rows_in * shape.channels, shape.channels},
        {args_.out, shape.rows_out * shape.filters, shape.filters},
        panels_.data(),
        bias_.data(),
        bounds.low,
        bounds.high};
    operands.stream = shape.batch * shape.rows_out * shape.filters >= Convolution::kStreamFloats &&
                      convolution_.CanStream(operands.out);
    const int64_t count = convolution_.panels().count();
    while ((i = next_piece_.fetch_add(1)) < blocks_ * groups_) {
      const int64_t block = i / groups_, group = i % groups_;
      convolution_.Compute(operands, total_ * block / blocks_, total_ * (block + 1) / blocks_,
                           count * group / groups_, count * (group + 1) / groups_);
    }
  }

  void Prepare(int64_t i) {
    if (i < packs_) {
      const int64_t panel = first_packed_ + i / slices_, begin = i % slices_ * kPrepareRows;
      convolution_.Pack(args_.filter, panel, begin,
                        std::min(begin + kPrepareRows, convolution_.depth()),
                        Packed(panel) + begin * convolution_.panels().width(panel));
    } else {
      const int64_t begin = (i - packs_) * kPrepareRows;
      convolution_.FindRuns(begin, std::min(begin + kPrepareRows, args_.shape.computed));
    }
  }

  const Variant& variant_;
  const ForwardArgs& args_;
  const int64_t total_;
  Convolution convolution_;
  std::vector<float> bias_;
  int64_t groups_ = 0, blocks_ = 0;  // pieces: groups of panels x blocks of rows
  int64_t first_packed_ = 0;         // panel
  AlignedFloats packed_;
  std::vector<Panel> panels_;
  int64_t slices_ = 0, packs_ = 0, preparations_ = 0;
  std::atomic<int64_t> next_preparation_{0}, prepared_{0}, next_piece_{0};
};

}  // namespace

void MaskedConv2D(const Variant& variant, const ForwardArgs& args, int threads,
                  const ParallelFor& parallel_for) {
  Forward(variant, args).Run(threads, parallel_for);
}

}  // namespace espace
