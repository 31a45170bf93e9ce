// What a call of an operator is made of, and the activations, those of fused graphs too. Plain C++17:
// no TensorFlow, no LiteRT.
#ifndef ESPACE_TF_KERNELS_CORE_PARAMS_H_
#define ESPACE_TF_KERNELS_CORE_PARAMS_H_

#include <cstdint>
#include <functional>

namespace espace {

// The first three are bounds, which every operator has; the others are of fused graphs only. kElu and
// kLeakyRelu multiply what is below zero by a slope for each channel.
enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kSigmoid = 3,
  kTanh = 4,
  kSilu = 5,         // x * sigmoid(x)
  kHardSigmoid = 6,  // relu6(x + 3) / 6
  kHardSilu = 7,     // x * relu6(x + 3) / 6
  kGelu = 8,         // x * (the normal distribution's share below x)
  kGeluTanh = 9,     // x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2
  kElu = 10,         // x, or slope * (exp(x) - 1) below zero
  kLeakyRelu = 11,   // x, or slope * x below zero
};
constexpr int64_t kActivations = 12;

constexpr bool IsBound(Activation activation) { return activation <= Activation::kRelu6; }
constexpr bool HasSlopes(Activation activation) {
  return activation == Activation::kElu || activation == Activation::kLeakyRelu;
}

// Runs body(begin, end) over disjoint pieces that cover [0, count), on as many threads as the
// caller likes. Bodies may throw bad_alloc, see throwing.h.
using ParallelFor =
    std::function<void(int64_t count, const std::function<void(int64_t begin, int64_t end)>& body)>;

struct ConvShape {
  int64_t batch = 0;     // B
  int64_t rows_in = 0;   // M: input positions of one image
  int64_t channels = 0;  // C
  int64_t taps = 0;      // kernel positions
  int64_t computed = 0;  // Q: output positions that are computed
  int64_t rows_out = 0;  // R: output rows written; equals Q when spread is null
  int64_t filters = 0;   // N
};

struct ForwardArgs {
  ConvShape shape;
  const float* rows = nullptr;      // [B, M, C]
  const float* filter = nullptr;    // [taps, C, N]
  const float* bias = nullptr;      // [N] or null
  const int32_t* table = nullptr;   // [Q, taps]: row of the input, in [-1, M); -1 reads zeros
  const int32_t* spread = nullptr;  // [R]: computed position that each output row shows, or null
  Activation activation = Activation::kNone;
  float* out = nullptr;  // [B, R, N]
};

struct BackwardArgs {
  ConvShape shape;
  const float* rows = nullptr;      // [B, M, C]
  const float* filter = nullptr;    // [taps, C, N]
  const int32_t* table = nullptr;   // [Q, taps]
  const int32_t* spread = nullptr;  // [R] or null
  Activation activation = Activation::kNone;
  const float* out = nullptr;  // [B, R, N]: the forward's result; read when activation != kNone
  const float* grad_out = nullptr;  // [B, R, N]
  float* grad_rows = nullptr;       // [B, M, C] or null: not wanted
  float* grad_filter = nullptr;     // [taps, C, N] or null
  float* grad_bias = nullptr;       // [N] or null
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_PARAMS_H_
