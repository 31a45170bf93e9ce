#include "core/cuda/emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <vector>

// This file is compiled without the sanitizer, whose business the emulation itself is not, and
// tells it what fibers read, write and wait for.
#ifdef ESPACE_FIND_RACES
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read16(void* address);
extern "C" void __tsan_write16(void* address);
#endif

namespace espace {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStack = 256 * 1024;

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

// Without allocation, which the sanitizer would see.
struct Group {
  static constexpr int kMost = 16;
  int count = 0;
  Copy copies[kMost];
};

struct Fiber {
  static constexpr int kGroups = 8;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* sanitizer = nullptr;
  bool done = false;
  const int64_t* waits = nullptr;  // runs again when *waits != old
  int64_t old = 0;
  Group groups[kGroups];
  int open = 0;  // the group that copies are added to; those before it are under way
};

// The lanes of a warp meet here: each publishes, the last one computes for all.
struct Warp {
  int arrived = 0;
  int64_t generation = 0;
  const void* rows[kLanes];
  uint32_t a[kLanes][4], b[kLanes][2], loaded[kLanes][4];
  float sum[kLanes][4];
};

struct Machine {
  std::map<int, std::vector<Fiber>> pools;  // by the number of threads of a block
  std::vector<Fiber>* pool = nullptr;
  std::vector<Warp> warps;
  std::unique_ptr<char[]> shared;
  ucontext_t scheduler;
  void* sanitizer = nullptr;
  const std::function<void()>* body = nullptr;
  int threads = 0, thread = 0, arrived = 0, finished = 0;
  int64_t block = 0, blocks = 0, generation = 0, conflicts = 0;
  int shared_bytes = 0;
  std::mt19937 random{1};
} machine;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s (block %lld, thread %d)\n", what,
               static_cast<long long>(machine.block), machine.thread);
  std::abort();
}

// no_sync: a switch orders nothing.
void Switch([[maybe_unused]] void* sanitizer, ucontext_t* from, ucontext_t* to) {
#ifdef ESPACE_FIND_RACES
  __tsan_switch_to_fiber(sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(from, to);
}

void Order([[maybe_unused]] void* at, [[maybe_unused]] bool release) {
#ifdef ESPACE_FIND_RACES
  if (release) {
    __tsan_release(at);
  } else {
    __tsan_acquire(at);
  }
#endif
}

// Tells of 16 bytes that a fiber reads or writes.
void Touch([[maybe_unused]] const void* at, [[maybe_unused]] bool write) {
#ifdef ESPACE_FIND_RACES
  if (write) {
    __tsan_write16(const_cast<void*>(at));
  } else {
    __tsan_read16(const_cast<void*>(at));
  }
#endif
}

Fiber& Current() { return (*machine.pool)[machine.thread]; }
Warp& CurrentWarp() { return machine.warps[machine.thread / kLanes]; }
int Lane() { return machine.thread % kLanes; }

void WaitFor(const int64_t* generation) {
  Fiber& fiber = Current();
  fiber.waits = generation;
  fiber.old = *generation;
  Switch(machine.sanitizer, &fiber.context, &machine.scheduler);
}

template <typename Publish, typename Compute>
void Together(const Publish& publish, const Compute& compute) {
  Warp& warp = CurrentWarp();
  publish(warp, Lane());
  if (++warp.arrived == std::min(kLanes, machine.threads)) {
    compute(warp);
    warp.arrived = 0;
    ++warp.generation;
  } else {
    WaitFor(&warp.generation);
  }
}

void CheckShared(const void* address, int bytes) {
  const char* at = static_cast<const char*>(address);
  if (at < machine.shared.get() || at + bytes > machine.shared.get() + machine.shared_bytes) {
    Fail("outside shared memory");
  }
  if ((at - machine.shared.get()) % 16 != 0) Fail("shared address is not a multiple of 16");
}

void LoadFour(const void* row, uint32_t (&to)[4], bool transposed) {
  CheckShared(row, 16);
  if (machine.threads % kLanes != 0) Fail("ldmatrix without a full warp");
  Touch(row, false);
  Together([&](Warp& warp, int lane) { warp.rows[lane] = row; },
           [&](Warp& warp) {
             for (int matrix = 0; matrix < 4; ++matrix) {
               bool met[8] = {};
               for (int r = 0; r < 8; ++r) {
                 const auto at = static_cast<const char*>(warp.rows[matrix * 8 + r]);
                 bool& bank = met[(at - machine.shared.get()) / 16 % 8];
                 machine.conflicts += bank;
                 bank = true;
               }
               for (int lane = 0; lane < kLanes; ++lane) {
                 uint16_t half[2];
                 for (int h = 0; h < 2; ++h) {
                   const int row = transposed ? lane % 4 * 2 + h : lane / 4;
                   const int column = transposed ? lane / 4 : lane % 4 * 2 + h;
                   half[h] = static_cast<const uint16_t*>(warp.rows[matrix * 8 + row])[column];
                 }
                 warp.loaded[lane][matrix] = half[0] | uint32_t{half[1]} << 16;
               }
             }
           });
  std::copy_n(CurrentWarp().loaded[Lane()], 4, to);
}

template <typename T>
float HalfOf(uint32_t word, int half) {
  return ToFloat(T{static_cast<uint16_t>(word >> (16 * half))});
}

// The fragment layouts as the PTX ISA words them, by element and not by register.
template <typename ElementA, typename ElementB>
void MultiplyWarp(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int depth,
                  const ElementA& element_a, const ElementB& element_b) {
  if (machine.threads % kLanes != 0) Fail("mma without a full warp");
  Together(
      [&](Warp& warp, int lane) {
        std::copy_n(a, 4, warp.a[lane]);
        std::copy_n(b, 2, warp.b[lane]);
        std::copy_n(sum, 4, warp.sum[lane]);
      },
      [&](Warp& warp) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < kLanes; ++lane) {
          element_a(warp, lane, left);
          element_b(warp, lane, right);
        }
        for (int lane = 0; lane < kLanes; ++lane) {
          for (int i = 0; i < 4; ++i) {
            const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8;
            const int column = (lane % 4) * 2 + (i & 1);
            for (int k = 0; k < depth; ++k) warp.sum[lane][i] += left[row][k] * right[k][column];
          }
        }
      });
  std::copy_n(CurrentWarp().sum[Lane()], 4, sum);
}

template <typename T>
void Multiply16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MultiplyWarp(
      sum, a, b, 16,
      [](Warp& warp, int lane, float (&left)[16][16]) {
        for (int i = 0; i < 8; ++i) {
          const int row = (i < 2 || (i >= 4 && i < 6)) ? lane >> 2 : (lane >> 2) + 8;
          const int column = (lane % 4) * 2 + (i & 1) + (i < 4 ? 0 : 8);
          left[row][column] = HalfOf<T>(warp.a[lane][i / 2], i % 2);
        }
      },
      [](Warp& warp, int lane, float (&right)[16][8]) {
        for (int i = 0; i < 4; ++i) {
          const int row = (lane % 4) * 2 + (i & 1) + (i < 2 ? 0 : 8);
          right[row][lane >> 2] = HalfOf<T>(warp.b[lane][i / 2], i % 2);
        }
      });
}

// A fiber runs the body of one block after another.
[[noreturn]] void RunFiber() {
  for (;;) {
    Order(&machine, false);
    (*machine.body)();
    Fiber& fiber = Current();
    for (int i = 0; i <= fiber.open; ++i) {
      if (fiber.groups[i].count > 0) Fail("ends with copies under way");
    }
    fiber.done = true;
    ++machine.finished;
    Order(&machine, true);
    Switch(machine.sanitizer, &fiber.context, &machine.scheduler);
  }
}

void MakeFibers(std::vector<Fiber>& fibers, int threads) {
  fibers = std::vector<Fiber>(threads);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, RunFiber, 0);
#ifdef ESPACE_FIND_RACES
    fiber.sanitizer = __tsan_create_fiber(0);
#endif
  }
}

void RunBlock(std::vector<int>& order) {
  std::memset(machine.shared.get(), 0xff, machine.shared_bytes);  // not a number in every type
  machine.warps.assign((machine.threads + kLanes - 1) / kLanes, {});
  machine.arrived = machine.finished = 0;
  Order(&machine, true);
  for (Fiber& fiber : *machine.pool) {
    fiber.done = false;
    fiber.waits = nullptr;
    fiber.groups[0].count = fiber.open = 0;
  }
  while (machine.finished < machine.threads) {
    std::shuffle(order.begin(), order.end(), machine.random);
    bool moved = false;
    for (const int thread : order) {
      Fiber& fiber = (*machine.pool)[thread];
      if (fiber.done || (fiber.waits != nullptr && *fiber.waits == fiber.old)) continue;
      fiber.waits = nullptr;
      machine.thread = thread;
      moved = true;
      Switch(fiber.sanitizer, &machine.scheduler, &fiber.context);
    }
    if (!moved) Fail("threads wait for each other for ever");
  }
  Order(&machine, false);
}

}  // namespace

int Thread() { return machine.thread; }
int Threads() { return machine.threads; }
int64_t Block() { return machine.block; }
int64_t Blocks() { return machine.blocks; }
char* SharedMemory() { return machine.shared.get(); }
int64_t BankConflicts() { return machine.conflicts; }

void Barrier() {
  Order(&machine.arrived, true);
  if (++machine.arrived == machine.threads) {
    machine.arrived = 0;
    ++machine.generation;
  } else {
    WaitFor(&machine.generation);
  }
  Order(&machine.arrived, false);
}

void CopyAsync16(void* shared, const void* global, bool valid) {
  CheckShared(shared, 16);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) Fail("global address is not a multiple of 16");
  Group& group = Current().groups[Current().open];
  if (group.count == Group::kMost) Fail("more copies in a group than the emulation holds");
  group.copies[group.count++] = {shared, global, valid};
}

void CommitGroup() {
  Fiber& fiber = Current();
  if (++fiber.open == Fiber::kGroups) Fail("more groups than the emulation holds");
  fiber.groups[fiber.open].count = 0;
}

void WaitForGroups(int pending) {
  Fiber& fiber = Current();
  const int arrived = std::max(fiber.open - pending, 0);
  for (int i = 0; i < arrived; ++i) {
    for (int c = 0; c < fiber.groups[i].count; ++c) {
      const Copy& copy = fiber.groups[i].copies[c];
      Touch(copy.to, true);
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
  }
  std::copy(fiber.groups + arrived, fiber.groups + fiber.open + 1, fiber.groups);
  fiber.open -= arrived;
}

void LoadMatrices(const void* row, uint32_t (&to)[4]) { LoadFour(row, to, false); }
void LoadTransposed(const void* row, uint32_t (&to)[4]) { LoadFour(row, to, true); }

void Multiply(Half, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiply16<Half>(sum, a, b);
}
void Multiply(BFloat16, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Multiply16<BFloat16>(sum, a, b);
}
void Multiply(float, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto tf32 = [](uint32_t bits) {
    if ((bits & 0x1fff) != 0) Fail("an operand is not rounded to TF32");
    return FromBits(bits);
  };
  MultiplyWarp(
      sum, a, b, 8,
      [&](Warp& warp, int lane, float (&left)[16][16]) {
        for (int i = 0; i < 4; ++i) {
          const int row = (i == 0 || i == 2) ? lane >> 2 : (lane >> 2) + 8;
          left[row][lane % 4 + (i < 2 ? 0 : 4)] = tf32(warp.a[lane][i]);
        }
      },
      [&](Warp& warp, int lane, float (&right)[16][8]) {
        for (int i = 0; i < 2; ++i) right[lane % 4 + 4 * i][lane >> 2] = tf32(warp.b[lane][i]);
      });
}

void AtomicAdd4(float* to, const float (&values)[4]) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) Fail("a sum's address is not a multiple of 16");
  for (int i = 0; i < 4; ++i) AtomicAdd(to + i, values[i]);
}

void RunBlocks(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  machine.pool = &machine.pools[threads];
  if (machine.pool->empty()) MakeFibers(*machine.pool, threads);
  machine.shared_bytes = shared_bytes;
  machine.shared.reset(new char[shared_bytes + 16]);
  machine.body = &body;
  machine.threads = threads;
  machine.blocks = blocks;
#ifdef ESPACE_FIND_RACES
  machine.sanitizer = __tsan_get_current_fiber();
#endif
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = i;
  for (machine.block = 0; machine.block < blocks; ++machine.block) RunBlock(order);
}

}  // namespace espace
