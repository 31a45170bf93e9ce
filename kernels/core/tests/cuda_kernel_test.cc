// The GPU kernels without a GPU: run by the emulation in cuda/emulation.cc, against the definition.
// Operands are small integers, so that sums are exact in every type and order and results must be
// equal, not close.
//   make cuda-test
//   make cuda-test-races    a few calls, under ThreadSanitizer: no access is ordered by luck
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/cpu/masked_conv2d.h"
#include "core/cuda/masked_conv2d.h"

namespace espace {
namespace {

int64_t failures = 0, cases = 0;

void Expect(bool holds, const std::string& what) {
  ++cases;
  if (holds) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

template <typename T>
constexpr DataType TypeOf() {
  return std::is_same_v<T, float>  ? DataType::kFloat32
         : std::is_same_v<T, Half> ? DataType::kFloat16
                                   : DataType::kBFloat16;
}

// `size` elements between sentinels, aligned to 16 bytes or off by one element.
template <typename T>
class Guarded {
 public:
  Guarded(int64_t size, bool aligned)
      : size_(size), offset_(aligned ? kGuard : kGuard + 1), values_(size + 2 * kGuard + 1) {
    std::memset(values_.data(), 0xff, values_.size() * sizeof(T));
    while (aligned && reinterpret_cast<uintptr_t>(data()) % 16 != 0) std::abort();
  }
  T* data() { return values_.data() + offset_; }
  int64_t size() const { return size_; }
  bool intact() const {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values_.data());
    for (size_t i = 0; i < values_.size() * sizeof(T); ++i) {
      const int64_t element = static_cast<int64_t>(i / sizeof(T)) - offset_;
      if ((element < 0 || element >= size_) && bytes[i] != 0xff) return false;
    }
    return true;
  }
  void Take(const std::vector<float>& values) {
    for (int64_t i = 0; i < size_; ++i) Assign(data()[i], values[i]);
  }

 private:
  static constexpr int64_t kGuard = 16;
  int64_t size_, offset_;
  std::vector<T> values_;
};

struct Setting {
  ConvShape shape;
  Operation operation = Operation::kConvolution;
  bool spread = false, tf32 = false, aligned = true;
  int multiprocessors = 4;
};

std::string Describe(const Setting& s, unsigned seed) {
  const ConvShape& shape = s.shape;
  std::string text = "operation " + std::to_string(static_cast<int>(s.operation)) + " seed " +
                     std::to_string(seed) + " sizes";
  for (const int64_t size : {shape.batch, shape.rows_in, shape.channels, shape.taps, shape.computed,
                             shape.rows_out, shape.filters}) {
    text += " " + std::to_string(size);
  }
  return text + (s.spread ? " spread" : "") + (s.tf32 ? " tf32" : "") +
         (s.aligned ? "" : " misaligned") + " sms " + std::to_string(s.multiprocessors);
}

// The operands, and what must come out, all exact in float.
struct Expected {
  std::vector<float> rows, filter, bias, grad_out, out, grad_rows, grad_filter, grad_bias;
  std::vector<int32_t> table, spread;
  bool use_bias;
  Activation activation;
};

// The definition of depthwise convolution and pooling, output row by output row.
void ChannelsReference(const Setting& setting, Expected* e) {
  const ConvShape& s = setting.shape;
  const bool depthwise = setting.operation == Operation::kDepthwise;
  std::vector<double> rows(e->rows.size()), filter(e->filter.size()), bias(e->bias.size());
  for (int64_t at = 0; at < s.batch * s.rows_out * s.filters; ++at) {
    const int64_t n = at % s.filters, row = at / s.filters % s.rows_out;
    const int64_t image = at / s.filters / s.rows_out, c = n / (s.filters / s.channels);
    const int64_t position = setting.spread ? e->spread[row] : row;
    double sum = depthwise && e->use_bias ? e->bias[n] : 0.0, largest = -INFINITY;
    int64_t count = 0, largest_at = -1;
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      const int32_t read = e->table[position * s.taps + tap];
      if (read < 0) continue;
      const int64_t input = (image * s.rows_in + read) * s.channels + c;
      ++count;
      sum += e->rows[input] * (depthwise ? e->filter[tap * s.filters + n] : 1.0);
      if (e->rows[input] > largest) {
        largest = e->rows[input];
        largest_at = input;
      }
    }
    double out = sum, gradient = e->grad_out[at];
    if (setting.operation == Operation::kMaximum) out = count > 0 ? largest : 0.0;
    if (setting.operation == Operation::kAverage) out = count > 0 ? sum / count : 0.0;
    if (e->activation != Activation::kNone) {
      const double top = e->activation == Activation::kRelu6 ? 6.0 : INFINITY;
      out = std::min(std::max(out, 0.0), top);
      if (!(out > 0.0 && out < top)) gradient = 0.0;
    }
    e->out[at] = static_cast<float>(out);
    if (depthwise) bias[n] += gradient;
    if (setting.operation == Operation::kMaximum && count > 0) rows[largest_at] += gradient;
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      const int32_t read = e->table[position * s.taps + tap];
      if (read < 0 || setting.operation == Operation::kMaximum) continue;
      const int64_t input = (image * s.rows_in + read) * s.channels + c;
      const int64_t weight = tap * s.filters + n;
      rows[input] += gradient * (depthwise ? e->filter[weight] : 1.0 / count);
      if (depthwise) filter[weight] += gradient * e->rows[input];
    }
  }
  e->grad_rows.assign(rows.begin(), rows.end());
  e->grad_filter.assign(filter.begin(), filter.end());
  e->grad_bias.assign(bias.begin(), bias.end());
}

void ConvolutionReference(const Setting& setting, Expected* e) {
  ForwardArgs forward;
  forward.shape = setting.shape;
  forward.rows = e->rows.data();
  forward.filter = e->filter.data();
  forward.bias = e->use_bias ? e->bias.data() : nullptr;
  forward.table = e->table.data();
  forward.spread = setting.spread ? e->spread.data() : nullptr;
  forward.activation = e->activation;
  forward.out = e->out.data();
  MaskedConv2DReference(forward);
  BackwardArgs backward;
  backward.shape = setting.shape;
  backward.rows = forward.rows;
  backward.filter = forward.filter;
  backward.table = forward.table;
  backward.spread = forward.spread;
  backward.activation = e->activation;
  backward.out = e->out.data();
  backward.grad_out = e->grad_out.data();
  backward.grad_rows = e->grad_rows.data();
  backward.grad_filter = e->grad_filter.data();
  backward.grad_bias = e->grad_bias.data();
  MaskedConv2DGradientsReference(backward);
}

Expected Prepare(const Setting& setting, unsigned seed) {
  const ConvShape& s = setting.shape;
  std::mt19937 random(seed);
  const auto integer = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const auto fill = [&](int64_t size) {
    std::vector<float> values(size);
    for (float& value : values) value = static_cast<float>(integer(-2, 2));
    return values;
  };
  const int64_t weights =
      s.taps * s.filters * (setting.operation == Operation::kConvolution ? s.channels : 1);
  Expected e;
  e.rows = fill(s.batch * s.rows_in * s.channels);
  e.filter = fill(weights);
  e.bias = fill(s.filters);
  e.grad_out = fill(s.batch * s.rows_out * s.filters);
  e.out.resize(e.grad_out.size());
  e.grad_rows.resize(e.rows.size());
  e.grad_filter.resize(weights);
  e.grad_bias.resize(s.filters);
  for (int64_t i = 0; i < s.computed * s.taps; ++i) {
    e.table.push_back(integer(-1, static_cast<int>(s.rows_in) - 1));
  }
  for (int64_t i = 0; i < s.rows_out && setting.spread; ++i) {
    e.spread.push_back(integer(0, static_cast<int>(s.computed) - 1));
  }
  const bool pool =
      setting.operation == Operation::kMaximum || setting.operation == Operation::kAverage;
  e.use_bias = !pool && integer(0, 1) != 0;
  e.activation = pool ? Activation::kNone : static_cast<Activation>(integer(0, 2));
  if (setting.operation == Operation::kConvolution) {
    ConvolutionReference(setting, &e);
  } else {
    ChannelsReference(setting, &e);
  }
  return e;
}

template <typename T>
void ExpectEqual(Guarded<T>& found, const std::vector<float>& expected, const Setting& setting,
                 unsigned seed, const char* name) {
  const bool exact = setting.operation != Operation::kAverage;
  int64_t wrong = 0, first = -1;
  for (int64_t i = 0; i < found.size(); ++i) {
    T rounded;
    Assign(rounded, expected[i]);
    const float want = ToFloat(rounded), got = ToFloat(found.data()[i]);
    // A mean is rounded twice, and so is every part of its gradient.
    const float allowed = exact ? 0.0f : (sizeof(T) == 4 ? 1e-6f : 2e-2f) * (1 + std::fabs(want));
    if (!(std::fabs(want - got) <= allowed)) {
      ++wrong;
      if (first < 0) first = i;
    }
  }
  std::string text = Describe(setting, seed) + ": " + name;
  if (wrong > 0) {
    text += ", " + std::to_string(wrong) + " of " + std::to_string(found.size()) + ", first at " +
            std::to_string(first) + " " + std::to_string(ToFloat(found.data()[first])) + " not " +
            std::to_string(expected[first]);
  }
  if (!found.intact()) text += ", wrote outside";
  Expect(wrong == 0 && found.intact(), text);
}

template <typename T>
void Check(const Setting& setting, unsigned seed) {
  const Expected e = Prepare(setting, seed);
  const ConvShape& s = setting.shape;
  Guarded<T> rows(e.rows.size(), setting.aligned), filter(e.filter.size(), setting.aligned);
  Guarded<T> bias(e.bias.size(), setting.aligned), grad_out(e.grad_out.size(), setting.aligned);
  Guarded<T> out(e.out.size(), setting.aligned), shown(e.out.size(), setting.aligned);
  Guarded<T> grad_rows(rows.size(), setting.aligned), grad_filter(filter.size(), setting.aligned);
  Guarded<T> grad_bias(bias.size(), setting.aligned);
  rows.Take(e.rows);
  filter.Take(e.filter);
  bias.Take(e.bias);
  grad_out.Take(e.grad_out);
  shown.Take(e.out);
  std::vector<int32_t> starts(s.computed + 1), destinations(s.rows_out);
  if (setting.spread) {
    InvertSpread(e.spread.data(), s.rows_out, s.computed, starts.data(), destinations.data());
  }
  CudaCall call;
  call.operation = setting.operation;
  call.type = TypeOf<T>();
  call.activation = e.activation;
  call.allow_tf32 = setting.tf32;
  call.multiprocessors = setting.multiprocessors;
  call.shape = s;
  call.table = e.table.data();
  call.starts = setting.spread ? starts.data() : nullptr;
  call.shown = setting.spread ? destinations.data() : nullptr;
  call.rows = rows.data();
  call.filter = filter.data();
  call.bias = e.use_bias ? bias.data() : nullptr;
  call.out = out.data();
  call.grad_out = grad_out.data();
  Guarded<char> scratch(ForwardScratch(call), true);
  Expect(CheckSizes(call.operation, s) == nullptr, "sizes");
  Expect(CudaForward(call, scratch.data(), {}) == kOk, "forward");
  ExpectEqual(out, e.out, setting, seed, "out");
  call.out = shown.data();
  call.grad_rows = grad_rows.data();
  if (setting.operation == Operation::kConvolution || setting.operation == Operation::kDepthwise) {
    call.grad_filter = grad_filter.data();
    call.grad_bias = grad_bias.data();
  }
  Guarded<char> more(GradientScratch(call), true);
  Expect(CudaGradients(call, more.data(), {}) == kOk, "gradients");
  ExpectEqual(grad_rows, e.grad_rows, setting, seed, "grad_rows");
  if (call.grad_filter != nullptr) {
    ExpectEqual(grad_filter, e.grad_filter, setting, seed, "grad_filter");
    ExpectEqual(grad_bias, e.grad_bias, setting, seed, "grad_bias");
  }
  Expect(scratch.intact() && more.intact(), Describe(setting, seed) + ": scratch");
}

void CheckTypes(Setting setting, unsigned seed) {
  switch (seed % 4) {
    case 0:
      return Check<Half>(setting, seed);
    case 1:
      return Check<BFloat16>(setting, seed);
    case 2:
      return Check<float>(setting, seed);
    default:
      setting.tf32 = true;
      return Check<float>(setting, seed);
  }
}

// Each type with every tile size (few multiprocessors: large ones; many: small ones and split sums)
// below, at and above a tile.
void Remainders(bool brief) {
  unsigned seed = 0;
  for (const int positions : {1, 63, 64, 65, 127, 128, 129, 200}) {
    for (const int filters : {1, 3, 8, 20, 64, 72, 129, 136}) {
      for (const int channels : {1, 3, 4, 8, 20, 40}) {
        ++seed;
        if (seed * 2654435761u >> 16 & (brief ? 63 : 3)) continue;  // a fixed sample
        for (int type = 0; type < 4; ++type) {
          Setting setting;
          setting.shape = {1, 30, channels, 1 + seed % 5, positions, positions, filters};
          setting.multiprocessors = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 4 : 100;
          CheckTypes(setting, seed * 4 + type);
        }
      }
    }
  }
}

void Random(bool brief) {
  for (unsigned seed = 0; seed < (brief ? 16u : 120u); ++seed) {
    std::mt19937 random(seed);
    const auto integer = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    Setting setting;
    const int chunk = integer(0, 1) ? 8 : 1;
    setting.spread = integer(0, 1) != 0;
    setting.aligned = integer(0, 3) != 0;
    setting.operation = static_cast<Operation>(std::max(integer(-3, 3), 0));
    setting.multiprocessors = integer(0, 1) ? 132 : integer(1, 8);
    ConvShape& s = setting.shape;
    s = {integer(1, 4),         integer(1, 40), integer(1, 9) * chunk,
         integer(1, 9),         integer(1, 50), 0,
         integer(1, 18) * chunk};
    s.rows_out = setting.spread ? integer(1, 90) : s.computed;
    if (setting.operation == Operation::kDepthwise) s.filters = s.channels * integer(1, 2);
    if (setting.operation > Operation::kDepthwise) s.filters = s.channels;
    CheckTypes(setting, seed);
  }
}

// A few calls of every kernel: several tiles deep, whole chunks and single elements.
void Few() {
  for (unsigned seed = 0; seed < 8; ++seed) {
    const int channels = seed < 4 ? 40 : 5;
    Setting setting;
    setting.shape = {2, 6, channels, 4, 20, 20, seed < 4 ? 24 : 9};
    setting.multiprocessors = seed % 2 == 0 ? 1 : 3;
    CheckTypes(setting, seed);
  }
  for (unsigned seed = 0; seed < 12; ++seed) {
    Setting setting;
    setting.operation = static_cast<Operation>(1 + seed / 4);
    setting.shape = {2, 6, 8, 3, 5, 7, 8};
    setting.spread = true;
    CheckTypes(setting, seed);
  }
}

void CheckNothing() {
  CudaCall call;
  call.shape = {0, 5, 3, 2, 4, 4, 7};
  std::vector<float> filter(2 * 3 * 7, 1.0f), bias(7, 1.0f);
  call.grad_filter = filter.data();
  call.grad_bias = bias.data();
  Expect(GradientScratch(call) == 0 && CudaForward(call, nullptr, {}) == kOk &&
             CudaGradients(call, nullptr, {}) == kOk,
         "no images");
  Expect(std::count(filter.begin(), filter.end(), 0.0f) == 42 &&
             std::count(bias.begin(), bias.end(), 0.0f) == 7,
         "no images give no gradient");
}

}  // namespace
}  // namespace espace

int main(int count, char** arguments) {
  using namespace espace;
  const std::string mode = count > 1 ? arguments[1] : "";
  CheckNothing();
  if (mode == "races") {
    Few();
  } else {
    Remainders(mode == "short");
    Random(mode == "short");
  }
  Expect(BankConflicts() == 0, "ldmatrix reads every bank once");
  std::printf("%lld checks, %lld failures\n", static_cast<long long>(cases),
              static_cast<long long>(failures));
  return failures != 0;
}
