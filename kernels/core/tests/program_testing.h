// Random programs of fused graphs, the same spoiled, and what they must give by naive loops in
// double: for fused_graph_test, fuzz_test and memory_test.
#ifndef ESPACE_TF_KERNELS_CORE_TESTS_PROGRAM_TESTING_H_
#define ESPACE_TF_KERNELS_CORE_TESTS_PROGRAM_TESTING_H_

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/cpu/fused_graph.h"
#include "core/tests/reference.h"
#include "core/tests/testing.h"
#include "core/throwing.h"

namespace espace {

// Writes a random program word by word, as kernels/program.py would.
class ProgramWriter {
 public:
  explicit ProgramWriter(unsigned seed) : random_(seed) {}

  std::vector<int32_t> Write() {
    const int inputs = random_.Integer(1, 2), steps = random_.Integer(1, 6);
    for (int i = 0; i < inputs; ++i) {
      const int channels = random_.Integer(1, 40);
      tensors_.push_back({0, i, 0, random_.Integer(1, 12), channels, channels});
    }
    for (int s = 0; s < steps; ++s) Step(s + 1 == steps);
    std::vector<int32_t> words = {kProgramMagic,          inputs,          1,
                                  Count(weights_),        Count(tensors_), Count(tables_),
                                  steps,                  scratch_};
    words.insert(words.end(), weights_.begin(), weights_.end());
    for (const auto& part : {tensors_, tables_, steps_}) {
      for (const auto& each : part) words.insert(words.end(), each.begin(), each.end());
    }
    return words;
  }

 private:
  using Kind = Program::Kind;
  using List = std::vector<int32_t>;

  template <typename T>
  static int32_t Count(const std::vector<T>& list) {
    return static_cast<int32_t>(list.size());
  }

  void Step(bool last) {
    const auto kind = static_cast<Program::Kind>(random_.Integer(0, Program::kKinds - 1));
    const auto is = [kind](auto... kinds) { return ((kind == kinds) || ...); };
    const int in = random_.Integer(0, Count(tensors_) - 1);
    const int rows_in = tensors_[in][3], channels = tensors_[in][4];
    const bool mixes = is(Kind::kConvolve), shuffles = is(Kind::kShuffle);
    const bool bare = is(Kind::kMax, Kind::kAverage, Kind::kSoftmax, Kind::kShuffle);
    const int filters = mixes || shuffles ? random_.Integer(1, 60) : channels;
    const int activation = bare ? 0 : random_.Integer(0, 1) * random_.Integer(0, kActivations - 1);
    List step = {static_cast<int32_t>(kind), activation, 0, -1, -1, -1, -1, -1};
    int rows = rows_in;
    List ins = {in};
    if (shuffles) step[6] = Table(filters, 1, 0, channels - 1);
    if (is(Kind::kSum, Kind::kProduct)) {
      if (is(Kind::kSum) && random_.Integer(0, 1)) step[3] = Weight(channels);
      for (int other = 0; other < Count(tensors_); ++other) {
        const bool fits = tensors_[other][3] == rows || tensors_[other][3] == 1;
        if (fits && tensors_[other][4] == channels && ins.size() < 4) ins.push_back(other);
      }
    } else if (!is(Kind::kSoftmax, Kind::kShuffle)) {
      const int taps = random_.Integer(1, 5);
      rows = random_.Integer(0, 2) == 0 ? 1 : random_.Integer(1, 14);
      step[6] = Table(rows, taps, -1, rows_in - 1);
      if (is(Kind::kConvolve, Kind::kDepthwise)) step[3] = Weight(taps * channels * (mixes ? filters : 1));
      if (is(Kind::kBlend)) {
        step[7] = Factors(rows, taps);
      } else if (random_.Integer(0, 1)) {
        const int shown = random_.Integer(1, 16);
        step[7] = Table(shown, 1, 0, rows - 1);
        rows = shown;
      }
    }
    const bool biased = is(Kind::kConvolve, Kind::kDepthwise, Kind::kSum);
    if (biased && random_.Integer(0, 1)) step[4] = Weight(filters);
    if (HasSlopes(static_cast<Activation>(activation))) step[5] = Weight(filters);
    step[2] = Count(tensors_);
    step.push_back(Count(ins));
    step.insert(step.end(), ins.begin(), ins.end());
    steps_.push_back(step);
    Out(last, rows, filters, ins);
  }

  // A tensor of its own, or a slice of a wider one; in memory of its own, or in that of an earlier
  // one, whose values are lost then, or beside it in the same rows.
  void Out(bool last, int rows, int channels, const List& ins) {
    const int before = random_.Integer(0, 1) * random_.Integer(0, 20);
    const int stride = before + channels + random_.Integer(0, 1) * random_.Integer(0, 20);
    List out = {last ? 1 : 2, 0, last ? before : scratch_ + before, rows, channels, stride};
    const List& other = tensors_[random_.Integer(0, Count(tensors_) - 1)];
    if (!last && other[0] == 2 && random_.Integer(0, 1)) {
      List shared = out;
      shared[2] = other[2];
      if (other[3] == rows && channels <= other[5] - other[4]) {
        shared[2] += other[4];
        shared[5] = other[5];
      }
      const bool reads = std::any_of(ins.begin(), ins.end(), [&](int32_t in) {
        return Overlap(Tensor(tensors_[in]), Tensor(shared));
      });
      if (!reads) out = shared;
    }
    tensors_.push_back(out);
    if (!last) scratch_ = std::max(scratch_, out[2] + rows * out[5]);
  }

  static Program::Tensor Tensor(const List& words) {
    const auto place = static_cast<Program::Place>(words[0]);
    return {place, words[1], words[2], words[3], words[4], words[5]};
  }

  int32_t Weight(int32_t size) {
    weights_.push_back(size);
    return Count(weights_) - 1;
  }

  int32_t Table(int rows, int taps, int low, int high) {
    List table = {rows, taps};
    const List values = random_.Indices(int64_t{rows} * taps, low, high);
    table.insert(table.end(), values.begin(), values.end());
    tables_.push_back(table);
    return Count(tables_) - 1;
  }

  // Floats as the words of a table.
  int32_t Factors(int rows, int taps) {
    List table = {rows, taps};
    Guarded values(int64_t{rows} * taps);
    random_.Fill(values);
    table.resize(table.size() + values.size());
    std::memcpy(table.data() + 2, values.data(), values.size() * sizeof(float));
    tables_.push_back(table);
    return Count(tables_) - 1;
  }

  Random random_;
  int32_t scratch_ = 0;
  List weights_;
  std::vector<List> tensors_, tables_, steps_;
};

// Contents for a program, and what it must give.
class ProgramContents {
 public:
  ProgramContents(const Program& program, int64_t batch, unsigned seed)
      : program_(program), batch_(batch) {
    Random random(seed);
    for (int64_t size : program.inputs) inputs_.push_back(Filled(random, batch * size));
    for (int64_t size : program.weights) {
      weights_.push_back(Filled(random, size));
      float* values = weights_.back().data();  // that 16 bits hold
      std::transform(values, values + size, values, [](float x) { return ToFloat(ToHalf(x)); });
    }
    for (const auto& size : program.outputs) outputs_.emplace_back(batch * size.rows * size.channels);
  }

  // Runs it into outputs of sentinels. Whether all times and what is beside the outputs are right.
  bool Run(const FusedGraph& graph, int threads, const ParallelFor& parallel_for) {
    std::vector<const float*> inputs, weights;
    std::vector<float*> outputs;
    for (const Guarded& each : inputs_) inputs.push_back(each.data());
    for (const Guarded& each : weights_) weights.push_back(each.data());
    for (Guarded& each : outputs_) {
      std::fill_n(each.data(), each.size(), kSentinel);
      outputs.push_back(each.data());
    }
    std::vector<int64_t> times(program_.steps.size(), -1);
    graph.Run(batch_, inputs, weights, graph.Pack(weights), outputs, threads,
              Throwing(parallel_for), times.data());
    bool right = true;
    for (int64_t time : times) right &= time >= 0;
    for (const Guarded& each : outputs_) right &= each.intact();
    if (!right) std::printf("a time or a sentinel is wrong\n");
    return right;
  }

  // Whether the outputs of the last Run are those of the definition; any value will do for what
  // follows from scratch memory that no step has written.
  bool Agrees() const {
    std::vector<Guarded> expected;
    for (const Guarded& each : outputs_) expected.emplace_back(each.size(), kSentinel);
    for (int64_t image = 0; image < batch_; ++image) {
      std::vector<double> scratch(program_.scratch, NAN);
      for (const Program::Step& step : program_.steps) Step(step, image, scratch, expected);
    }
    bool agrees = true;
    for (size_t i = 0; i < outputs_.size(); ++i) {
      Guarded found = outputs_[i];
      for (int64_t k = 0; k < found.size(); ++k) {
        float& wanted = expected[i].data()[k];
        if (std::isnan(wanted)) wanted = found.data()[k] = 0.0f;
      }
      agrees &= IsClose(expected[i], found, kTolerance);
    }
    return agrees;
  }

 private:
  static Guarded Filled(Random& random, int64_t size) {
    Guarded values(size);
    random.Fill(values);
    return values;
  }

  static int64_t At(const Program::Tensor& t, int64_t row, int64_t channel) {
    return t.start + row * t.stride + channel;
  }

  double Read(int64_t tensor, int64_t image, int64_t row, int64_t channel,
              const std::vector<double>& scratch, const std::vector<Guarded>& outputs) const {
    const Program::Tensor& t = program_.tensors[tensor];
    const int64_t at = At(t, row, channel), size = t.rows * t.stride;
    if (t.place == Program::Place::kScratch) return scratch.at(at);
    return (t.place == Program::Place::kInput ? inputs_ : outputs)[t.index].data()[image * size + at];
  }

  void Step(const Program::Step& step, int64_t image, std::vector<double>& scratch,
            std::vector<Guarded>& outputs) const {
    const Program::Tensor& out = program_.tensors[step.out];
    for (int64_t r = 0; r < out.rows; ++r) {
      const int64_t row = step.spreads() ? program_.Values(step.spread)[r] : r;
      for (int64_t n = 0; n < out.channels; ++n) {
        const double value = Value(step, image, row, n, scratch, outputs);
        const int64_t at = At(out, r, n);
        if (out.place == Program::Place::kScratch) {
          scratch.at(at) = value;
        } else {
          outputs[out.index].data()[image * out.rows * out.stride + at] = static_cast<float>(value);
        }
      }
    }
  }

  double Value(const Program::Step& step, int64_t image, int64_t row, int64_t n,
               const std::vector<double>& scratch, const std::vector<Guarded>& outputs) const {
    const auto read = [&](int64_t in, int64_t at, int64_t c) {
      return Read(in, image, at, c, scratch, outputs);
    };
    const auto weight = [&](int64_t w, int64_t at) { return double{weights_[w].data()[at]}; };
    const auto of_row = [&](int64_t in) {
      return read(in, program_.tensors[in].rows == 1 ? 0 : row, n);
    };
    double sum = 0, most = -INFINITY;
    int64_t count = 0;
    if (step.kind == Program::Kind::kSum) {
      for (int64_t in : step.ins) sum += of_row(in);
      if (step.filter >= 0) sum *= weight(step.filter, n);
    } else if (step.kind == Program::Kind::kProduct) {
      sum = 1;
      for (int64_t in : step.ins) sum *= of_row(in);
    } else if (step.kind == Program::Kind::kSoftmax) {
      for (int64_t c = 0; c < program_.tensors[step.out].channels; ++c) {
        sum += std::exp(read(step.ins[0], row, c) - of_row(step.ins[0]));
      }
      return 1.0 / sum;
    } else if (step.kind == Program::Kind::kShuffle) {
      return read(step.ins[0], row, program_.Values(step.table)[n]);
    } else {
      const ConvShape shape = program_.Shape(step);
      for (int64_t t = 0; t < shape.taps; ++t) {
        const int32_t at = program_.Values(step.table)[row * shape.taps + t];
        if (at < 0) continue;
        ++count;
        if (step.kind == Program::Kind::kConvolve) {
          for (int64_t c = 0; c < shape.channels; ++c) {
            sum += read(step.ins[0], at, c) *
                   weight(step.filter, (t * shape.channels + c) * shape.filters + n);
          }
        } else if (step.kind == Program::Kind::kBlend) {
          float factor;
          std::memcpy(&factor, program_.Values(step.spread) + row * shape.taps + t, sizeof(factor));
          sum += read(step.ins[0], at, n) * factor;
        } else {
          const double value = read(step.ins[0], at, n);
          most = std::isnan(value) ? value : std::max(most, value);
          sum += value * (step.filter < 0 ? 1.0 : weight(step.filter, t * shape.channels + n));
        }
      }
    }
    if (step.kind == Program::Kind::kMax) return count == 0 ? 0.0 : most;
    if (step.kind == Program::Kind::kAverage) return count == 0 ? 0.0 : sum / static_cast<double>(count);
    if (step.bias >= 0) sum += weight(step.bias, n);
    return Activate(step.activation, sum, step.slopes < 0 ? 0.0 : weight(step.slopes, n));
  }

  static constexpr double kTolerance = 2e-5;  // of the largest value
  const Program& program_;
  const int64_t batch_;
  std::vector<Guarded> inputs_, weights_, outputs_;
};

// A program with a few words changed, added or cut off.
inline std::vector<int32_t> Spoiled(std::vector<int32_t> words, unsigned seed) {
  Random random(seed);
  for (int times = random.Integer(1, 3); times > 0; --times) {
    static const std::vector<int32_t> hostile = {-1, 0, 1, 2, 3, 5, 8, 1 << 16, 1 << 30, -(1 << 30)};
    const int kind = random.Integer(0, 9), at = random.Integer(0, static_cast<int>(words.size()) - 1);
    if (kind == 0) words.resize(at);
    if (kind == 1) words.push_back(random.Integer(-1, 3));
    if (kind > 1 && kind < 6) words[at] += random.Integer(-2, 2);
    if (kind >= 6) words[at] = hostile[random.Integer(0, static_cast<int>(hostile.size()) - 1)];
    if (words.empty()) break;
  }
  return words;
}

// Whether the arrays of a program are small enough to be made here.
inline bool IsSmall(const Program& program, int64_t most) {
  int64_t floats = program.scratch;
  for (int64_t size : program.inputs) floats = std::max(floats, size);
  for (int64_t size : program.weights) floats = std::max(floats, size);
  for (const auto& size : program.outputs) floats = std::max(floats, size.rows * size.channels);
  return floats <= most;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_TESTS_PROGRAM_TESTING_H_
