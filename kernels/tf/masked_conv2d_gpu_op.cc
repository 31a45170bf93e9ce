// EspaceMaskedConv2D and its gradient on GPUs, in a library of its own: it holds GPU code, is built
// where nvcc is, and loaded where a GPU is, after the one that defines the operations.
//
// table and spread stay in the CPU's memory, where TensorFlow keeps int32 anyway: there they are
// checked, and inverted, without waiting for the GPU. A kernel keeps what it has prepared of the
// last maps on the GPU; a map that it knows costs a comparison of pointers, or, of a copy, of
// contents.

#include <cuda_runtime.h>

#include <cstring>
#include <list>
#include <string>
#include <vector>

#define EIGEN_USE_GPU
#include "core/cuda/masked_conv2d.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/mutex.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "tensorflow/core/util/determinism.h"

namespace espace {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

absl::Status ToStatus(cudaError_t status) {
  if (status == cudaSuccess) return absl::OkStatus();
  return tensorflow::errors::Internal("the masked convolution on the GPU failed: ",
                                      cudaGetErrorString(status));
}

cudaStream_t StreamOf(OpKernelContext* context) {
  return context->eigen_device<Eigen::GpuDevice>().stream();
}

template <typename T>
constexpr DataType TypeOf() {
  return std::is_same_v<T, float>         ? DataType::kFloat32
         : std::is_same_v<T, Eigen::half> ? DataType::kFloat16
                                          : DataType::kBFloat16;
}

absl::Status InRange(const char* name, const Tensor& indices, int64_t low, int64_t high) {
  const int32_t* values = indices.flat<int32_t>().data();
  for (int64_t i = 0; i < indices.NumElements(); ++i) {
    if (values[i] < low || values[i] >= high) {
      return InvalidArgument(name, " must hold values in [", low, ", ", high, "), got ", values[i]);
    }
  }
  return absl::OkStatus();
}

// All but the values of the indices.
absl::Status ShapeOf(const Tensor& rows, const Tensor& filter, const Tensor& table,
                     const Tensor& spread, bool use_spread, ConvShape* shape) {
  const struct {
    const char* name;
    const char* axes;
    const Tensor& tensor;
    int rank;
  } operands[] = {{"rows", "[B, M, C]", rows, 3},
                  {"filter", "[taps, C, N]", filter, 3},
                  {"table", "[Q, taps]", table, 2},
                  {"spread", "[R]", spread, 1}};
  for (const auto& [name, axes, tensor, rank] : operands) {
    if (tensor.dims() != rank) {
      return InvalidArgument(name, " must be ", axes, ", got ", tensor.shape().DebugString());
    }
  }
  *shape = {rows.dim_size(0),  rows.dim_size(1),
            rows.dim_size(2),  filter.dim_size(0),
            table.dim_size(0), use_spread ? spread.dim_size(0) : table.dim_size(0),
            filter.dim_size(2)};
  if (filter.dim_size(1) != shape->channels) {
    return InvalidArgument("filter must have the ", shape->channels, " channels of rows, got ",
                           filter.shape().DebugString());
  }
  if (table.dim_size(1) != shape->taps) {
    return InvalidArgument("table must have the ", shape->taps, " taps of filter, got ",
                           table.shape().DebugString());
  }
  if (const char* why = CheckSizes(Operation::kConvolution, *shape)) {
    return InvalidArgument(why, ", got rows ", rows.shape().DebugString(), ", filter ",
                           filter.shape().DebugString(), ", table ", table.shape().DebugString(),
                           ", spread ", spread.shape().DebugString());
  }
  return absl::OkStatus();
}

// The last maps of a kernel on the GPU: table, then starts and shown of the inverted spread.
class Maps {
 public:
  absl::Status Find(OpKernelContext* context, const Tensor& table, const Tensor& spread,
                    bool use_spread, const ConvShape& shape, CudaCall* call) {
    tensorflow::mutex_lock lock(mutex_);
    const cudaStream_t stream = StreamOf(context);
    auto found = entries_.begin();
    while (found != entries_.end() &&
           !(found->stream == stream && found->rows_in == shape.rows_in &&
             Same(found->table, table) && Same(found->spread, spread))) {
      ++found;
    }
    if (found == entries_.end()) {
      Entry entry{table, spread, Tensor(), stream, shape.rows_in};
      TF_RETURN_IF_ERROR(Prepare(context, use_spread, shape, &entry));
      entries_.push_front(entry);
      if (entries_.size() > kMost) entries_.pop_back();
    } else {
      entries_.splice(entries_.begin(), entries_, found);
    }
    // The memory outlives the kernels that read it: what is freed can only be given to later work
    // on the same stream.
    call->table = entries_.front().memory.flat<int32_t>().data();
    if (use_spread) {
      call->starts = call->table + shape.computed * shape.taps;
      call->shown = call->starts + shape.computed + 1;
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kMost = 64;

  // Holding table and spread keeps their memory from being used anew, so that equal pointers are
  // equal contents.
  struct Entry {
    Tensor table, spread, memory;
    cudaStream_t stream;
    int64_t rows_in;  // what the table was checked against
  };

  static bool Same(const Tensor& one, const Tensor& other) {
    if (one.shape() != other.shape()) return false;
    const void* a = one.flat<int32_t>().data();
    const void* b = other.flat<int32_t>().data();
    return a == b || std::memcmp(a, b, one.NumElements() * sizeof(int32_t)) == 0;
  }

  static absl::Status Prepare(OpKernelContext* context, bool use_spread, const ConvShape& shape,
                              Entry* entry) {
    TF_RETURN_IF_ERROR(InRange("table", entry->table, -1, shape.rows_in));
    const int64_t size = shape.computed * shape.taps;
    const int32_t* table = entry->table.flat<int32_t>().data();
    std::vector<int32_t> joined(table, table + size);
    if (use_spread) {
      TF_RETURN_IF_ERROR(InRange("spread", entry->spread, 0, shape.computed));
      joined.resize(size + shape.computed + 1 + shape.rows_out);
      InvertSpread(entry->spread.flat<int32_t>().data(), shape.rows_out, shape.computed,
                   joined.data() + size, joined.data() + size + shape.computed + 1);
    }
    TF_RETURN_IF_ERROR(context->allocate_temp(
        tensorflow::DT_INT32, TensorShape({static_cast<int64_t>(joined.size())}), &entry->memory));
    // From memory that is not pinned the call returns when it has been read.
    return ToStatus(cudaMemcpyAsync(entry->memory.flat<int32_t>().data(), joined.data(),
                                    joined.size() * sizeof(int32_t), cudaMemcpyHostToDevice,
                                    entry->stream));
  }

  tensorflow::mutex mutex_;
  std::list<Entry> entries_ TF_GUARDED_BY(mutex_);
};

// What forward and gradient share.
template <typename T>
class MapKernel : public OpKernel {
 public:
  explicit MapKernel(OpKernelConstruction* context) : OpKernel(context) {
    std::string name;
    OP_REQUIRES_OK(context, context->GetAttr("activation", &name));
    activation_ = name == "relu"    ? Activation::kRelu
                  : name == "relu6" ? Activation::kRelu6
                                    : Activation::kNone;
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
  }

 protected:
  absl::Status Start(OpKernelContext* context, CudaCall* call) {
    const Tensor &rows = context->input(0), &filter = context->input(1), &table = context->input(2);
    const Tensor& spread = context->input(3);
    TF_RETURN_IF_ERROR(ShapeOf(rows, filter, table, spread, use_spread_, &call->shape));
    TF_RETURN_IF_ERROR(maps_.Find(context, table, spread, use_spread_, call->shape, call));
    call->type = TypeOf<T>();
    call->activation = activation_;
    call->allow_tf32 = tensorflow::tensor_float_32_execution_enabled();
    call->multiprocessors = context->eigen_device<Eigen::GpuDevice>().getNumGpuMultiProcessors();
    call->rows = rows.flat<T>().data();
    call->filter = filter.flat<T>().data();
    return absl::OkStatus();
  }

  // The computed rows [B, Q, N] must be countable, too: the gradient needs them.
  absl::Status Shown(const ConvShape& shape, TensorShape* shown) {
    TensorShape computed;
    TF_RETURN_IF_ERROR(
        TensorShape::BuildTensorShape({shape.batch, shape.computed, shape.filters}, &computed));
    return TensorShape::BuildTensorShape({shape.batch, shape.rows_out, shape.filters}, shown);
  }

  static absl::Status Allocate(OpKernelContext* context, int64_t bytes, Tensor* scratch) {
    return context->allocate_temp(tensorflow::DT_INT8, TensorShape({bytes}), scratch);
  }

 private:
  Activation activation_;
  bool use_spread_;
  Maps maps_;
};

template <typename T>
class MaskedConv2DGpuOp : public MapKernel<T> {
 public:
  explicit MaskedConv2DGpuOp(OpKernelConstruction* context) : MapKernel<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("use_bias", &use_bias_));
  }

  void Compute(OpKernelContext* context) override {
    CudaCall call;
    OP_REQUIRES_OK(context, this->Start(context, &call));
    const Tensor& bias = context->input(4);
    OP_REQUIRES(context, !use_bias_ || (bias.dims() == 1 && bias.dim_size(0) == call.shape.filters),
                InvalidArgument("bias must be [", call.shape.filters, "], got ",
                                bias.shape().DebugString()));
    TensorShape shown;
    OP_REQUIRES_OK(context, this->Shown(call.shape, &shown));
    Tensor *out = nullptr, scratch;
    OP_REQUIRES_OK(context, context->allocate_output(0, shown, &out));
    call.bias = use_bias_ ? bias.flat<T>().data() : nullptr;
    call.out = out->flat<T>().data();
    OP_REQUIRES_OK(context, this->Allocate(context, ForwardScratch(call), &scratch));
    OP_REQUIRES_OK(context,
                   ToStatus(CudaForward(call, scratch.flat<int8_t>().data(), StreamOf(context))));
  }

 private:
  bool use_bias_;
};

template <typename T>
class MaskedConv2DGradGpuOp : public MapKernel<T> {
 public:
  using MapKernel<T>::MapKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES(context, !tensorflow::OpDeterminismRequired(),
                tensorflow::errors::Unimplemented(
                    "the masked convolution's gradient on GPUs adds in any order: with "
                    "deterministic operations set ESPACE_TF_BACKEND=reference"));
    CudaCall call;
    OP_REQUIRES_OK(context, this->Start(context, &call));
    const Tensor &out = context->input(4), &grad_out = context->input(5);
    TensorShape shown;
    OP_REQUIRES_OK(context, this->Shown(call.shape, &shown));
    OP_REQUIRES(
        context, out.shape() == shown && grad_out.shape() == shown,
        InvalidArgument("out and grad_out must be ", shown.DebugString(), ", got ",
                        out.shape().DebugString(), " and ", grad_out.shape().DebugString()));
    const TensorShape shapes[] = {context->input(0).shape(), context->input(1).shape(),
                                  TensorShape({call.shape.filters})};
    void* gradients[3];
    for (int i = 0; i < 3; ++i) {
      Tensor* gradient = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, shapes[i], &gradient));
      gradients[i] = gradient->flat<T>().data();
    }
    call.out = const_cast<T*>(out.flat<T>().data());
    call.grad_out = grad_out.flat<T>().data();
    call.grad_rows = gradients[0];
    call.grad_filter = gradients[1];
    call.grad_bias = gradients[2];
    Tensor scratch;
    OP_REQUIRES_OK(context, this->Allocate(context, GradientScratch(call), &scratch));
    OP_REQUIRES_OK(context,
                   ToStatus(CudaGradients(call, scratch.flat<int8_t>().data(), StreamOf(context))));
  }
};

#define REGISTER(T)                                           \
  REGISTER_KERNEL_BUILDER(Name("EspaceMaskedConv2D")          \
                              .Device(tensorflow::DEVICE_GPU) \
                              .HostMemory("table")            \
                              .HostMemory("spread")           \
                              .TypeConstraint<T>("T"),        \
                          MaskedConv2DGpuOp<T>);              \
  REGISTER_KERNEL_BUILDER(Name("EspaceMaskedConv2DGrad")      \
                              .Device(tensorflow::DEVICE_GPU) \
                              .HostMemory("table")            \
                              .HostMemory("spread")           \
                              .TypeConstraint<T>("T"),        \
                          MaskedConv2DGradGpuOp<T>);
REGISTER(float)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
#undef REGISTER

}  // namespace
}  // namespace espace
