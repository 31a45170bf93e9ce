#include "core/cpu/fused_graph.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

#include "core/cpu/step_pieces.h"

namespace espace {
namespace {

// Images that a thread takes through the whole program at once. More of them share what is read of
// the filters, as long as their maps stay in the second-level cache.
constexpr int64_t kMostImages = 4;
constexpr int64_t kCacheFloats = 1 << 18;

// Looks at what another thread has yet to do, some microseconds, before this one makes room for
// others: on a busy machine they may be what it waits for.
constexpr int kSpins = 512;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int64_t Nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// In a cache line of its own: cores that count other things do not wait for each other.
struct alignas(kLineBytes) Count : std::atomic<int64_t> {
  Count() : std::atomic<int64_t>(0) {}
};

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
// that are too few for one each, or that are nothing but rows which share all filters, go through
// the steps together: the pieces of each step are divided among the threads, and none begins a
// step before all are done with those that it needs.
class FusedGraph::Call {
 public:
  Call(const FusedGraph& graph, int64_t batch, const std::vector<const float*>& inputs,
       const std::vector<const float*>& weights, const Packed& packed,
       const std::vector<float*>& outputs, int threads, bool timed)
      : graph_(graph),
        program_(graph.program()),
        pieces_(graph.prepared_, inputs, weights, packed, outputs),
        batch_(batch),
        threads_(std::max(threads, 1)),
        alone_(ImagesAlone()),
        images_(ImagesAtOnce()),
        groups_(CeilDiv(alone_, images_)),
        scratch_size_(program_.scratch * (std::min(groups_, threads_) * images_ + batch - alone_)),
        scratch_(graph.TakeScratch(scratch_size_)),
        done_(alone_ < batch ? program_.steps.size() : 0),
        next_(done_.size() * threads_),
        nanoseconds_(timed ? program_.steps.size() : 0),
        ends_(timed ? done_.size() : 0) {}

  ~Call() { graph_.ReturnScratch(scratch_size_, std::move(scratch_)); }

  void Run(const ParallelFor& parallel_for) {
    parallel_for(threads_, [this](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        Alone();
        Together(thread);
      }
    });
  }

  void Times(int64_t* nanoseconds) const {
    int64_t latest = start_;
    for (size_t s = 0; s < nanoseconds_.size(); ++s) {
      nanoseconds[s] = nanoseconds_[s] / threads_;
      if (ends_.empty()) continue;
      const int64_t end = std::max(ends_[s].load(), latest);
      nanoseconds[s] += end - std::exchange(latest, end);
    }
  }

 private:
  int64_t ImagesAlone() const {
    if (graph_.prepared_.is_of_rows) return 0;
    return batch_ >= 2 * threads_ ? batch_ : batch_ / threads_ * threads_;
  }

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
        pieces_.Compute(s, {first, next - first, scratch}, Division(1, 1), 0, 0);
        if (timed()) nanoseconds_[s].fetch_add(Now() - start);
      }
    }
  }

  // Nothing here waits for a thread that has yet to begin: whoever runs takes all the pieces that
  // nobody has, and waits for those only that another one is working on. So it does not matter how
  // many of the threads there are, nor in which order they come. A piece without memory counts as
  // done, since others may be waiting for it; its exception leaves the rest to them.
  void Together(int64_t thread) {
    const int64_t count = batch_ - alone_;
    const StepPieces::Images images{alone_, count,
                                    scratch_.get() + scratch_size_ - count * program_.scratch};
    int64_t never = 0;
    start_.compare_exchange_strong(never, Now());
    int64_t ended = 0;  // steps before it, for all that this thread knows
    const auto await = [&](int64_t last) {
      for (; ended <= last; ++ended) {
        const int64_t pieces = Divided(ended).count();
        for (int spins = 0; done_[ended].load(std::memory_order_acquire) < pieces; ++spins) {
          spins < kSpins ? Pause() : std::this_thread::yield();
        }
      }
    };
    const int64_t steps = static_cast<int64_t>(done_.size());
    for (int64_t s = 0; s < steps; ++s) {
      const Division division = Divided(s);
      if (done_[s].load() == division.count()) continue;
      await(graph_.prepared_.steps[s].after);
      for (int64_t i = 0; i < division.parts(); ++i) {
        const int64_t part = (thread + i) % division.parts();
        int64_t piece;
        while ((piece = next_[s * threads_ + part].fetch_add(1)) < division.pieces()) {
          const Counted done(done_[s]);
          pieces_.Compute(s, images, division, part, piece);
          if (timed()) ends_[s] = Now();
        }
      }
    }
    await(steps - 1);
  }

  bool timed() const { return !nanoseconds_.empty(); }
  int64_t Now() const { return timed() ? Nanoseconds() : 0; }

  Division Divided(size_t s) const {
    const PreparedStep& step = graph_.prepared_.steps[s];
    const double worth = static_cast<double>(batch_ - alone_) * step.cost / graph_.piece_cost_;
    // Memory gives long pieces of a dense layer's filter faster than short ones.
    const int64_t pieces = step.dense != nullptr ? 1 : Division::kMostPieces;
    const double most = static_cast<double>(threads_ << pieces);
    return Division(static_cast<int64_t>(std::min(worth, most)), threads_, pieces);
  }

  const FusedGraph& graph_;
  const Program& program_;
  const StepPieces pieces_;
  const int64_t batch_;
  const int64_t threads_;
  const int64_t alone_;   // the first images, each of one thread
  const int64_t images_;  // of a group of them
  const int64_t groups_;
  const int64_t scratch_size_;
  AlignedFloats scratch_;
  std::atomic<int64_t> next_group_{0}, next_thread_{0};
  std::vector<Count> done_;                        // pieces of the other images, by step
  std::vector<Count> next_;                        // by step and part
  std::vector<std::atomic<int64_t>> nanoseconds_;  // of threads alone, by step
  std::vector<std::atomic<int64_t>> ends_;         // of steps together
  std::atomic<int64_t> start_{0};                  // of the first of them
};

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
