// Depthwise convolution and pooling: every variant against the reference, forward and gradients,
// every remainder of columns, misaligned pointers, sentinels around every result, several threads,
// equal values and windows of padding alone.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "core/cpu/depthwise.h"
#include "core/cpu/pooling.h"
#include "core/tests/testing.h"

namespace espace {
namespace {

constexpr double kTolerance = 1e-5;  // of the largest value

enum class Operator { kDepthwise, kMax, kAverage };
constexpr Operator kOperators[] = {Operator::kDepthwise, Operator::kMax, Operator::kAverage};
constexpr const char* kNames[] = {"depthwise", "max", "average"};

// The results of one call.
struct Results {
  Guarded out, grad_rows, grad_filter, grad_bias;

  explicit Results(const ConvShape& s)
      : out(s.batch * s.rows_out * s.filters),
        grad_rows(s.batch * s.rows_in * s.channels),
        grad_filter(s.taps * s.filters),
        grad_bias(s.filters) {}
};

// One call with random contents and its reference results.
class Case {
 public:
  Case(Operator which, const ConvShape& shape, bool spread, unsigned seed)
      : which_(which),
        shape_(shape),
        random_(seed),
        rows_(shape.batch * shape.rows_in * shape.channels),
        filter_(shape.taps * shape.filters),
        bias_(shape.filters),
        grad_out_(shape.batch * shape.rows_out * shape.filters),
        table_(random_.Indices(shape.computed * shape.taps, -1, shape.rows_in - 1)),
        expected_(shape) {
    if (spread) spread_ = random_.Indices(shape.rows_out, 0, shape.computed - 1);
    for (Guarded* values : {&rows_, &filter_, &bias_, &grad_out_}) random_.Fill(*values);
    if (which == Operator::kMax && seed % 2 == 0) random_.FillWithIntegers(rows_, -1, 1);
    if (which == Operator::kDepthwise) {
      activation_ = static_cast<Activation>(random_.Integer(0, 2));
    }
    use_bias_ = random_.Integer(0, 1) != 0;
    if (which == Operator::kDepthwise) {
      MaskedDepthwiseReference(ForwardInto(expected_));
      MaskedDepthwiseGradientsReference(BackwardInto(expected_));
    } else {
      PoolReference(pooling(), ForwardInto(expected_));
      PoolGradientReference(pooling(), BackwardInto(expected_));
    }
  }

  // Prints what differs; returns whether nothing does.
  bool Agrees(const Variant& variant, int threads) {
    Results found(shape_);
    const ParallelFor workers = threads > 1 ? Threads(threads) : Serial();
    if (which_ == Operator::kDepthwise) {
      MaskedDepthwise(variant, ForwardInto(found), workers);
      MaskedDepthwiseGradients(variant, BackwardInto(found), threads, workers);
    } else {
      Pool(variant, pooling(), ForwardInto(found), workers);
      PoolGradient(variant, pooling(), BackwardInto(found), threads, workers);
    }
    bool agrees = Check(expected_.out, found.out, variant, "out") &
                  Check(expected_.grad_rows, found.grad_rows, variant, "grad_rows");
    if (which_ == Operator::kDepthwise) {
      agrees &= Check(expected_.grad_filter, found.grad_filter, variant, "grad_filter") &
                Check(expected_.grad_bias, found.grad_bias, variant, "grad_bias");
    }
    return agrees;
  }

 private:
  Pooling pooling() const { return which_ == Operator::kMax ? Pooling::kMax : Pooling::kAverage; }

  ForwardArgs ForwardInto(Results& to) {
    ForwardArgs args;
    args.shape = shape_;
    args.rows = rows_.data();
    args.filter = filter_.data();
    args.bias = use_bias_ ? bias_.data() : nullptr;
    args.table = table_.data();
    args.spread = spread_.empty() ? nullptr : spread_.data();
    args.activation = activation_;
    args.out = to.out.data();
    return args;
  }

  BackwardArgs BackwardInto(Results& to) {
    BackwardArgs args;
    args.shape = shape_;
    args.rows = rows_.data();
    args.filter = filter_.data();
    args.table = table_.data();
    args.spread = spread_.empty() ? nullptr : spread_.data();
    args.activation = activation_;
    args.out = expected_.out.data();
    args.grad_out = grad_out_.data();
    args.grad_rows = to.grad_rows.data();
    args.grad_filter = to.grad_filter.data();
    args.grad_bias = to.grad_bias.data();
    return args;
  }

  bool Check(const Guarded& expected, const Guarded& found, const Variant& variant,
             const char* what) const {
    if (IsClose(expected, found, kTolerance)) return true;
    std::printf("%s %s %s differs; batch %d rows %d channels %d taps %d computed %d shown %d\n",
                variant.name, kNames[static_cast<int>(which_)], what,
                static_cast<int>(shape_.batch), static_cast<int>(shape_.rows_in),
                static_cast<int>(shape_.channels), static_cast<int>(shape_.taps),
                static_cast<int>(shape_.computed), static_cast<int>(shape_.rows_out));
    return false;
  }

  const Operator which_;
  const ConvShape shape_;
  Random random_;
  Guarded rows_, filter_, bias_, grad_out_;
  const std::vector<int32_t> table_;
  std::vector<int32_t> spread_;
  Results expected_;
  Activation activation_ = Activation::kNone;
  bool use_bias_;
};

int64_t failures = 0, cases = 0;

// multiplier: filters of a channel of the depthwise convolution.
void CheckAll(ConvShape shape, int multiplier, bool spread, unsigned seed) {
  for (Operator which : kOperators) {
    shape.filters = shape.channels * (which == Operator::kDepthwise ? multiplier : 1);
    Case one(which, shape, spread, seed);
    for (const Variant* variant : Variants()) {
      if (!variant->supported()) continue;
      ++cases;
      if (!one.Agrees(*variant, 1 + seed % 3)) {
        ++failures;
        std::printf("  seed %u\n", seed);
      }
    }
  }
}

// Every remainder of the vectors of a block of columns, below and above one block.
void Remainders(int step) {
  for (int channels = 1; channels <= 150; channels += step) {
    CheckAll({2, 9, channels, 4, 12, 12, 0}, 1, false, channels);
  }
}

void RandomShapes(int count) {
  for (int seed = 0; seed < count; ++seed) {
    Random random(seed);
    const bool spread = random.Integer(0, 1) != 0;
    ConvShape shape{random.Integer(1, 4),
                    random.Integer(1, 60),
                    random.Integer(1, 80),
                    random.Integer(1, 10),
                    random.Integer(1, 50),
                    0,
                    0};
    if (seed % 50 == 0) shape.computed = 1200;  // several partial sums
    if (seed % 50 == 1) {                       // and of taps
      shape.rows_in = 2;
      shape.taps = 4096;
    }
    shape.rows_out = spread ? random.Integer(1, 70) : shape.computed;
    CheckAll(shape, random.Integer(1, 3), spread, seed);
  }
}

// The largest of values of which one is not a number is not a number.
void NotANumber() {
  for (const Variant* variant : Variants()) {
    if (!variant->supported()) continue;
    for (int at = 0; at < 3; ++at) {
      std::vector<float> rows(3 * 37, 1.0f), out(37);
      std::fill_n(rows.begin() + at * 37, 37, NAN);
      const int32_t table[] = {0, 1, 2};
      ForwardArgs args;
      args.shape = {1, 3, 37, 3, 1, 1, 37};
      args.rows = rows.data();
      args.table = table;
      args.out = out.data();
      Pool(*variant, Pooling::kMax, args, Serial());
      ++cases;
      for (float value : out) {
        if (!std::isnan(value)) ++failures;
      }
    }
  }
}

// Calls from two threads at once share nothing.
void Together() {
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 2; ++seed) {
    threads.emplace_back([seed] {
      for (Operator which : kOperators) {
        Case one(which, {2, 30, 40, 9, 60, 60, 40}, false, seed);
        for (int i = 0; i < 10; ++i) {
          if (!one.Agrees(BestVariant(), 2)) std::abort();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace espace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode != "threads") {
    espace::Remainders(mode == "short" ? 7 : 1);
    espace::RandomShapes(mode == "short" ? 60 : 400);
    espace::NotANumber();
  }
  espace::Together();
  std::printf("%lld cases of depthwise convolution and pooling, %lld failures\n",
              static_cast<long long>(espace::cases), static_cast<long long>(espace::failures));
  return espace::failures != 0;
}
