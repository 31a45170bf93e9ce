// What the TensorFlow operations share: checks, types, threads.
#ifndef ESPACE_TF_KERNELS_TF_OP_COMMON_H_
#define ESPACE_TF_KERNELS_TF_OP_COMMON_H_

#include <algorithm>
#include <functional>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/params.h"
#include "core/team.h"
#include "core/throwing.h"
#include "core/validate.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/util/work_sharder.h"

namespace espace {

// The op's definition allows these names only.
inline Activation ActivationOf(tensorflow::OpKernelConstruction* context) {
  std::string name;
  if (!context->GetAttr("activation", &name).ok()) return Activation::kNone;
  return name == "relu"    ? Activation::kRelu
         : name == "relu6" ? Activation::kRelu6
                           : Activation::kNone;
}

inline Sizes SizesOf(const tensorflow::Tensor& tensor) {
  Sizes sizes;
  sizes.axes = tensor.dims();
  for (int i = 0; i < std::min(sizes.axes, Sizes::kMostAxes); ++i) {
    sizes.size[i] = tensor.dim_size(i);
  }
  return sizes;
}

inline Indices IndicesOf(const tensorflow::Tensor& tensor) {
  return {SizesOf(tensor), tensor.flat<int32_t>().data()};
}

// filter and bias: null for a call without them.
inline Operands OperandsOf(const tensorflow::Tensor& rows, const tensorflow::Tensor* filter,
                           const tensorflow::Tensor& table, const tensorflow::Tensor* spread,
                           const tensorflow::Tensor* bias) {
  Operands operands;
  operands.rows = SizesOf(rows);
  if (filter != nullptr) operands.filter = SizesOf(*filter);
  if (bias != nullptr) operands.bias = SizesOf(*bias);
  operands.table = IndicesOf(table);
  if (spread != nullptr) operands.spread = IndicesOf(*spread);
  return operands;
}

// The checks of the core, as a status.
inline absl::Status CheckCall(const Operands& operands, ConvShape* shape) {
  const std::string error = Validate(operands, shape);
  return error.empty() ? absl::OkStatus() : tensorflow::errors::InvalidArgument(error);
}

inline tensorflow::TensorShape ShownShape(const ConvShape& shape) {
  return tensorflow::TensorShape({shape.batch, shape.rows_out, shape.filters});
}

// What a gradient adds to its forward call.
inline absl::Status CheckGradient(const char* name, const tensorflow::Tensor& tensor,
                                  const ConvShape& shape) {
  if (tensor.shape() == ShownShape(shape)) return absl::OkStatus();
  return tensorflow::errors::InvalidArgument(name, " must be ", ShownShape(shape).DebugString(),
                                             ", got ", tensor.shape().DebugString());
}

// Scratch memory that cannot be had is the caller's error, as a tensor that cannot be had is.
template <typename Body>
absl::Status OrExhausted(const Body& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    return tensorflow::errors::ResourceExhausted("no memory for the masked operator's scratch");
  }
  return absl::OkStatus();
}

// Waking a thread and waiting for it costs more than it saves below so many cycles: a tenth to a
// fifth of a millisecond of work, as long as both take on a virtual machine.
constexpr double kAlone = 5e5;

// The caller's thread.
inline ParallelFor Alone() {
  return [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    if (count > 0) body(0, count);
  };
}

// TensorFlow's own worker threads. cost: about the cycles of the whole call.
inline ParallelFor Workers(tensorflow::OpKernelContext* context, double cost, int* threads) {
  *threads = 1;
  if (cost < kAlone) return Alone();
  const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
  *threads = workers.num_threads;
  return Throwing([&workers, cost](int64_t count,
                                   const std::function<void(int64_t, int64_t)>& body) {
    if (count == 0) return;
    const double each = std::clamp(cost / static_cast<double>(count), 1.0, 1e15);
    tensorflow::Shard(workers.num_threads, workers.workers, count, static_cast<int64_t>(each),
                      body);
  });
}

// The same threads, for bodies that take pieces of work until none is left: those that are too late
// are not waited for (core/team.h).
inline ParallelFor Team(tensorflow::OpKernelContext* context, double cost, int* threads) {
  *threads = 1;
  if (cost < kAlone) return Alone();
  const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
  *threads = workers.num_threads;
  return Throwing([&workers](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    RunTeam(count, body, [&workers](std::function<void()> task) {
      workers.workers->Schedule(std::move(task));
    });
  });
}

// A float view of a tensor: itself, or a converted copy that is written back when it is an output.
template <typename T>
class Floats {
 public:
  explicit Floats(const tensorflow::Tensor& tensor) : size_(tensor.NumElements()) {
    if constexpr (std::is_same_v<T, float>) {
      data_ = const_cast<float*>(tensor.flat<float>().data());
    } else {
      const T* from = tensor.flat<T>().data();
      copy_.resize(size_);
      for (int64_t i = 0; i < size_; ++i) copy_[i] = static_cast<float>(from[i]);
      data_ = copy_.data();
    }
  }
  float* data() const { return data_; }
  void WriteTo(tensorflow::Tensor* tensor) const {
    if constexpr (!std::is_same_v<T, float>) {
      T* to = tensor->flat<T>().data();
      for (int64_t i = 0; i < size_; ++i) to[i] = static_cast<T>(copy_[i]);
    }
  }

 private:
  int64_t size_;
  std::vector<float> copy_;
  float* data_;
};

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_TF_OP_COMMON_H_
