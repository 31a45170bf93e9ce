#include "core/cpu/fused_graph.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

namespace espace {
namespace {

using Kind = Program::Kind;
using Place = Program::Place;

// Images that a thread takes through the whole program at once. More of them share what is read of
// the filters, as long as their maps stay in the second-level cache.
constexpr int64_t kMostImages = 4;
constexpr int64_t kCacheFloats = 1 << 18;
// Pieces of a step for each thread: enough for one that comes late not to hold up the others.
constexpr int64_t kPiecesPerThread = 4;
// A pooling or a sum does one operation for each number that it loads.
constexpr double kLoadCost = 8;
// An activation that is no bound takes as long as so many.
constexpr double kActivationCost = 64;
// Floats that a sum or product of joined rows takes at once.
constexpr int64_t kLongRow = 2048;
// Rows that windows write before their activation.
constexpr int64_t kCurvedRows = 64;

// Looks at what another thread has yet to do, some microseconds, before this one makes room for
// others: on a busy machine they may be what it waits for.
constexpr int kSpins = 512;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

bool IsWindowed(Kind kind) {
  return kind == Kind::kMax || kind == Kind::kAverage || kind == Kind::kDepthwise;
}

Windows::Kind WindowsKind(Kind kind) {
  return kind == Kind::kMax       ? Windows::Kind::kMax
         : kind == Kind::kAverage ? Windows::Kind::kAverage
                                  : Windows::Kind::kDepthwise;
}

int64_t Nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Counts one when it goes, also when an exception takes it.
class Counted {
 public:
  explicit Counted(std::atomic<int64_t>& count) : count_(count) {}
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { count_.fetch_add(1, std::memory_order_acq_rel); }

 private:
  std::atomic<int64_t>& count_;
};

}  // namespace

// One call. First every thread takes images of its own through all steps, a group at a time. Images
// that are too few for one each go through the steps together: the pieces of each step are divided
// among the threads, and none begins the next step before all are done with this one.
class FusedGraph::Call {
 public:
  Call(const FusedGraph& graph, int64_t batch, const std::vector<const float*>& inputs,
       const std::vector<const float*>& weights, const Packed& packed,
       const std::vector<float*>& outputs, int threads, bool timed)
      : graph_(graph),
        program_(graph.program_),
        batch_(batch),
        inputs_(inputs),
        weights_(weights),
        packed_(packed),
        outputs_(outputs),
        threads_(std::max(threads, 1)),
        alone_(batch >= 2 * threads_ ? batch : batch / threads_ * threads_),
        images_(ImagesAtOnce()),
        groups_(CeilDiv(alone_, images_)),
        scratch_size_(program_.scratch * (std::min(groups_, threads_) * images_ + batch - alone_)),
        scratch_(graph.TakeScratch(scratch_size_)),
        next_(alone_ < batch ? program_.steps.size() : 0),
        done_(next_.size()),
        nanoseconds_(timed ? program_.steps.size() : 0),
        ends_(timed ? next_.size() : 0) {}

  ~Call() { graph_.ReturnScratch(scratch_size_, std::move(scratch_)); }

  void Run(const ParallelFor& parallel_for) {
    parallel_for(threads_, [this](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        Alone();
        Together();
      }
    });
  }

  void Times(int64_t* nanoseconds) const {
    for (size_t s = 0; s < nanoseconds_.size(); ++s) {
      nanoseconds[s] = nanoseconds_[s] / threads_;
      if (!ends_.empty()) nanoseconds[s] += ends_[s] - (s == 0 ? start_ : ends_[s - 1]).load();
    }
  }

 private:
  // The images that one thread, or all of them together, have in scratch memory.
  struct Images {
    int64_t first, count;
    float* scratch;
  };

  int64_t ImagesAtOnce() const {
    const int64_t fit = kCacheFloats / std::max(program_.scratch, int64_t{1});
    return std::clamp(std::min(fit, alone_ / (2 * threads_)), int64_t{1}, kMostImages);
  }

  // Groups of images that no other thread has, until there are none; each thread that takes one has
  // memory of its own.
  void Alone() {
    int64_t group = next_group_.fetch_add(1);
    if (group >= groups_) return;
    float* scratch = scratch_.get() + next_thread_.fetch_add(1) * images_ * program_.scratch;
    for (; group < groups_; group = next_group_.fetch_add(1)) {
      const int64_t first = alone_ * group / groups_, next = alone_ * (group + 1) / groups_;
      for (size_t s = 0; s < program_.steps.size(); ++s) {
        const int64_t start = Now();
        Piece(s, {first, next - first, scratch}, 0, 1);
        if (timed()) nanoseconds_[s].fetch_add(Now() - start);
      }
    }
  }

  // Nothing here waits for a thread that has yet to begin: whoever runs takes all the pieces that
  // nobody has, and waits for those only that another one is working on. So it does not matter how
  // many of the threads there are, nor in which order they come. A piece without memory counts as
  // done, since others may be waiting for it; its exception leaves the rest to them.
  void Together() {
    const int64_t count = batch_ - alone_;
    const Images images{alone_, count, scratch_.get() + scratch_size_ - count * program_.scratch};
    int64_t never = 0;
    start_.compare_exchange_strong(never, Now());
    for (size_t s = 0; s < next_.size(); ++s) {
      const int64_t pieces = Pieces(s);
      int64_t piece;
      while ((piece = next_[s].fetch_add(1)) < pieces) {
        const Counted done(done_[s]);
        Piece(s, images, piece, pieces);
        if (timed()) ends_[s] = Now();  // before it is done: the next step ends later
      }
      for (int spins = 0; done_[s].load(std::memory_order_acquire) < pieces; ++spins) {
        spins < kSpins ? Pause() : std::this_thread::yield();
      }
    }
  }

  bool timed() const { return !nanoseconds_.empty(); }
  int64_t Now() const { return timed() ? Nanoseconds() : 0; }

  int64_t Pieces(size_t s) const {
    const double worth =
        static_cast<double>(batch_ - alone_) * graph_.steps_[s].cost / graph_.piece_cost_;
    return static_cast<int64_t>(
        std::clamp(worth, 1.0, static_cast<double>(kPiecesPerThread * threads_)));
  }

  void Piece(size_t s, const Images& images, int64_t piece, int64_t pieces) const {
    const Program::Step& step = program_.steps[s];
    const int64_t rows = images.count * program_.Computed(step);
    switch (step.kind) {
      case Kind::kConvolve: {
        // Panels are divided before rows are: a panel is read once per block of rows.
        const int64_t panels = graph_.steps_[s].convolution->panels().count();
        const int64_t groups = std::min(panels, pieces), blocks = pieces / groups;
        if (piece >= groups * blocks) return;
        const int64_t group = piece % groups, block = piece / groups;
        return Convolve(s, images, rows * block / blocks, rows * (block + 1) / blocks,
                        panels * group / groups, panels * (group + 1) / groups);
      }
      default:
        return Combine(s, images, rows * piece / pieces, rows * (piece + 1) / pieces);
    }
  }

  void Convolve(size_t s, const Images& images, int64_t begin, int64_t end, int64_t first,
                int64_t last) const {
    const Program::Step& step = program_.steps[s];
    const Convolution& convolution = *graph_.steps_[s].convolution;
    const Bounds bounds(step.activation);
    const Convolution::Operands operands{Read(step.ins[0], images), Write(step.out, images),
                                         packed_.panels[s].data(),  packed_.biases[s].data(),
                                         bounds.low,                bounds.high};
    const int64_t blocks = CeilDiv(end - begin, convolution.block_rows());
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = begin + (end - begin) * i / blocks;
      const int64_t next = begin + (end - begin) * (i + 1) / blocks;
      convolution.Compute(operands, row, next, first, last);
      const Panels& panels = convolution.panels();
      const int64_t columns = program_.tensors[step.out].channels;
      Activate(s, operands.out, row, next, panels.begin(first),
               std::min(panels.begin(last), columns));
    }
  }

  // The activation that is no bound, of what has just been written of rows [begin, end), columns
  // [left, right): it still is in the second-level cache.
  void Activate(size_t s, const View<float>& out, int64_t begin, int64_t end, int64_t left,
                int64_t right) const {
    const Program::Step& step = program_.steps[s];
    if (IsBound(step.activation)) return;
    const ConvShape shape = program_.Shape(step);
    const auto activate = PointwiseOf(graph_.variant_).activate;
    const float* slopes = step.slopes < 0 ? nullptr : weights_[step.slopes] + left;
    const int64_t columns = right - left;
    // Rows without a gap are one.
    const bool joined = step.spread < 0 && slopes == nullptr && columns == out.row;
    if (joined) {
      for (int64_t row = begin; row < end;) {
        const Position at(shape, row);
        const int64_t rows = std::min(end - row, shape.computed - at.computed);
        activate(step.activation, nullptr, rows * columns, out.at(at.image, at.computed));
        row += rows;
      }
      return;
    }
    for (Position at(shape, begin); at.flat < end; at.Next()) {
      if (step.spread < 0) {
        activate(step.activation, slopes, columns, out.at(at.image, at.computed) + left);
      } else {
        const Destinations& shown = *graph_.steps_[s].destinations;
        for (int32_t d = shown.start[at.computed]; d < shown.start[at.computed + 1]; ++d) {
          activate(step.activation, slopes, columns, out.at(at.image, shown.row[d]) + left);
        }
      }
    }
  }

  // Steps whose channels do not mix, rows [begin, end) of the flattened [images, computed].
  void Combine(size_t s, const Images& images, int64_t begin, int64_t end) const {
    const Program::Step& step = program_.steps[s];
    const bool by_row = step.kind == Kind::kSum || step.kind == Kind::kProduct;
    if (by_row && Joined(step, images, begin, end)) return;
    if (graph_.steps_[s].windows != nullptr) {
      const Bounds bounds(step.activation);
      const View<float> out = Write(step.out, images);
      // Few enough rows to be in the cache when their activation comes.
      const int64_t blocks = IsBound(step.activation) ? 1 : CeilDiv(end - begin, kCurvedRows);
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t row = begin + (end - begin) * i / blocks;
        const int64_t next = begin + (end - begin) * (i + 1) / blocks;
        graph_.steps_[s].windows->Compute(
            {Read(step.ins[0], images), out, step.filter < 0 ? nullptr : Given(step.filter),
             step.bias < 0 ? nullptr : Given(step.bias), bounds.low, bounds.high},
            row, next);
        Activate(s, out, row, next, 0, program_.tensors[step.out].channels);
      }
      return;
    }
    const ConvShape shape = program_.Shape(step);
    const View<float> out = Write(step.out, images);
    const Destinations& destinations = *graph_.steps_[s].destinations;
    const std::vector<float>& blended = graph_.steps_[s].factors;
    thread_local std::vector<const float*> rows, factors;
    std::vector<View<const float>> ins;
    for (int64_t in : step.ins) {
      ins.push_back(Read(in, images));
      if (program_.tensors[in].rows == 1) ins.back().row = 0;
    }
    const int32_t* table = step.gathers() ? program_.Values(step.table) : nullptr;
    for (Position at(shape, begin); at.flat < end; at.Next()) {
      rows.clear();
      factors.clear();
      if (table == nullptr) {
        for (const auto& in : ins) rows.push_back(in.at(at.image, at.computed));
        factors.assign(rows.size(), Given(step.filter));
      }
      for (int64_t t = 0; table != nullptr && t < shape.taps; ++t) {
        const int32_t read = table[at.computed * shape.taps + t];
        if (read < 0) continue;
        rows.push_back(ins[0].at(at.image, read));
        if (step.kind == Kind::kBlend) factors.push_back(&blended[at.computed * shape.taps + t]);
        if (step.filter >= 0) factors.push_back(Given(step.filter) + t * shape.channels);
      }
      Show(step, shape, destinations, rows, factors, at, out);
    }
  }

  // A sum or product of whole maps whose rows follow each other without a gap, as long rows: what is
  // the same for all rows is written several times side by side. Returns whether it is one.
  bool Joined(const Program::Step& step, const Images& images, int64_t begin, int64_t end) const {
    const Program::Tensor& to = program_.tensors[step.out];
    const int64_t period = to.channels;
    bool joined = step.slopes < 0 && to.stride == period;
    for (int64_t in : step.ins) {
      const Program::Tensor& each = program_.tensors[in];
      joined &= each.rows == 1 || (each.stride == period && each.rows == to.rows);
    }
    if (!joined) return false;
    const int64_t most = std::min(end - begin, to.rows) * period;
    const int64_t longest = std::clamp(kLongRow / period * period, period, std::max(most, period));
    const View<float> out = Write(step.out, images);
    for (int64_t row = begin; row < end;) {
      const int64_t image = row / to.rows, first = row % to.rows * period;
      const int64_t floats = std::min(end - row, to.rows - row % to.rows) * period;
      const LongRows long_rows = Repeated(step, images, image, longest);
      for (int64_t at = first; at < first + floats; at += longest) {
        CombineLong(step, long_rows, at, std::min(longest, first + floats - at),
                    out.at(image, 0) + at);
      }
      row += floats / period;
    }
    return true;
  }

  // What a sum or product of joined rows reads, and how far apart: 0 for what is there once.
  struct LongRows {
    std::vector<const float*> ins;
    std::vector<int64_t> steps;
    const float *factor, *bias;  // bias: or null
  };

  LongRows Repeated(const Program::Step& step, const Images& images, int64_t image,
                    int64_t longest) const {
    thread_local std::vector<float> memory;
    const int64_t period = program_.tensors[step.out].channels;
    const bool single = program_.tensors[step.out].rows == 1;
    float* next = Scratch(memory, (static_cast<int64_t>(step.ins.size()) + 2) * longest);
    const auto repeat = [&](const float* from) {
      float* to = next;
      for (int64_t at = 0; at < longest; at += period) std::copy_n(from, period, to + at);
      next += longest;
      return to;
    };
    LongRows rows{{}, {}, graph_.ones_.data(), nullptr};
    for (int64_t in : step.ins) {
      const float* from = Read(in, images).at(image, 0);
      const bool once = program_.tensors[in].rows == 1 && !single;
      rows.ins.push_back(once ? repeat(from) : from);
      rows.steps.push_back(once ? 0 : 1);
    }
    if (step.filter >= 0) rows.factor = repeat(weights_[step.filter]);
    if (step.bias >= 0) rows.bias = repeat(weights_[step.bias]);
    return rows;
  }

  void CombineLong(const Program::Step& step, const LongRows& from, int64_t at, int64_t count,
                   float* out) const {
    thread_local std::vector<const float*> rows, factors;
    rows.clear();
    for (size_t i = 0; i < from.ins.size(); ++i) rows.push_back(from.ins[i] + from.steps[i] * at);
    const Reads reads{rows.data(), static_cast<int64_t>(rows.size())};
    const Bounds bounds(step.activation);
    const PointwiseKernels& pointwise = PointwiseOf(graph_.variant_);
    if (step.kind == Kind::kProduct) {
      pointwise.multiply(reads, bounds.low, bounds.high, count, out);
    } else {
      factors.assign(rows.size(), from.factor);
      ChannelsOf(graph_.variant_)
          .weigh(reads, factors.data(), from.bias, bounds.low, bounds.high, count, out);
    }
    if (!IsBound(step.activation)) pointwise.activate(step.activation, nullptr, count, out);
  }

  // Computes one row and copies it to all rows that show it.
  void Show(const Program::Step& step, const ConvShape& shape, const Destinations& destinations,
            const std::vector<const float*>& rows, const std::vector<const float*>& factors,
            const Position& at, const View<float>& out) const {
    const int32_t own = static_cast<int32_t>(at.computed);
    const int32_t *first = &own, *last = first + 1;
    if (step.spreads()) {
      first = destinations.row.data() + destinations.start[at.computed];
      last = destinations.row.data() + destinations.start[at.computed + 1];
      if (first == last) return;
    }
    float* to = out.at(at.image, *first);
    Compute(step, shape.filters, rows, factors, to);
    if (!IsBound(step.activation)) {
      const float* slopes = step.slopes < 0 ? nullptr : weights_[step.slopes];
      PointwiseOf(graph_.variant_).activate(step.activation, slopes, shape.filters, to);
    }
    for (++first; first < last; ++first) {
      std::memcpy(out.at(at.image, *first), to, shape.filters * sizeof(float));
    }
  }

  void Compute(const Program::Step& step, int64_t channels, const std::vector<const float*>& rows,
               const std::vector<const float*>& factors, float* out) const {
    const ChannelKernels& kernels = ChannelsOf(graph_.variant_);
    const PointwiseKernels& pointwise = PointwiseOf(graph_.variant_);
    const Reads reads{rows.data(), static_cast<int64_t>(rows.size())};
    const Bounds bounds(step.activation);
    switch (step.kind) {
      case Kind::kDepthwise:
      case Kind::kSum: {
        const float* bias = step.bias < 0 ? nullptr : Given(step.bias);
        return kernels.weigh(reads, factors.data(), bias, bounds.low, bounds.high, channels, out);
      }
      case Kind::kProduct:
        return pointwise.multiply(reads, bounds.low, bounds.high, channels, out);
      case Kind::kBlend:
        return pointwise.blend(reads, factors.data(), bounds.low, bounds.high, channels, out);
      case Kind::kSoftmax:
        return pointwise.softmax(rows[0], channels, out);
      case Kind::kShuffle: {
        const int32_t* from = program_.Values(step.table);
        for (int64_t n = 0; n < channels; ++n) out[n] = rows[0][from[n]];
        return;
      }
      default:
        if (rows.empty()) {
          std::fill_n(out, channels, 0.0f);
        } else {
          (step.kind == Kind::kMax ? kernels.largest : kernels.mean)(reads, channels, out);
        }
    }
  }


  // A weight as it came; ones where there is none.
  const float* Given(int64_t weight) const {
    return weight < 0 ? graph_.ones_.data() : weights_[weight];
  }

  View<const float> Read(int64_t tensor, const Images& images) const {
    const Program::Tensor& t = program_.tensors[tensor];
    if (t.place != Place::kInput) {
      const View<float> view = Write(tensor, images);
      return {view.data, view.image, view.row};
    }
    const int64_t size = t.rows * t.stride;
    return {inputs_[t.index] + images.first * size + t.start, size, t.stride};
  }

  View<float> Write(int64_t tensor, const Images& images) const {
    const Program::Tensor& t = program_.tensors[tensor];
    if (t.place == Place::kScratch) return {images.scratch + t.start, program_.scratch, t.stride};
    const int64_t size = t.rows * t.stride;
    return {outputs_[t.index] + images.first * size + t.start, size, t.stride};
  }

  const FusedGraph& graph_;
  const Program& program_;
  const int64_t batch_;
  const std::vector<const float*>& inputs_;
  const std::vector<const float*>& weights_;
  const Packed& packed_;
  const std::vector<float*>& outputs_;
  const int64_t threads_;
  const int64_t alone_;   // the first images, each of one thread
  const int64_t images_;  // of a group of them
  const int64_t groups_;
  const int64_t scratch_size_;
  AlignedFloats scratch_;
  std::atomic<int64_t> next_group_{0}, next_thread_{0};
  std::vector<std::atomic<int64_t>> next_, done_;  // pieces of the other images, by step
  std::vector<std::atomic<int64_t>> nanoseconds_;  // of threads alone, by step
  std::vector<std::atomic<int64_t>> ends_;         // of steps together
  std::atomic<int64_t> start_{0};                  // of the first of them
};

FusedGraph::FusedGraph(const Variant& variant, Program program, double piece_cost)
    : variant_(variant),
      program_(std::move(program)),
      piece_cost_(piece_cost),
      is_packed_(program_.weights.size()) {
  for (const Program::Step& step : program_.steps) {
    const ConvShape shape = program_.Shape(step);
    const int32_t* table = program_.Values(step.table);
    const int32_t* spread = step.spreads() ? program_.Values(step.spread) : nullptr;
    const double results =
        static_cast<double>(shape.computed) * static_cast<double>(shape.filters);
    Prepared prepared{nullptr, nullptr, nullptr, results * static_cast<double>(shape.taps), {}};
    if (step.kind == Kind::kBlend) {
      prepared.factors.resize(shape.computed * shape.taps);
      std::memcpy(prepared.factors.data(), program_.Values(step.spread),
                  prepared.factors.size() * sizeof(float));
    }
    if (step.kind == Kind::kConvolve) {
      const bool joined = program_.tensors[step.ins[0]].stride == shape.channels;
      prepared.convolution =
          std::make_unique<Convolution>(variant, shape, table, spread, joined);
      if (prepared.convolution->has_runs()) prepared.convolution->FindRuns(0, shape.computed);
      prepared.cost *= static_cast<double>(shape.channels);
      is_packed_[step.filter] = true;
      if (step.bias >= 0) is_packed_[step.bias] = true;
    } else {
      if (IsWindowed(step.kind) && shape.taps <= Windows::kMostTaps) {
        prepared.windows = std::make_unique<Windows>(variant, WindowsKind(step.kind), shape, table,
                                                     spread);
      }
      prepared.cost *= kLoadCost * static_cast<double>(step.ins.size());
      const int64_t ones = std::max(kLongRow, shape.channels);
      ones_.resize(std::max(ones_.size(), static_cast<size_t>(ones)), 1.0f);
    }
    const bool curved = !IsBound(step.activation);
    if (curved) prepared.cost += kActivationCost * results;
    if (step.kind == Kind::kSoftmax) prepared.cost += kActivationCost * results;
    if ((prepared.convolution == nullptr && prepared.windows == nullptr) || curved) {
      prepared.destinations = std::make_unique<Destinations>(shape, spread);
    }
    cost_ += prepared.cost;
    steps_.push_back(std::move(prepared));
  }
}

FusedGraph::Packed FusedGraph::Pack(const std::vector<const float*>& weights) const {
  Packed packed;
  for (size_t s = 0; s < steps_.size(); ++s) {
    packed.filters.emplace_back();
    packed.panels.emplace_back();
    packed.biases.emplace_back();
    if (steps_[s].convolution == nullptr) continue;
    const Program::Step& step = program_.steps[s];
    const Convolution& convolution = *steps_[s].convolution;
    const Panels& panels = convolution.panels();
    const int64_t depth = convolution.depth(), columns = panels.begin(panels.count());
    packed.filters[s] = AlignedFloats(depth * columns);
    for (int64_t panel = 0; panel < panels.count(); ++panel) {
      float* to = packed.filters[s].get() + depth * panels.begin(panel);
      convolution.Pack(weights[step.filter], panel, 0, depth, to);
      packed.panels[s].push_back({to, panels.width(panel)});
    }
    packed.biases[s].assign(columns, 0.0f);
    if (step.bias < 0) continue;
    std::copy_n(weights[step.bias], program_.weights[step.bias], packed.biases[s].begin());
  }
  return packed;
}

void FusedGraph::Run(int64_t batch, const std::vector<const float*>& inputs,
                     const std::vector<const float*>& weights, const Packed& packed,
                     const std::vector<float*>& outputs, int threads,
                     const ParallelFor& parallel_for, int64_t* nanoseconds) const {
  if (batch == 0) return;
  Call call(*this, batch, inputs, weights, packed, outputs, threads, nanoseconds != nullptr);
  call.Run(parallel_for);
  if (nanoseconds != nullptr) call.Times(nanoseconds);
}

AlignedFloats FusedGraph::TakeScratch(int64_t size) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!scratch_.empty() && scratch_.back().first >= size) {
      AlignedFloats memory = std::move(scratch_.back().second);
      scratch_.pop_back();
      return memory;
    }
  }
  return AlignedFloats(size);
}

// Of one size only: what a call of another size left is given up.
void FusedGraph::ReturnScratch(int64_t size, AlignedFloats memory) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!scratch_.empty() && scratch_.back().first != size) scratch_.clear();
  scratch_.emplace_back(size, std::move(memory));
}

}  // namespace espace
