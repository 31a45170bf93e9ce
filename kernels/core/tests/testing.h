// What the tests of the core share: guarded memory, threads, random contents, comparison.
#ifndef ESPACE_TF_KERNELS_CORE_TESTS_TESTING_H_
#define ESPACE_TF_KERNELS_CORE_TESTS_TESTING_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "core/params.h"

namespace espace {

constexpr float kSentinel = 777.0f;

// Values between two sentinels: at the beginning of a cache line, or off every alignment but that
// of a float.
class Guarded {
 public:
  explicit Guarded(int64_t size, float value = NAN, bool aligned = false)
      : size_(size), values_(size + 2 + kLine, value) {
    const auto at = [this] { return reinterpret_cast<uintptr_t>(data()) / sizeof(float) % kLine; };
    while ((at() == 0) != aligned) ++first_;
    values_[first_ - 1] = values_[first_ + size_] = kSentinel;
  }
  Guarded(Guarded&&) = default;
  Guarded(const Guarded& other) : Guarded(other.size_) {
    std::copy_n(other.data() - 1, size_ + 2, data() - 1);  // with the sentinels
  }

  float* data() { return values_.data() + first_; }
  const float* data() const { return values_.data() + first_; }
  int64_t size() const { return size_; }
  bool intact() const {
    return values_[first_ - 1] == kSentinel && values_[first_ + size_] == kSentinel;
  }

 private:
  static constexpr int64_t kLine = 16;
  int64_t size_, first_ = 1;
  std::vector<float> values_;
};

// Whether found equals expected to tolerance times the largest expected value (or 1), and nothing
// was written beside it.
inline bool IsClose(const Guarded& expected, const Guarded& found, double tolerance) {
  double largest = 1.0, error = 0.0;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(expected.data()[i] - found.data()[i]);
    error = std::isnan(difference) ? INFINITY : std::max(error, difference);
    largest = std::max(largest, std::fabs(double{expected.data()[i]}));
  }
  return found.intact() && error <= tolerance * largest;
}

// The same where expected values may be infinite, or no number: found must be so too.
inline bool IsCloseOrOdd(Guarded expected, Guarded found, double tolerance) {
  bool odd = true;
  for (int64_t i = 0; i < expected.size(); ++i) {
    float &wanted = expected.data()[i], &given = found.data()[i];
    if (std::isfinite(wanted)) continue;
    odd &= std::isnan(wanted) ? std::isnan(given) : wanted == given;
    wanted = given = 0.0f;
  }
  return odd && IsClose(expected, found, tolerance);
}

// Pieces in turn on several threads.
inline ParallelFor Threads(int threads) {
  return [threads](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) {
      const int64_t begin = count * i / threads, end = count * (i + 1) / threads;
      if (begin < end) workers.emplace_back([&body, begin, end] { body(begin, end); });
    }
    for (std::thread& worker : workers) worker.join();
  };
}

inline ParallelFor Serial() {
  return [](int64_t count, const std::function<void(int64_t, int64_t)>& body) { body(0, count); };
}

// Seeded integers and contents.
class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  int Integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }

  void Fill(Guarded& values) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < values.size(); ++i) values.data()[i] = normal(engine_);
  }

  // Few different values, so that many are equal.
  void FillWithIntegers(Guarded& values, int low, int high) {
    for (int64_t i = 0; i < values.size(); ++i) {
      values.data()[i] = static_cast<float>(Integer(low, high));
    }
  }

  std::vector<int32_t> Indices(int64_t count, int low, int high) {
    std::vector<int32_t> indices(count);
    for (int32_t& index : indices) index = Integer(low, high);
    return indices;
  }

 private:
  std::mt19937 engine_;
};

// A kernel's windows over a map of at most size x size, some of them left out.
inline std::vector<int32_t> WindowTable(Random& random, int size, int64_t* rows_in,
                                        int64_t* taps) {
  const int height = random.Integer(1, size), width = random.Integer(1, size);
  const int kernel = random.Integer(1, 5), stride = random.Integer(1, 3);
  const int before = random.Integer(0, kernel), kept = random.Integer(0, 2);
  std::vector<int32_t> table;
  for (int y = -before; y < height; y += stride) {
    for (int x = -before; x < width; x += stride) {
      if (kept == 0 && random.Integer(0, 2) == 0) continue;
      for (int dy = 0; dy < kernel; ++dy) {
        for (int dx = 0; dx < kernel; ++dx) {
          const bool inside = y + dy >= 0 && y + dy < height && x + dx >= 0 && x + dx < width;
          table.push_back(inside ? (y + dy) * width + x + dx : -1);
        }
      }
    }
  }
  *rows_in = height * width;
  *taps = kernel * kernel;
  if (table.empty()) table.assign(*taps, 0);
  return table;
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_TESTS_TESTING_H_
