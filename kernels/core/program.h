// A stretch of a network as integers: the program of a fused graph, and its one reader.
#ifndef ESPACE_TF_KERNELS_CORE_PROGRAM_H_
#define ESPACE_TF_KERNELS_CORE_PROGRAM_H_

#include <cstdint>
#include <string>
#include <vector>

#include "core/params.h"

namespace espace {

// As 32-bit words, which kernels/program.py writes:
//   [kProgramMagic, inputs, outputs, weights, tensors, tables, steps, scratch]
//   each weight:  [floats]
//   each tensor:  [place, index, start, rows, channels, stride]
//   each table:   [rows, taps, rows * taps values]; a spread has one tap
//   each step:    [kind, activation, out, filter, bias, slopes, table, spread, number of ins, ins...]
struct Program {
  Program() = default;
  Program(Program&&) = default;  // but no copy: tables point into words
  Program& operator=(Program&&) = default;

  enum class Place : int32_t { kInput = 0, kOutput = 1, kScratch = 2 };
  enum class Kind : int32_t {
    kConvolve = 0,
    kDepthwise = 1,
    kMax = 2,
    kAverage = 3,
    kSum = 4,
    kProduct = 5,
    kSoftmax = 6,
    kBlend = 7,
    kShuffle = 8,
  };
  static constexpr int64_t kKinds = 9;

  // Element (image b, row r, channel c) is number start + r * stride + c of image b, which has
  // rows * stride floats in an input or output, `scratch` floats in scratch memory.
  struct Tensor {
    Place place;
    int64_t index;  // which input or output
    int64_t start, rows, channels, stride;
  };

  struct Table {
    int64_t rows, taps;
    const int32_t* values;  // in words
  };

  // Numbers of tensors, weights and tables; -1: none. What a step computes per output row:
  //   kConvolve   act(bias + sum over taps of in[table] . filter[tap]), filter [taps, C, N]
  //   kDepthwise  act(bias + sum over taps of in[table] * filter[tap]), filter [taps, C]
  //   kMax, kAverage  over the taps that are not -1; 0 where all are; no activation
  //   kSum        act(bias + filter * (sum of ins)), filter [C]; no table; an in of one row is
  //               added to every row
  //   kProduct    act(product of ins); no table; an in of one row multiplies every row
  //   kSoftmax    over the channels of its only in; no table, no activation
  //   kBlend      act(sum over taps of in[table] * factor), spread: a table of the factors' bits,
  //               as large as the other one; no filter, no bias
  //   kShuffle    channel table[n] of its only in as channel n, table [N, 1]; no activation
  // slopes: [N], of activations that have them (params.h).
  struct Step {
    Kind kind;
    Activation activation;
    int64_t out, filter, bias, slopes, table, spread;
    std::vector<int64_t> ins;

    // Whether the table says which rows are read, the spread which computed rows are shown.
    bool gathers() const { return table >= 0 && kind != Kind::kShuffle; }
    bool spreads() const { return spread >= 0 && kind != Kind::kBlend; }
  };

  // Rows that the step computes of one image.
  int64_t Computed(const Step& step) const {
    return step.gathers() ? tables[step.table].rows : tensors[step.out].rows;
  }
  const int32_t* Values(int64_t table) const { return table < 0 ? nullptr : tables[table].values; }
  ConvShape Shape(const Step& step) const;

  struct Output {
    int64_t rows, channels;
  };

  std::vector<int32_t> words;
  std::vector<int64_t> inputs;  // floats per image
  std::vector<Output> outputs;
  std::vector<int64_t> weights;  // floats
  std::vector<Tensor> tensors;
  std::vector<Table> tables;
  std::vector<Step> steps;
  int64_t scratch = 0;  // floats per image
};

// Whether two tensors may share a float: slices of one concatenation, which is to say rows of one
// stride, share none when their columns differ.
bool Overlap(const Program::Tensor& one, const Program::Tensor& other);

constexpr int32_t kProgramMagic = 0x45535032;

// An empty text and the program, when every index and every size in it is such that running it
// touches nothing but its own memory; else what is wrong.
std::string ParseProgram(std::vector<int32_t> words, Program* program);

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_PROGRAM_H_
