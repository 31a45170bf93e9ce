// Every variant that this processor runs against the reference: forward and gradients, every
// remainder of rows and columns, misaligned pointers, sentinels around every result, several
// threads.
//   make core-test          about 10 s
//   make core-test-sanitized  the same, shorter, under AddressSanitizer and UBSan
//   make core-test-threads  two calls at once under ThreadSanitizer
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/cpu/convolution.h"
#include "core/cpu/masked_conv2d.h"
#include "core/tests/testing.h"

namespace espace {
namespace {

// Of the largest value, in sums of at most a few thousand terms, which kRelu6 may have cut to 6.
constexpr double kTolerance = 2e-5;

// One call with random contents, its reference results, and the comparison of a variant with them.
class Case {
 public:
  Case(const ConvShape& shape, bool spread, unsigned seed, bool aligned = false)
      : shape_(shape),
        aligned_(aligned),
        random_(seed),
        rows_(shape.batch * shape.rows_in * shape.channels),
        filter_(shape.taps * shape.channels * shape.filters),
        bias_(shape.filters),
        grad_out_(shape.batch * shape.rows_out * shape.filters),
        table_(shape.computed * shape.taps),
        spread_(spread ? shape.rows_out : 0),
        out_(grad_out_.size()),
        grad_rows_(rows_.size()),
        grad_filter_(filter_.size()),
        grad_bias_(bias_.size()) {
    for (Guarded* values : {&rows_, &filter_, &bias_, &grad_out_}) Fill(*values);
    for (int32_t& row : table_) row = Integer(-1, static_cast<int>(shape.rows_in) - 1);
    for (int32_t& row : spread_) row = Integer(0, static_cast<int>(shape.computed) - 1);
    activation_ = static_cast<Activation>(Integer(0, 2));
    use_bias_ = Integer(0, 1) != 0;
    MaskedConv2DReference(ForwardInto(out_));
    MaskedConv2DGradientsReference(BackwardInto(grad_rows_, grad_filter_, grad_bias_));
  }

  // Prints what differs; returns whether nothing does.
  bool Agrees(const Variant& variant, int threads) {
    Guarded out(out_.size(), NAN, aligned_);
    Guarded rows(rows_.size()), filter(filter_.size()), bias(bias_.size());
    const ParallelFor workers = threads > 1 ? Threads(threads) : Serial();
    MaskedConv2D(variant, ForwardInto(out), threads, workers);
    MaskedConv2DGradients(variant, BackwardInto(rows, filter, bias), threads, workers);
    const bool agrees = Close(out_, out, variant, "out") &
                        Close(grad_rows_, rows, variant, "grad_rows") &
                        Close(grad_filter_, filter, variant, "grad_filter") &
                        Close(grad_bias_, bias, variant, "grad_bias");
    return agrees;
  }

 private:
  int Integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  void Fill(Guarded& values) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < values.size(); ++i) values.data()[i] = normal(random_);
  }

  ForwardArgs ForwardInto(Guarded& out) {
    ForwardArgs args;
    args.shape = shape_;
    args.rows = rows_.data();
    args.filter = filter_.data();
    args.bias = use_bias_ ? bias_.data() : nullptr;
    args.table = table_.data();
    args.spread = spread_.empty() ? nullptr : spread_.data();
    args.activation = activation_;
    args.out = out.data();
    return args;
  }

  BackwardArgs BackwardInto(Guarded& rows, Guarded& filter, Guarded& bias) {
    BackwardArgs args;
    args.shape = shape_;
    args.rows = rows_.data();
    args.filter = filter_.data();
    args.table = table_.data();
    args.spread = spread_.empty() ? nullptr : spread_.data();
    args.activation = activation_;
    args.out = out_.data();
    args.grad_out = grad_out_.data();
    args.grad_rows = rows.data();
    args.grad_filter = filter.data();
    args.grad_bias = bias.data();
    return args;
  }

  bool Close(Guarded& expected, Guarded& found, const Variant& variant, const char* what) const {
    double largest = 1.0, error = 0.0;
    for (int64_t i = 0; i < expected.size(); ++i) {
      const double difference = std::fabs(expected.data()[i] - found.data()[i]);
      error = std::isnan(difference) ? INFINITY : std::max(error, difference);
      largest = std::max(largest, std::fabs(double{expected.data()[i]}));
    }
    if (found.intact() && error <= kTolerance * largest) return true;
    std::printf(
        "%s %s: error %g of %g%s; batch %d rows %d channels %d taps %d computed %d shown %d "
        "filters %d\n",
        variant.name, what, error, largest, found.intact() ? "" : ", wrote outside",
        static_cast<int>(shape_.batch), static_cast<int>(shape_.rows_in),
        static_cast<int>(shape_.channels), static_cast<int>(shape_.taps),
        static_cast<int>(shape_.computed), static_cast<int>(shape_.rows_out),
        static_cast<int>(shape_.filters));
    return false;
  }

  const ConvShape shape_;
  const bool aligned_;
  std::mt19937 random_;
  Guarded rows_, filter_, bias_, grad_out_;
  std::vector<int32_t> table_, spread_;
  Guarded out_, grad_rows_, grad_filter_, grad_bias_;
  Activation activation_;
  bool use_bias_;
};

int64_t failures = 0, cases = 0;

void Check(const ConvShape& shape, bool spread, unsigned seed, bool aligned = false) {
  Case one(shape, spread, seed, aligned);
  for (const Variant* variant : Variants()) {
    if (!variant->supported()) continue;
    ++cases;
    if (!one.Agrees(*variant, 1 + seed % 3)) {
      ++failures;
      std::printf("  seed %u\n", seed);
    }
  }
}

// Every remainder of a tile's rows and of its columns, below and above one tile.
void Remainders(int step) {
  for (int computed = 1; computed <= 2 * kMaxTileRows + 1; ++computed) {
    for (int filters = 1 + computed % step; filters <= 2 * kMaxTileColumns + 1; filters += step) {
      Check({1, 5, 17, 2, computed, computed, filters}, false, computed * 1000 + filters);
    }
  }
  for (int channels = 1; channels <= 2 * kMaxTileColumns + 1; channels += step) {
    for (int taps = 1; taps <= 10; taps += 3) {
      Check({2, 9, channels, taps, 40, 40, 20}, false, channels * 1000 + taps);
    }
  }
}

void RandomShapes(int count) {
  for (int seed = 0; seed < count; ++seed) {
    std::mt19937 random(seed);
    const auto integer = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    const bool spread = integer(0, 1) != 0;
    ConvShape shape{integer(1, 3),  integer(1, 60), integer(1, 40),
                    integer(1, 10), integer(1, 50), 0,
                    integer(1, 150)};
    shape.rows_out = spread ? integer(1, 70) : shape.computed;
    if (seed % 50 == 0) shape.computed = shape.rows_out = 700;  // several blocks
    Check(shape, spread, seed);
  }
}

// Outputs large enough to be written past the caches: rows of whole cache lines and others; shown
// once, often and never.
void Streams() {
  for (int filters : {16, 40, 84, 112}) {
    for (bool spread : {false, true}) {
      const int64_t rows = Convolution::kStreamFloats / (2 * filters) + 1;
      Check({2, 30, 3, 2, rows, rows, filters}, spread, filters, true);
    }
    Guarded out(filters, NAN, true);
    const int32_t table = 0;
    for (const Variant* variant : Variants()) {
      const Convolution one(*variant, {1, 1, 1, 1, 1, 1, filters}, &table, nullptr, true);
      ++cases;
      const bool whole = filters % 16 == 0 && variant->stream != nullptr;
      if (one.CanStream({out.data(), filters, filters}) == whole) continue;
      ++failures;
      std::printf("%s: rows of %d floats are taken for what they are not\n", variant->name,
                  filters);
    }
  }
}

// Calls from two threads at once share nothing.
void Together() {
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 2; ++seed) {
    threads.emplace_back([seed] {
      Case one({2, 30, 20, 9, 60, 60, 70}, false, seed);
      for (int i = 0; i < 20; ++i) {
        if (!one.Agrees(BestVariant(), 2)) std::abort();
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
    espace::Streams();
  }
  espace::Together();
  std::printf("%lld cases, %lld failures, fastest variant %s\n",
              static_cast<long long>(espace::cases), static_cast<long long>(espace::failures),
              espace::BestVariant().name);
  return espace::failures != 0;
}
