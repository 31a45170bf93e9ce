// EspaceMaskedConv2D and its gradient as TensorFlow operations on the CPU: checks, types and
// threads; the arithmetic is kernels/core.

#include <algorithm>
#include <limits>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "core/masked_conv2d.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace espace {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// rows [B, M, C], filter [taps, C, N], table [Q, taps]; unknown sizes stay unknown.
absl::Status CheckShapes(InferenceContext* c, ShapeHandle* rows, ShapeHandle* filter,
                         ShapeHandle* table) {
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, rows));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 3, filter));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, table));
  DimensionHandle unused;
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(*rows, 2), c->Dim(*filter, 1), &unused));
  return c->Merge(c->Dim(*table, 1), c->Dim(*filter, 0), &unused);
}

absl::Status ForwardShape(InferenceContext* c) {
  ShapeHandle rows, filter, table, spread, bias;
  TF_RETURN_IF_ERROR(CheckShapes(c, &rows, &filter, &table));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 1, &spread));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 1, &bias));
  bool use_spread;
  TF_RETURN_IF_ERROR(c->GetAttr("use_spread", &use_spread));
  const DimensionHandle shown = use_spread ? c->Dim(spread, 0) : c->Dim(table, 0);
  c->set_output(0, c->MakeShape({c->Dim(rows, 0), shown, c->Dim(filter, 2)}));
  return absl::OkStatus();
}

absl::Status GradientShape(InferenceContext* c) {
  ShapeHandle rows, filter, table;
  TF_RETURN_IF_ERROR(CheckShapes(c, &rows, &filter, &table));
  c->set_output(0, rows);
  c->set_output(1, filter);
  c->set_output(2, c->Vector(c->Dim(filter, 2)));
  return absl::OkStatus();
}

REGISTER_OP("EspaceMaskedConv2D")
    .Input("rows: T")
    .Input("filter: T")
    .Input("table: int32")
    .Input("spread: int32")
    .Input("bias: T")
    .Output("out: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("activation: {'none', 'relu', 'relu6'} = 'none'")
    .Attr("use_spread: bool")
    .Attr("use_bias: bool")
    .SetShapeFn(ForwardShape)
    .Doc(
        "A convolution whose geometry, mask and interpolation are the integers of table and "
        "spread.");

REGISTER_OP("EspaceMaskedConv2DGrad")
    .Input("rows: T")
    .Input("filter: T")
    .Input("table: int32")
    .Input("spread: int32")
    .Input("out: T")
    .Input("grad_out: T")
    .Output("grad_rows: T")
    .Output("grad_filter: T")
    .Output("grad_bias: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("activation: {'none', 'relu', 'relu6'} = 'none'")
    .Attr("use_spread: bool")
    .SetShapeFn(GradientShape)
    .Doc("The gradients of EspaceMaskedConv2D.");

// The op's definition allows these names only.
Activation ActivationOf(OpKernelConstruction* context) {
  std::string name;
  if (!context->GetAttr("activation", &name).ok()) return Activation::kNone;
  return name == "relu"    ? Activation::kRelu
         : name == "relu6" ? Activation::kRelu6
                           : Activation::kNone;
}

// The smallest and the largest value in one pass without branches.
bool InRange(const Tensor& indices, int64_t low, int64_t high) {
  const auto values = indices.flat<int32_t>();
  int32_t smallest = static_cast<int32_t>(low), largest = static_cast<int32_t>(low);
  for (int64_t i = 0; i < values.size(); ++i) {
    smallest = std::min(smallest, values(i));
    largest = std::max(largest, values(i));
  }
  return values.size() == 0 || (smallest >= low && largest < high);
}

absl::Status ShapeOf(const Tensor& rows, const Tensor& filter, const Tensor& table,
                     const Tensor& spread, bool use_spread, ConvShape* shape) {
  if (rows.dims() != 3)
    return InvalidArgument("rows must be [B, M, C], got ", rows.shape().DebugString());
  if (filter.dims() != 3) {
    return InvalidArgument("filter must be [taps, C, N], got ", filter.shape().DebugString());
  }
  if (table.dims() != 2)
    return InvalidArgument("table must be [Q, taps], got ", table.shape().DebugString());
  if (use_spread && spread.dims() != 1) {
    return InvalidArgument("spread must be [R], got ", spread.shape().DebugString());
  }
  *shape = {rows.dim_size(0),  rows.dim_size(1),
            rows.dim_size(2),  filter.dim_size(0),
            table.dim_size(0), use_spread ? spread.dim_size(0) : table.dim_size(0),
            filter.dim_size(2)};
  // The core may count on at least one of everything but images, and on 32-bit positions.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const struct {
    const char* name;
    int64_t size;
    int64_t least;
  } sizes[] = {
      {"the batch of rows", shape->batch, 0},       {"the positions of rows", shape->rows_in, 1},
      {"the channels of rows", shape->channels, 1}, {"the taps of filter", shape->taps, 1},
      {"the columns of filter", shape->filters, 1}, {"the rows of table", shape->computed, 1},
      {"the length of spread", shape->rows_out, 1}};
  for (const auto& size : sizes) {
    if (size.size < size.least || size.size > kMost) {
      return InvalidArgument(size.name, " must be in [", size.least, ", ", kMost, "], got ",
                             size.size);
    }
  }
  if (filter.dim_size(1) != shape->channels) {
    return InvalidArgument("filter must have the ", shape->channels, " channels of rows, got ",
                           filter.shape().DebugString());
  }
  if (table.dim_size(1) != shape->taps) {
    return InvalidArgument("table must have the ", shape->taps, " taps of filter, got ",
                           table.shape().DebugString());
  }
  if (!InRange(table, -1, shape->rows_in)) {
    return InvalidArgument("table must hold values in [-1, ", shape->rows_in, ")");
  }
  if (use_spread && !InRange(spread, 0, shape->computed)) {
    return InvalidArgument("spread must hold values in [0, ", shape->computed, ")");
  }
  return absl::OkStatus();
}

// [B, R, N], unless that is more than a tensor holds, or [B, Q, N] is, which the gradient needs.
absl::Status OutputShape(const ConvShape& shape, TensorShape* shown) {
  TensorShape computed;
  TF_RETURN_IF_ERROR(
      TensorShape::BuildTensorShape({shape.batch, shape.computed, shape.filters}, &computed));
  return TensorShape::BuildTensorShape({shape.batch, shape.rows_out, shape.filters}, shown);
}

// Scratch memory that cannot be had is the caller's error, as a tensor that cannot be had is.
template <typename Body>
absl::Status OrExhausted(const Body& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    return tensorflow::errors::ResourceExhausted("no memory for the masked convolution's scratch");
  }
  return absl::OkStatus();
}

// TensorFlow's own worker threads.
ParallelFor Workers(OpKernelContext* context, int64_t cost, int* threads) {
  const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
  *threads = workers.num_threads;
  return [&workers, cost](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    if (count == 0) return;
    tensorflow::Shard(workers.num_threads, workers.workers, count,
                      std::max<int64_t>(cost / count, 1), body);
  };
}

// A float view of a tensor: itself, or a converted copy that is written back when it is an output.
template <typename T>
class Floats {
 public:
  explicit Floats(const Tensor& tensor) : size_(tensor.NumElements()) {
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
  void WriteTo(Tensor* tensor) const {
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

int64_t Work(const ConvShape& s) {
  return std::max<int64_t>(s.batch * s.computed * s.taps * s.channels * s.filters / 16, 1);
}

template <typename T>
class MaskedConv2DOp : public OpKernel {
 public:
  explicit MaskedConv2DOp(OpKernelConstruction* context) : OpKernel(context) {
    activation_ = ActivationOf(context);
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
    OP_REQUIRES_OK(context, context->GetAttr("use_bias", &use_bias_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &filter = context->input(1), &table = context->input(2);
    const Tensor &spread = context->input(3), &bias = context->input(4);
    ConvShape shape;
    OP_REQUIRES_OK(context, ShapeOf(rows, filter, table, spread, use_spread_, &shape));
    OP_REQUIRES(
        context, !use_bias_ || (bias.dims() == 1 && bias.dim_size(0) == shape.filters),
        InvalidArgument("bias must be [", shape.filters, "], got ", bias.shape().DebugString()));
    TensorShape shown;
    OP_REQUIRES_OK(context, OutputShape(shape, &shown));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shown, &out));
    if (out->NumElements() == 0) return;
    const Floats<T> rows_view(rows), filter_view(filter), bias_view(bias), out_view(*out);
    ForwardArgs args;
    args.shape = shape;
    args.rows = rows_view.data();
    args.filter = filter_view.data();
    args.bias = use_bias_ ? bias_view.data() : nullptr;
    args.table = table.flat<int32_t>().data();
    args.spread = use_spread_ ? spread.flat<int32_t>().data() : nullptr;
    args.activation = activation_;
    args.out = out_view.data();
    int threads;
    const ParallelFor workers = Workers(context, Work(shape), &threads);
    OP_REQUIRES_OK(context,
                   OrExhausted([&] { MaskedConv2D(BestVariant(), args, threads, workers); }));
    out_view.WriteTo(out);
  }

 private:
  Activation activation_;
  bool use_spread_, use_bias_;
};

template <typename T>
class MaskedConv2DGradOp : public OpKernel {
 public:
  explicit MaskedConv2DGradOp(OpKernelConstruction* context) : OpKernel(context) {
    activation_ = ActivationOf(context);
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &filter = context->input(1), &table = context->input(2);
    const Tensor &spread = context->input(3), &out = context->input(4),
                 &grad_out = context->input(5);
    ConvShape shape;
    OP_REQUIRES_OK(context, ShapeOf(rows, filter, table, spread, use_spread_, &shape));
    TensorShape shown;
    OP_REQUIRES_OK(context, OutputShape(shape, &shown));
    OP_REQUIRES(
        context, out.shape() == shown && grad_out.shape() == shown,
        InvalidArgument("out and grad_out must be ", shown.DebugString(), ", got ",
                        out.shape().DebugString(), " and ", grad_out.shape().DebugString()));
    Tensor *grad_rows = nullptr, *grad_filter = nullptr, *grad_bias = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &grad_rows));
    OP_REQUIRES_OK(context, context->allocate_output(1, filter.shape(), &grad_filter));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({shape.filters}), &grad_bias));
    const Floats<T> rows_view(rows), filter_view(filter), out_view(out), grad_out_view(grad_out);
    const Floats<T> grad_rows_view(*grad_rows), grad_filter_view(*grad_filter),
        grad_bias_view(*grad_bias);
    BackwardArgs args;
    args.shape = shape;
    args.rows = rows_view.data();
    args.filter = filter_view.data();
    args.table = table.flat<int32_t>().data();
    args.spread = use_spread_ ? spread.flat<int32_t>().data() : nullptr;
    args.activation = activation_;
    args.out = out_view.data();
    args.grad_out = grad_out_view.data();
    args.grad_rows = grad_rows_view.data();
    args.grad_filter = grad_filter_view.data();
    args.grad_bias = grad_bias_view.data();
    int threads;
    const ParallelFor workers = Workers(context, Work(shape), &threads);
    OP_REQUIRES_OK(context, OrExhausted([&] {
                     MaskedConv2DGradients(BestVariant(), args, threads, workers);
                   }));
    grad_rows_view.WriteTo(grad_rows);
    grad_filter_view.WriteTo(grad_filter);
    grad_bias_view.WriteTo(grad_bias);
  }

 private:
  Activation activation_;
  bool use_spread_;
};

#define REGISTER(T)                                                                         \
  REGISTER_KERNEL_BUILDER(                                                                  \
      Name("EspaceMaskedConv2D").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),     \
      MaskedConv2DOp<T>);                                                                   \
  REGISTER_KERNEL_BUILDER(                                                                  \
      Name("EspaceMaskedConv2DGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
      MaskedConv2DGradOp<T>);
REGISTER(float)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
#undef REGISTER

}  // namespace
}  // namespace espace
