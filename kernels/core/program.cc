#include "core/program.h"

#include <algorithm>
#include <utility>

#include "core/validate.h"

namespace espace {
namespace {

std::string Number(int64_t value) { return std::to_string(value); }

// Reads words one by one, and says so when they end too early.
class Words {
 public:
  explicit Words(const std::vector<int32_t>& words) : words_(words) {}

  bool Has(int64_t count) const { return count <= left(); }
  int64_t left() const { return static_cast<int64_t>(words_.size()) - at_; }
  int64_t Next() { return words_[at_++]; }
  const int32_t* Take(int64_t count) {
    at_ += count;
    return words_.data() + at_ - count;
  }

 private:
  const std::vector<int32_t>& words_;
  int64_t at_ = 0;
};

class Reader {
 public:
  explicit Reader(Program* program) : program_(*program), words_(program->words) {}

  std::string Read() {
    if (!words_.Has(8) || words_.Next() != kProgramMagic) return "it does not begin as one does";
    int64_t counts[6];  // inputs, outputs, weights, tensors, tables, steps
    for (int64_t& count : counts) {
      count = words_.Next();
      if (count < 0 || !words_.Has(count)) return "it has a count of " + Number(count);
    }
    program_.scratch = words_.Next();
    if (program_.scratch < 0) return "its scratch is " + Number(program_.scratch);
    program_.inputs.assign(counts[0], -1);
    program_.outputs.assign(counts[1], {-1, -1});
    std::string error = Weights(counts[2]);
    if (error.empty()) error = Each(counts[3], "tensor", &Reader::Tensor);
    if (error.empty()) error = Each(counts[4], "table", &Reader::Table);
    if (error.empty()) error = Each(counts[5], "step", &Reader::Step);
    if (error.empty()) error = Ends();
    return error;
  }

 private:
  std::string Each(int64_t count, const char* name, std::string (Reader::*read)()) {
    for (int64_t i = 0; i < count; ++i) {
      const std::string error = (this->*read)();
      if (!error.empty()) return std::string(name) + " " + Number(i) + " " + error;
    }
    return "";
  }

  std::string Weights(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (!words_.Has(1)) return kShort;
      program_.weights.push_back(words_.Next());
      if (program_.weights.back() < 1) return "weight " + Number(i) + " is empty";
    }
    return "";
  }

  std::string Tensor() {
    if (!words_.Has(6)) return kShort;
    const int64_t place = words_.Next();
    if (place < 0 || place > 2) return "lies in place " + Number(place);
    Program::Tensor t{static_cast<Program::Place>(place), words_.Next(), 0, 0, 0, 0};
    for (int64_t* size : {&t.start, &t.rows, &t.channels, &t.stride}) *size = words_.Next();
    if (t.start < 0 || t.rows < 1 || t.channels < 1 || t.stride < t.channels) {
      return "has sizes that are none";
    }
    if (t.place == Program::Place::kScratch) {
      if (t.start + (t.rows - 1) * t.stride + t.channels > program_.scratch) {
        return "reaches beyond the scratch memory";
      }
    } else {
      if (t.start + t.channels > t.stride) return "reaches beyond its rows";
      const std::string error = t.place == Program::Place::kInput ? Input(t) : Output(t);
      if (!error.empty()) return error;
    }
    program_.tensors.push_back(t);
    return "";
  }

  std::string Input(const Program::Tensor& t) {
    if (t.index < 0 || t.index >= Count(program_.inputs)) return "is of no input";
    int64_t& size = program_.inputs[t.index];
    if (size >= 0 && size != t.rows * t.stride) return "has another size than its input";
    size = t.rows * t.stride;
    return "";
  }

  std::string Output(const Program::Tensor& t) {
    if (t.index < 0 || t.index >= Count(program_.outputs)) return "is of no output";
    Program::Output& size = program_.outputs[t.index];
    if (size.rows >= 0 && (size.rows != t.rows || size.channels != t.stride)) {
      return "has another size than its output";
    }
    size = {t.rows, t.stride};
    return "";
  }

  std::string Table() {
    if (!words_.Has(2)) return kShort;
    Program::Table table{words_.Next(), words_.Next(), nullptr};
    if (table.rows < 1 || table.taps < 1 || table.rows > words_.left() / table.taps) {
      return "has sizes that are none";
    }
    table.values = words_.Take(table.rows * table.taps);
    program_.tables.push_back(table);
    return "";
  }

  std::string Step() {
    if (!words_.Has(9)) return kShort;
    const int64_t kind = words_.Next(), activation = words_.Next();
    if (kind < 0 || kind >= Program::kKinds) return "is of kind " + Number(kind);
    if (activation < 0 || activation >= kActivations) {
      return "has activation " + Number(activation);
    }
    Program::Step step{static_cast<Program::Kind>(kind),
                       static_cast<Activation>(activation),
                       words_.Next(),
                       words_.Next(),
                       words_.Next(),
                       words_.Next(),
                       words_.Next(),
                       words_.Next(),
                       {}};
    const int64_t ins = words_.Next();
    if (ins < 1 || !words_.Has(ins)) return "has " + Number(ins) + " inputs";
    for (int64_t i = 0; i < ins; ++i) step.ins.push_back(words_.Next());
    std::string error = Indices(step);
    if (error.empty()) error = Sizes(step);
    if (!error.empty()) return error;
    program_.steps.push_back(std::move(step));
    return "";
  }

  std::string Indices(const Program::Step& step) const {
    const auto outside = [](int64_t index, int64_t least, int64_t count) {
      return index < least || index >= count;
    };
    bool wrong = outside(step.out, 0, Count(program_.tensors)) ||
                 outside(step.filter, -1, Count(program_.weights)) ||
                 outside(step.bias, -1, Count(program_.weights)) ||
                 outside(step.slopes, -1, Count(program_.weights)) ||
                 outside(step.table, -1, Count(program_.tables)) ||
                 outside(step.spread, -1, Count(program_.tables));
    for (int64_t in : step.ins) wrong |= outside(in, 0, Count(program_.tensors));
    if (wrong) return "names what the program does not have";
    if (program_.tensors[step.out].place == Program::Place::kInput) return "writes to an input";
    return "";
  }

  std::string Sizes(const Program::Step& step) const {
    const Program::Tensor& out = program_.tensors[step.out];
    if (step.bias >= 0 && program_.weights[step.bias] != out.channels) {
      return "has a bias of " + Number(program_.weights[step.bias]) + " floats for " +
             Number(out.channels) + " channels";
    }
    if (HasSlopes(step.activation) != (step.slopes >= 0) ||
        (step.slopes >= 0 && program_.weights[step.slopes] != out.channels)) {
      return "has other slopes than its activation and its channels want";
    }
    for (int64_t in : step.ins) {
      if (Overlap(program_.tensors[in], out)) return "writes where it reads";
    }
    switch (step.kind) {
      case Program::Kind::kSum:
      case Program::Kind::kProduct:
        return RowSizes(step, out);
      case Program::Kind::kSoftmax:
        return step.ins.size() == 1 && IsBare(step) ? RowSizes(step, out) : kNotBare;
      case Program::Kind::kShuffle:
        return ShuffleSizes(step, out);
      default:
        return TableSizes(step, out);
    }
  }

  // Without weights and an activation.
  static bool IsBare(const Program::Step& step) {
    return step.filter < 0 && step.bias < 0 && step.activation == Activation::kNone;
  }

  std::string RowSizes(const Program::Step& step, const Program::Tensor& out) const {
    if (step.table >= 0 || step.spread >= 0) return "works row by row with a table";
    const bool repeats = step.kind != Program::Kind::kSoftmax;
    for (int64_t in : step.ins) {
      const Program::Tensor& t = program_.tensors[in];
      const bool rows = t.rows == out.rows || (repeats && t.rows == 1);
      if (!rows || t.channels != out.channels) return "combines maps of other sizes";
    }
    if (step.kind == Program::Kind::kProduct && (step.filter >= 0 || step.bias >= 0)) {
      return "is a product with a filter or a bias";
    }
    if (step.filter >= 0 && program_.weights[step.filter] != out.channels) {
      return "has a scale of another size than its channels";
    }
    return "";
  }

  std::string ShuffleSizes(const Program::Step& step, const Program::Tensor& out) const {
    if (step.ins.size() != 1 || !IsBare(step)) return kNotBare;
    if (step.table < 0 || step.spread >= 0) return "needs a table and no spread";
    const Program::Tensor& in = program_.tensors[step.ins[0]];
    const Program::Table& table = program_.tables[step.table];
    if (in.rows != out.rows || table.taps != 1 || table.rows != out.channels ||
        !AllWithin(table.values, table.rows, 0, in.channels)) {
      return "shuffles other channels than it has";
    }
    return "";
  }

  std::string TableSizes(const Program::Step& step, const Program::Tensor& out) const {
    if (step.ins.size() != 1 || step.table < 0) return "needs one input and a table";
    const Program::Tensor& in = program_.tensors[step.ins[0]];
    const Program::Table& table = program_.tables[step.table];
    if (!AllWithin(table.values, table.rows * table.taps, -1, in.rows)) {
      return "has a table that reads outside its input";
    }
    if (step.spreads()) {
      const Program::Table& spread = program_.tables[step.spread];
      if (spread.taps != 1 || !AllWithin(spread.values, spread.rows, 0, table.rows)) {
        return "has a spread that shows what is not computed";
      }
    }
    if (out.rows != (step.spreads() ? program_.tables[step.spread].rows : table.rows)) {
      return "computes another number of rows than its output has";
    }
    return FilterSizes(step, in, table, out);
  }

  std::string FilterSizes(const Program::Step& step, const Program::Tensor& in,
                          const Program::Table& table, const Program::Tensor& out) const {
    const bool convolves = step.kind == Program::Kind::kConvolve;
    if (!convolves && in.channels != out.channels) return "changes the number of channels";
    if (step.kind == Program::Kind::kBlend) {
      if (step.filter >= 0 || step.bias >= 0) return "is a blend with a filter or a bias";
      const bool fits = step.spread >= 0 && program_.tables[step.spread].rows == table.rows &&
                        program_.tables[step.spread].taps == table.taps;
      return fits ? "" : "is a blend of other factors than its table has";
    }
    if (!convolves && step.kind != Program::Kind::kDepthwise) return IsBare(step) ? "" : kNotBare;
    // Each factor is below 2^31 and taps * channels are words of one program: no overflow.
    const int64_t rows = table.taps * in.channels, width = convolves ? out.channels : 1;
    if (step.filter < 0 || program_.weights[step.filter] / width != rows ||
        program_.weights[step.filter] % width != 0) {
      return "has a filter of another size than taps and channels";
    }
    return "";
  }

  std::string Ends() const {
    if (words_.left() > 0) return "it goes on after its end";
    for (int64_t size : program_.inputs) {
      if (size < 0) return "an input has no tensor";
    }
    for (const Program::Output& size : program_.outputs) {
      if (size.rows < 0) return "an output has no tensor";
    }
    return "";
  }

  template <typename T>
  static int64_t Count(const std::vector<T>& list) {
    return static_cast<int64_t>(list.size());
  }

  static constexpr const char* kShort = "ends too early";
  static constexpr const char* kNotBare = "has more inputs, weights or an activation than its kind";
  Program& program_;
  Words words_;
};

}  // namespace

ConvShape Program::Shape(const Step& step) const {
  const Tensor &in = tensors[step.ins[0]], &to = tensors[step.out];
  ConvShape shape;
  shape.batch = 1;
  shape.rows_in = in.rows;
  shape.channels = in.channels;
  shape.taps = step.gathers() ? tables[step.table].taps : 1;
  shape.computed = Computed(step);
  shape.rows_out = to.rows;
  shape.filters = to.channels;
  return shape;
}

bool Overlap(const Program::Tensor& one, const Program::Tensor& other) {
  if (one.place != other.place) return false;
  if (one.place != Program::Place::kScratch && one.index != other.index) return false;
  const Program::Tensor &a = one.start <= other.start ? one : other, &b = &a == &one ? other : one;
  if (a.start + (a.rows - 1) * a.stride + a.channels <= b.start) return false;
  const int64_t column = (b.start - a.start) % a.stride;
  return a.stride != b.stride || column < a.channels || column + b.channels > a.stride;
}

std::string ParseProgram(std::vector<int32_t> words, Program* program) {
  *program = Program();
  program->words = std::move(words);
  const std::string error = Reader(program).Read();
  return error.empty() ? "" : "program must be one that kernels/program.py made: " + error;
}

}  // namespace espace
