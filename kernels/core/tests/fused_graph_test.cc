// Fused graphs: random programs on every variant against naive loops in double, with few and many
// images, on threads that come all at once, one after the other, backwards, late or never; then the
// same programs with words spoiled, which must be refused or run without touching memory that is
// not theirs (the sanitizers watch). A program that hangs is ended by SIGALRM.
//   fused_graph_test [COUNT] [SEED]: program i uses seed SEED + i; "short" or "threads": a few.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/cpu/fused_graph.h"
#include "core/team.h"
#include "core/tests/program_testing.h"
#include "core/tests/testing.h"

namespace espace {
namespace {

// Spoiled programs that want more memory than this are not run.
constexpr int64_t kMostFloats = 1 << 20;
// So long that it is none of a busy machine's doing.
constexpr unsigned kSecondsOfAProgram = 900;

// Bodies one by one on the caller's thread, the last one first.
ParallelFor Backwards() {
  return [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    for (int64_t i = count; i-- > 0;) body(i, i + 1);
  };
}

// Bodies one by one, each on a thread that begins when the one before it has ended.
ParallelFor OneByOne() {
  return [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    for (int64_t i = 0; i < count; ++i) std::thread(body, i, i + 1).join();
  };
}

// The first body alone.
ParallelFor OnlyFirst() {
  return [](int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, 1); };
}

// A team whose other threads come at any time, many of them after the call; they end with this.
class Late {
 public:
  ~Late() {
    for (std::thread& thread : threads_) thread.join();
  }

  void Schedule(std::function<void()> task) {
    threads_.emplace_back([task = std::move(task), microseconds = random_.Integer(0, 300)] {
      std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
      task();
    });
  }

 private:
  Random random_{1};
  std::vector<std::thread> threads_;
};

ParallelFor LateTeam() {
  return [late = std::make_shared<Late>()](
             int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    RunTeam(count, body, [&](std::function<void()> task) { late->Schedule(std::move(task)); });
  };
}

struct Way {
  const char* name;
  int batch, threads;
  ParallelFor parallel_for;
};

std::vector<Way> Ways() {
  return {{"one thread", 1, 1, Serial()},        {"3 threads", 1, 3, Threads(3)},
          {"the first of 3", 1, 3, OnlyFirst()}, {"3 late", 1, 3, LateTeam()},
          {"2 late", 5, 2, LateTeam()},          {"3 of one thread", 2, 3, Serial()},
          {"4 backwards", 3, 4, Backwards()},    {"5 one by one", 2, 5, OneByOne()},
          {"8 of 2 threads", 3, 8, Threads(2)},  {"2 threads", 9, 2, Threads(2)},
          {"3 threads", 17, 3, Threads(3)},      {"3 of one thread", 17, 3, Backwards()}};
}

// A program that is right, on every variant.
int Right(const std::vector<int32_t>& words, unsigned seed, int* cases) {
  int failures = 0;
  for (const Variant* variant : Variants()) {
    if (!variant->supported()) continue;
    Program program;
    const std::string error = ParseProgram(words, &program);
    if (!error.empty()) {
      std::printf("seed %u: %s\n", seed, error.c_str());
      return 1;
    }
    // Pieces of all sizes; every convolution of one row a dense layer, or none of them; their
    // filters in 16 bits or not.
    const std::vector<bool> halves(program.weights.size(), seed % 4 == 0);
    const FusedGraph graph(*variant, std::move(program), seed % 3 == 0 ? 1e5 : 1.0,
                           seed % 2 == 0 ? 1 : Dense::kLeastFloats, halves);
    for (const Way& way : Ways()) {
      ProgramContents contents(graph.program(), way.batch, seed);
      ++*cases;
      if (contents.Run(graph, way.threads, way.parallel_for) && contents.Agrees()) continue;
      ++failures;
      std::printf("seed %u, %s, batch %d, %s: wrong\n", seed, variant->name, way.batch, way.name);
    }
  }
  return failures;
}

// What is accepted of the words of a spoiled program must stay in its memory.
int Accepted(const std::vector<int32_t>& words, unsigned seed, int* accepted) {
  Program program;
  if (!ParseProgram(words, &program).empty() || !IsSmall(program, kMostFloats)) return 0;
  ++*accepted;
  const FusedGraph graph(BestVariant(), std::move(program), FusedGraph::kPieceCost,
                         seed % 2 == 0 ? 1 : Dense::kLeastFloats);
  ProgramContents contents(graph.program(), 2, seed);
  return contents.Run(graph, 1, Serial()) ? 0 : 1;
}

// One step that adds input 0, [4, 3], to a slice of scratch memory, [rows, channels] at start with
// a stride, and writes another one of the same size, stride and start + shift.
std::string Aliased(int start, int stride, int shift) {
  Program program;
  return ParseProgram({kProgramMagic, 1, 1, 0, 4, 0, 2, 100,                        //
                       0, 0, 0, 4, 3, 3, 2, 0, start, 4, 3, stride,                 //
                       2, 0, start + shift, 4, 3, stride, 1, 0, 0, 4, 3, 3,         //
                       4, 0, 2, -1, -1, -1, -1, -1, 2, 0, 1,                        //
                       4, 0, 3, -1, -1, -1, -1, -1, 1, 2},
                      &program);
}

int Aliases() {
  int failures = 0;
  for (int stride : {3, 6, 7, 9}) {
    for (int shift = 0; shift < 40; ++shift) {
      bool shared = false;  // a float
      for (int i = 0; i < 12; ++i) {
        for (int k = 0; k < 12; ++k) {
          shared |= i / 3 * stride + i % 3 == shift + k / 3 * stride + k % 3;
        }
      }
      const std::string error = Aliased(5, stride, shift);
      const bool refused = error.find("writes where it reads") != std::string::npos;
      if (refused == shared && (refused || error.empty())) continue;
      ++failures;
      std::printf("stride %d, shift %d: %s\n", stride, shift, error.c_str());
    }
  }
  return failures;
}

}  // namespace

int Main(int count, unsigned first) {
  int cases = 0, failures = Aliases(), accepted = 0;
  for (int i = 0; i < count; ++i) {
    alarm(kSecondsOfAProgram);
    const unsigned seed = first + static_cast<unsigned>(i);
    const std::vector<int32_t> words = ProgramWriter(seed).Write();
    failures += Right(words, seed, &cases);
    for (unsigned k = 0; k < 20; ++k) {
      const unsigned other = 1000 * seed + k;
      failures += Accepted(Spoiled(words, other), other, &accepted);
    }
  }
  std::printf("%d runs of fused graphs, %d of %d spoiled ones accepted, %d failures\n", cases, accepted,
              20 * count, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace espace

int main(int argc, char** argv) {
  const int wanted = argc > 1 ? std::atoi(argv[1]) : 400;
  return espace::Main(wanted > 0 ? wanted : 60, argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1);
}
