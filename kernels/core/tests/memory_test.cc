// Memory that cannot be had: of every call, one allocation after the other fails, on whichever
// thread. The call must throw bad_alloc or give the right numbers, and the next one must give them;
// nothing may hang (SIGALRM ends what does), leak or end the process.
//   memory_test [COUNT] [SEED]: programs with seeds from SEED on; "short" or "threads": a few.
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "core/cpu/fused_graph.h"
#include "core/cpu/masked_conv2d.h"
#include "core/tests/program_testing.h"
#include "core/tests/reference.h"
#include "core/tests/testing.h"
#include "core/throwing.h"

namespace {

// Allocations of threads that are armed until one fails.
std::atomic<int64_t> left{0};
thread_local bool armed = false;

void* Allocate(std::size_t size, std::size_t alignment) {
  if (armed && left.fetch_sub(1) == 0) throw std::bad_alloc();
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, size == 0 ? 1 : size) != 0) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) {
  return Allocate(size, alignof(std::max_align_t));
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  return Allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace espace {
namespace {

constexpr unsigned kSecondsOfAProgram = 900;

// While it lives, allocations of this thread count, or do not.
class Armed {
 public:
  explicit Armed(bool now) : before_(armed) { armed = now; }
  ~Armed() { armed = before_; }

 private:
  const bool before_;
};

// Threads whose own memory always is there, but not that of what they run.
ParallelFor ArmedThreads(int threads) {
  return [threads](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    const Armed mine(false);
    Threads(threads)(count, [&body](int64_t begin, int64_t end) {
      const Armed theirs(true);
      body(begin, end);
    });
  };
}

struct Tally {
  long long failed = 0, wrong = 0;
};

// call: throws bad_alloc or gives whether its results are right. Its allocations fail in turn, until
// one more would have been needed than there are.
template <typename Call>
void FailInTurn(const char* name, unsigned seed, const Call& call, Tally& tally) {
  for (int64_t allocation = 0;; ++allocation) {
    left = allocation;
    bool right = true, failed = false;
    try {
      right = call();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    const bool over = left >= 0;
    left = int64_t{1} << 40;
    // What was left behind by the failure must not matter.
    if (failed) right = call();
    tally.failed += failed;
    if (!right) {
      ++tally.wrong;
      std::printf("%s, seed %u, without allocation %lld: wrong\n", name, seed,
                  static_cast<long long>(allocation));
    }
    if (over) return;
  }
}

void Program_(unsigned seed, int batch, int threads, Tally& tally) {
  const std::vector<int32_t> words = ProgramWriter(seed).Write();
  Program program;
  ParseProgram(words, &program);
  FailInTurn("making", seed, [&] {
    Program again;
    const Armed mine(true);
    if (!ParseProgram(words, &again).empty()) return false;
    FusedGraph(BestVariant(), std::move(again));
    return true;
  }, tally);
  const FusedGraph graph(BestVariant(), std::move(program), 1.0);
  ProgramContents contents(graph.program(), batch, seed);
  FailInTurn("running", seed, [&] {
    {
      const Armed mine(true);
      if (!contents.Run(graph, threads, ArmedThreads(threads))) return false;
    }
    return contents.Agrees();
  }, tally);
}

Guarded Filled(Random& random, int64_t size) {
  Guarded values(size);
  random.Fill(values);
  return values;
}

// One convolution of few channels (whose patches are copied) or of many.
void Convolution_(unsigned seed, int channels, Tally& tally) {
  Random random(seed);
  ForwardArgs args;
  args.shape = {2, 20, channels, 5, 30, 40, 24};
  const ConvShape& s = args.shape;
  const int64_t shown = s.batch * s.rows_out * s.filters, read = s.batch * s.rows_in * s.channels;
  const int64_t weights = s.taps * s.channels * s.filters;
  const Guarded rows = Filled(random, read), filter = Filled(random, weights);
  const std::vector<int32_t> table = random.Indices(s.computed * s.taps, -1, 19);
  const std::vector<int32_t> spread = random.Indices(s.rows_out, 0, 29);
  Guarded out(shown), expected(shown);
  Guarded grad_rows(read), grad_filter(weights), grad_bias(s.filters);
  Guarded wanted_rows(read), wanted_filter(weights), wanted_bias(s.filters);
  args.rows = rows.data();
  args.filter = filter.data();
  args.table = table.data();
  args.spread = spread.data();
  args.out = expected.data();
  MaskedConv2DReference(args);
  args.out = out.data();
  BackwardArgs back;
  back.shape = s;
  back.rows = rows.data();
  back.filter = filter.data();
  back.table = table.data();
  back.spread = spread.data();
  back.out = back.grad_out = expected.data();
  back.grad_rows = wanted_rows.data();
  back.grad_filter = wanted_filter.data();
  back.grad_bias = wanted_bias.data();
  MaskedConv2DGradientsReference(back);
  back.grad_rows = grad_rows.data();
  back.grad_filter = grad_filter.data();
  back.grad_bias = grad_bias.data();
  FailInTurn("convolution", seed, [&] {
    {
      const Armed mine(true);
      MaskedConv2D(BestVariant(), args, 2, Throwing(ArmedThreads(2)));
    }
    return IsClose(expected, out, 1e-5);
  }, tally);
  FailInTurn("gradients", seed, [&] {
    {
      const Armed mine(true);
      MaskedConv2DGradients(BestVariant(), back, 2, Throwing(ArmedThreads(2)));
    }
    return IsClose(wanted_rows, grad_rows, 1e-5) && IsClose(wanted_filter, grad_filter, 1e-5) &&
           IsClose(wanted_bias, grad_bias, 1e-5);
  }, tally);
}

}  // namespace

int Main(int count, unsigned first) {
  Tally tally;
  for (int i = 0; i < count; ++i) {
    alarm(kSecondsOfAProgram);
    const unsigned seed = first + static_cast<unsigned>(i);
    Program_(seed, 2, 3, tally);
    Program_(seed, 5, 2, tally);
    if (i % 8 == 0) {
      Convolution_(seed, 3, tally);
      Convolution_(seed, 20, tally);
    }
  }
  std::printf("%lld calls without memory, %lld of them wrong\n", tally.failed, tally.wrong);
  return tally.wrong == 0 && tally.failed > 0 ? 0 : 1;
}

}  // namespace espace

int main(int argc, char** argv) {
  const int wanted = argc > 1 ? std::atoi(argv[1]) : 40;
  return espace::Main(wanted > 0 ? wanted : 4, argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1);
}
