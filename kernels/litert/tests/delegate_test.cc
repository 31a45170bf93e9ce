// The delegate against a runtime that plays LiteRT through the structures of abi.h: random programs
// in good order, whose numbers must be those of the core, and the same spoiled in every part that a
// file or a caller decides on, which must be refused or run within their own memory (arrays have no
// room to spare, for the sanitizers that this is built with). Half of them with one delegate for
// two interpreters in threads of their own.
//   delegate_test COUNT [SEED]: COUNT spoiled calls, a tenth as many in good order.
#include "litert/delegate.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/tests/program_testing.h"
#include "core/tests/testing.h"
#include "litert/abi.h"
#include "litert/stretch.h"
#include "litert/tests/played_runtime.h"

namespace espace {
namespace litert {
namespace {

std::vector<float> Floats(Random& random, int64_t size) {
  Guarded values(size);
  random.Fill(values);
  return std::vector<float>(values.data(), values.data() + size);
}

// A node in good order: a program with its inputs and weights, some of them transposed or halved.
struct Case {
  Program program;
  std::vector<std::vector<float>> inputs, weights;
  std::vector<int32_t> words;  // of the stretch
  std::vector<std::string> constants;
  std::vector<bool> half;
};

bool Chance(Random& random, int percent) { return random.Integer(1, 100) <= percent; }

// Powers of two times small integers, which both widths hold.
uint16_t Half(float value) {
  if (value == 0) return 0;
  int exponent;
  const float fraction = std::frexp(std::fabs(value), &exponent);
  const int bits = static_cast<int>(fraction * 2048) & 1023;
  return static_cast<uint16_t>((value < 0) << 15 | (exponent + 14) << 10 | bits);
}

Case Make(unsigned seed, const std::vector<int32_t>& words, int batch) {
  Random random(seed);
  Case made;
  ParseProgram(words, &made.program);
  made.words = {kStretchMagic, static_cast<int32_t>(made.program.weights.size())};
  for (int64_t size : made.program.inputs) made.inputs.push_back(Floats(random, batch * size));
  for (int64_t size : made.program.weights) {
    std::vector<float> values = Floats(random, size);
    made.half.push_back(Chance(random, 30));
    if (made.half.back()) {
      for (float& value : values) value = std::nearbyint(value * 8) / 8;
    }
    int columns = 0;
    for (int each : {2, 3, 5}) {
      if (size % each == 0 && Chance(random, 40)) columns = each;
    }
    made.words.push_back(columns);
    const int64_t width = std::max(columns, 1), height = size / width;
    std::string bytes;
    for (int64_t i = 0; i < size; ++i) {
      const float value = values[i % height * width + i / height];
      const uint16_t half = made.half.back() ? Half(value) : 0;
      bytes += made.half.back() ? std::string(reinterpret_cast<const char*>(&half), sizeof(half))
                                : std::string(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    made.weights.push_back(values);
    made.constants.push_back(bytes);
  }
  made.words.insert(made.words.end(), words.begin(), words.end());
  return made;
}

void Fill(const Case& given, int batch, Runtime* runtime) {
  std::vector<int> inputs, outputs;
  inputs.push_back(runtime->Add(kInt32, {static_cast<int>(given.words.size())}, kMapped,
                                given.words.data(), given.words.size() * sizeof(int32_t)));
  for (size_t i = 0; i < given.inputs.size(); ++i) {
    const auto& values = given.inputs[i];
    const int size = static_cast<int>(given.program.inputs[i]);
    inputs.push_back(
        runtime->Add(kFloat32, {batch, 1, size}, 2, values.data(), values.size() * sizeof(float)));
  }
  for (size_t i = 0; i < given.constants.size(); ++i) {
    const std::string& bytes = given.constants[i];
    inputs.push_back(runtime->Add(given.half[i] ? kFloat16 : kFloat32,
                                  {static_cast<int>(given.weights[i].size())}, kMapped,
                                  bytes.data(), bytes.size()));
  }
  for (const Program::Output& output : given.program.outputs) {
    outputs.push_back(runtime->Add(
        kFloat32, {1, static_cast<int>(output.rows), static_cast<int>(output.channels)}, 2, nullptr,
        0));
  }
  runtime->node.inputs = Array(inputs);
  runtime->node.outputs = Array(outputs);
}

// Whether the delegate computes what the core does.
bool Right(Delegate* delegate, unsigned seed) {
  Random random(seed);
  const int batch = random.Integer(0, 4) ? random.Integer(1, 9) : 1;
  const Case given = Make(seed, ProgramWriter(seed).Write(), batch);
  Runtime runtime;
  Fill(given, batch, &runtime);
  static const Composite composite = {"espace_tf.fused_graph", 1, nullptr, 0, 1};
  if (seed % 2) {
    runtime.registration = {};
    runtime.registration.builtin_code = kStablehloComposite;
    runtime.node.builtin_data = const_cast<Composite*>(&composite);
  }
  if (!runtime.Run(delegate, random.Integer(-1, 4), 2)) {
    std::printf("seed %u: %s\n", seed, runtime.reported.c_str());
    return false;
  }
  Program program;
  ParseProgram(ProgramWriter(seed).Write(), &program);
  const FusedGraph graph(BestVariant(), std::move(program));
  std::vector<const float*> inputs, weights;
  std::vector<std::vector<float>> expected;
  std::vector<float*> outputs;
  for (const auto& values : given.inputs) inputs.push_back(values.data());
  for (const auto& values : given.weights) weights.push_back(values.data());
  for (const Program::Output& output : given.program.outputs) {
    expected.emplace_back(batch * output.rows * output.channels);
  }
  for (auto& values : expected) outputs.push_back(values.data());
  graph.Run(
      batch, inputs, weights, graph.Pack(weights), outputs, 1,
      [](int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); },
      nullptr);
  // Of outputs in slices of wider rows only what the steps write is defined.
  for (const Program::Tensor& t : given.program.tensors) {
    if (t.place != Program::Place::kOutput) continue;
    const int number = runtime.node.outputs->data[t.index];
    const auto* found = static_cast<const float*>(runtime.tensors[number].data);
    for (int64_t row = 0; row < batch * t.rows; ++row) {
      for (int64_t c = 0; c < t.channels; ++c) {
        const float wanted = expected[t.index][row * t.stride + t.start + c];
        const float got = found[row * t.stride + t.start + c];
        if (std::fabs(wanted - got) <= 1e-4f * (1 + std::fabs(wanted)) || std::isnan(wanted)) {
          continue;
        }
        std::printf("seed %u: output %d, row %d, channel %d: %g instead of %g\n", seed,
                    static_cast<int>(t.index), static_cast<int>(row), static_cast<int>(c), got,
                    wanted);
        return false;
      }
    }
  }
  return true;
}

// Changes one thing of the node or of its tensors that a file or a caller decides on.
void Spoil(Random& random, Runtime* runtime) {
  IntArray* list = Chance(random, 70) ? runtime->node.inputs : runtime->node.outputs;
  if (list->size < 1) return;
  const int which = random.Integer(0, list->size - 1), index = list->data[which];
  const int tensors = static_cast<int>(runtime->tensors.size());
  const bool valid = index >= 0 && index < tensors;
  Tensor* tensor = valid ? &runtime->tensors[index] : nullptr;
  switch (random.Integer(0, 8)) {
    case 0:
      list->data[which] = random.Integer(-2, tensors + 1);
      break;
    case 1:
      list->size = random.Integer(0, list->size);
      break;
    case 2:
      if (valid) tensor->type = random.Integer(0, 12);
      break;
    case 3:
      if (valid) tensor->allocation = random.Integer(0, 7);
      break;
    case 4: {  // less memory, or none, as dims have it or not
      if (!valid || tensor->data == nullptr) break;
      const size_t size = random.Integer(0, static_cast<int>(tensor->bytes));
      void* smaller = size ? std::malloc(size) : nullptr;
      if (size) std::memcpy(smaller, tensor->data, size);
      std::free(tensor->data);
      tensor->data = smaller;
      tensor->bytes = size;
      break;
    }
    case 5:
    case 6: {
      if (!valid) break;
      std::vector<int> dims(random.Integer(0, 4));
      static const std::vector<int> sizes = {-1, 0, 1, 2, 3, 7, 1 << 16, (1u << 31) - 1};
      for (int& size : dims) size = sizes[random.Integer(0, static_cast<int>(sizes.size()) - 1)];
      std::free(tensor->dims);
      tensor->dims = Chance(random, 90) ? Array(dims) : nullptr;
      break;
    }
    case 7:  // another batch
      if (valid && tensor->dims && tensor->dims->size) {
        tensor->dims->data[0] = std::min(tensor->dims->data[0], 1 << 20) + random.Integer(-2, 2);
      }
      break;
    case 8: {  // a word
      if (!valid || tensor->type != kInt32 || tensor->bytes < sizeof(int32_t)) break;
      auto* words = static_cast<int32_t*>(tensor->data);
      const int count = static_cast<int>(tensor->bytes / sizeof(int32_t));
      if (words) words[random.Integer(0, std::min(count - 1, 40))] += random.Integer(-3, 3);
      break;
    }
  }
}

// Whether what the words say can be made here.
bool Fits(const Runtime& runtime) {
  for (const Tensor& tensor : runtime.tensors) {
    if (tensor.type != kInt32 || tensor.data == nullptr) continue;
    const auto* words = static_cast<const int32_t*>(tensor.data);
    const auto count = static_cast<int64_t>(tensor.bytes / sizeof(int32_t));
    if (count < 2 || words[1] < 0 || words[1] > count - 2) continue;
    Program program;
    const std::vector<int32_t> own(words + 2 + words[1], words + count);
    if (ParseProgram(own, &program).empty() && !IsSmall(program, kMostFloats)) return false;
  }
  return true;
}

struct Counts {
  int refused = 0, ran = 0, wrong = 0;
};

void Hostile(Delegate* delegate, unsigned seed, Counts* counts) {
  Random random(seed);
  const int batch = random.Integer(1, 4);
  std::vector<int32_t> words = ProgramWriter(seed).Write();
  Case given = Make(seed, words, batch);
  if (Chance(random, 40)) {
    const std::vector<int32_t> spoiled = Spoiled(given.words, seed);
    given.words = spoiled.empty() ? std::vector<int32_t>{0} : spoiled;
  }
  Runtime runtime;
  Fill(given, batch, &runtime);
  for (int times = random.Integer(0, 3); times > 0; --times) Spoil(random, &runtime);
  if (!Fits(runtime)) return;
  const bool ran = runtime.Run(delegate, random.Integer(-1, 3), 1);
  (ran ? counts->ran : counts->refused) += 1;
  if (!runtime.claimed()) return;
  for (int times = random.Integer(1, 2); times > 0; --times) Spoil(random, &runtime);
  runtime.Invoke();
  runtime.Run(delegate, 2, 1);
}

Delegate* NewDelegate(const char* threads) {
  std::string key = "num_threads", value = threads;
  char *keys[] = {key.data()}, *values[] = {value.data()};
  return static_cast<Delegate*>(tflite_plugin_create_delegate(keys, values, 1, nullptr));
}

int Main(int count, unsigned first) {
  Counts counts[2];
  Delegate* delegates[2] = {NewDelegate("0"), NewDelegate("2")};
  const auto work = [&](int which, int calls, unsigned seed, Delegate* delegate) {
    for (int i = 0; i < calls; ++i) {
      const unsigned own = seed + static_cast<unsigned>(i);
      if (i % 10 == 0 && !Right(delegate, own)) ++counts[which].wrong;
      Hostile(delegate, own, &counts[which]);
    }
  };
  work(0, count / 2, first, delegates[0]);
  const auto half = static_cast<unsigned>(count / 2);
  std::thread other(work, 1, count / 4, first + half, delegates[1]);
  work(0, count / 4, first + half + half / 2, delegates[1]);
  other.join();
  const int bad = NewDelegate("many") != nullptr;
  for (Delegate* delegate : delegates) tflite_plugin_destroy_delegate(delegate);
  const int wrong = counts[0].wrong + counts[1].wrong + bad;
  std::printf("%d spoiled calls ran, %d were refused, %d failures\n", counts[0].ran + counts[1].ran,
              counts[0].refused + counts[1].refused, wrong);
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace litert
}  // namespace espace

int main(int argc, char** argv) {
  const int wanted = argc > 1 ? std::atoi(argv[1]) : 2000;
  return espace::litert::Main(wanted > 0 ? wanted : 2000,
                              argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 1);
}
