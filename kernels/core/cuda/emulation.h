// Experimental: these kernels have not run on a GPU so far.
// A GPU for tests: the primitives of cuda/device.h on the CPU. The threads of a block are fibers
// that run one after another from one wait to the next, in a shuffled order. What the hardware may
// do late happens as late as it may: an asynchronous copy arrives in the wait that waits for it.
// Under ThreadSanitizer fibers are threads and only barriers order them, so that it finds races.
#ifndef ESPACE_TF_KERNELS_CORE_CUDA_EMULATION_H_
#define ESPACE_TF_KERNELS_CORE_CUDA_EMULATION_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

#define ESPACE_DEVICE inline
#define ESPACE_ANY inline
#define ESPACE_KERNEL
#define ESPACE_BOUNDS(threads, blocks)

namespace espace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

int Thread();
int Threads();
int64_t Block();
int64_t Blocks();
char* SharedMemory();
void Barrier();
void CopyAsync16(void* shared, const void* global, bool valid);
void CommitGroup();
void WaitForGroups(int pending);
template <int kPending>
void WaitGroups() {
  WaitForGroups(kPending);
}
void LoadMatrices(const void* row, uint32_t (&to)[4]);
void LoadTransposed(const void* row, uint32_t (&to)[4]);
void Multiply(Half, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void Multiply(BFloat16, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void Multiply(float, float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
uint32_t ToTf32(uint32_t bits);
void AtomicAdd(float* to, float value);
void AtomicAdd4(float* to, const float (&values)[4]);

inline uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline float ToFloat(float value) { return value; }
float ToFloat(Half value);
inline float ToFloat(BFloat16 value) { return FromBits(uint32_t{value.bits} << 16); }
inline void Assign(float& to, float value) { to = value; }
void Assign(Half& to, float value);
void Assign(BFloat16& to, float value);

using Stream = void*;
using Status = int;
constexpr Status kOk = 0;

// Runs body as every thread of every block, blocks one after another.
void RunBlocks(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body);

template <typename... Parameters, typename... Arguments>
Status Launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes, Stream,
              const Arguments&... arguments) {
  if (threads < 1 || threads > 1024 || shared_bytes > 163 * 1024 || blocks > 0x7fffffff) return 1;
  RunBlocks(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
  return kOk;
}

inline Status Clear(void* memory, int64_t bytes, Stream) {
  std::memset(memory, 0, bytes);
  return kOk;
}

inline const char* Describe(Status) { return "the emulation cannot launch this"; }
inline Status CurrentDevice(int* device) {
  *device = 0;
  return kOk;
}
inline Status Multiprocessors(int, int* count) {
  *count = 4;
  return kOk;
}
inline Status Upload(const int32_t* values, int64_t count, int32_t** copy) {
  *copy = new int32_t[count];
  std::memcpy(*copy, values, count * sizeof(int32_t));
  return kOk;
}
inline Status Free(int32_t* copy) {
  delete[] copy;
  return kOk;
}

// How many 8-row reads of ldmatrix met a bank twice since the start.
int64_t BankConflicts();

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_CUDA_EMULATION_H_
