// EspaceMaskedDepthwiseConv2D, EspacePool and their gradients as TensorFlow operations on the CPU:
// what a network needs between masked convolutions; the arithmetic is kernels/core.

#include "core/cpu/depthwise.h"
#include "core/cpu/pooling.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf/op_common.h"

namespace espace {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// What is shown of a table: the length of spread where it is used. Input spread follows table.
absl::Status ShownRows(InferenceContext* c, int table_index, DimensionHandle* shown) {
  ShapeHandle table, spread;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(table_index), 2, &table));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(table_index + 1), 1, &spread));
  bool use_spread;
  TF_RETURN_IF_ERROR(c->GetAttr("use_spread", &use_spread));
  *shown = use_spread ? c->Dim(spread, 0) : c->Dim(table, 0);
  return absl::OkStatus();
}

// rows [B, M, C], filter [taps, C, multiplier], table [Q, taps]; unknown sizes stay unknown.
absl::Status DepthwiseOperands(InferenceContext* c, ShapeHandle* rows, ShapeHandle* filter,
                               DimensionHandle* columns) {
  ShapeHandle table;
  DimensionHandle channels, unused;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, rows));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 3, filter));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &table));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(*rows, 2), c->Dim(*filter, 1), &channels));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(table, 1), c->Dim(*filter, 0), &unused));
  return c->Multiply(channels, c->Dim(*filter, 2), columns);
}

absl::Status DepthwiseShape(InferenceContext* c) {
  ShapeHandle rows, filter, bias;
  DimensionHandle columns, shown;
  TF_RETURN_IF_ERROR(DepthwiseOperands(c, &rows, &filter, &columns));
  TF_RETURN_IF_ERROR(ShownRows(c, 2, &shown));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 1, &bias));
  c->set_output(0, c->MakeShape({c->Dim(rows, 0), shown, columns}));
  return absl::OkStatus();
}

absl::Status DepthwiseGradientShape(InferenceContext* c) {
  ShapeHandle rows, filter;
  DimensionHandle columns;
  TF_RETURN_IF_ERROR(DepthwiseOperands(c, &rows, &filter, &columns));
  c->set_output(0, rows);
  c->set_output(1, filter);
  c->set_output(2, c->Vector(columns));
  return absl::OkStatus();
}

absl::Status PoolShape(InferenceContext* c) {
  ShapeHandle rows;
  DimensionHandle shown;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &rows));
  TF_RETURN_IF_ERROR(ShownRows(c, 1, &shown));
  c->set_output(0, c->MakeShape({c->Dim(rows, 0), shown, c->Dim(rows, 2)}));
  return absl::OkStatus();
}

absl::Status PoolGradientShape(InferenceContext* c) {
  ShapeHandle rows;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &rows));
  c->set_output(0, rows);
  return absl::OkStatus();
}

REGISTER_OP("EspaceMaskedDepthwiseConv2D")
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
    .SetShapeFn(DepthwiseShape)
    .Doc("A depthwise convolution over an index table.");

REGISTER_OP("EspaceMaskedDepthwiseConv2DGrad")
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
    .SetShapeFn(DepthwiseGradientShape)
    .Doc("The gradients of EspaceMaskedDepthwiseConv2D.");

REGISTER_OP("EspacePool")
    .Input("rows: T")
    .Input("table: int32")
    .Input("spread: int32")
    .Output("out: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("kind: {'max', 'avg'}")
    .Attr("use_spread: bool")
    .SetShapeFn(PoolShape)
    .Doc("The largest value or the mean of what each row of an index table reads.");

REGISTER_OP("EspacePoolGrad")
    .Input("rows: T")
    .Input("table: int32")
    .Input("spread: int32")
    .Input("grad_out: T")
    .Output("grad_rows: T")
    .Attr("T: {float, half, bfloat16}")
    .Attr("kind: {'max', 'avg'}")
    .Attr("use_spread: bool")
    .SetShapeFn(PoolGradientShape)
    .Doc("The gradient of EspacePool.");

// filter and bias: null for a call without them.
Operands OperandsOf(const Tensor& rows, const Tensor* filter, const Tensor& table,
                    const Tensor& spread, bool use_spread, const Tensor* bias) {
  Operands operands;
  operands.rows = SizesOf(rows);
  if (filter != nullptr) operands.filter = SizesOf(*filter);
  if (bias != nullptr) operands.bias = SizesOf(*bias);
  operands.table = IndicesOf(table);
  if (use_spread) operands.spread = IndicesOf(spread);
  operands.depthwise = filter != nullptr;
  return operands;
}

// About the cycles of a call: one per value read.
double Work(const ConvShape& s) {
  return static_cast<double>(s.batch * s.computed) * static_cast<double>(s.taps) *
         static_cast<double>(s.filters) / 4;
}

template <typename T>
class DepthwiseOp : public OpKernel {
 public:
  explicit DepthwiseOp(OpKernelConstruction* context)
      : OpKernel(context), activation_(ActivationOf(context)) {
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
    OP_REQUIRES_OK(context, context->GetAttr("use_bias", &use_bias_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &filter = context->input(1), &table = context->input(2),
                 &spread = context->input(3), &bias = context->input(4);
    ForwardArgs args;
    OP_REQUIRES_OK(context, CheckCall(OperandsOf(rows, &filter, table, spread, use_spread_,
                                                 use_bias_ ? &bias : nullptr),
                                      &args.shape));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, ShownShape(args.shape), &out));
    if (out->NumElements() == 0) return;
    args.table = table.flat<int32_t>().data();
    args.spread = use_spread_ ? spread.flat<int32_t>().data() : nullptr;
    args.activation = activation_;
    OP_REQUIRES_OK(
        context, OrExhausted([&] {
          const Floats<T> rows_view(rows), filter_view(filter), bias_view(bias), out_view(*out);
          args.rows = rows_view.data();
          args.filter = filter_view.data();
          args.bias = use_bias_ ? bias_view.data() : nullptr;
          args.out = out_view.data();
          int threads;
          MaskedDepthwise(BestVariant(), args, Workers(context, Work(args.shape), &threads));
          out_view.WriteTo(out);
        }));
  }

 private:
  const Activation activation_;
  bool use_spread_, use_bias_;
};

template <typename T>
class DepthwiseGradOp : public OpKernel {
 public:
  explicit DepthwiseGradOp(OpKernelConstruction* context)
      : OpKernel(context), activation_(ActivationOf(context)) {
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &filter = context->input(1), &table = context->input(2),
                 &spread = context->input(3), &out = context->input(4),
                 &grad_out = context->input(5);
    BackwardArgs args;
    OP_REQUIRES_OK(
        context,
        CheckCall(OperandsOf(rows, &filter, table, spread, use_spread_, nullptr), &args.shape));
    OP_REQUIRES_OK(context, CheckGradient("out", out, args.shape));
    OP_REQUIRES_OK(context, CheckGradient("grad_out", grad_out, args.shape));
    Tensor *grad_rows = nullptr, *grad_filter = nullptr, *grad_bias = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &grad_rows));
    OP_REQUIRES_OK(context, context->allocate_output(1, filter.shape(), &grad_filter));
    OP_REQUIRES_OK(context,
                   context->allocate_output(2, TensorShape({args.shape.filters}), &grad_bias));
    args.table = table.flat<int32_t>().data();
    args.spread = use_spread_ ? spread.flat<int32_t>().data() : nullptr;
    args.activation = activation_;
    OP_REQUIRES_OK(context, OrExhausted([&] {
                     const Floats<T> rows_view(rows), filter_view(filter), out_view(out),
                         grad_out_view(grad_out), grad_rows_view(*grad_rows),
                         grad_filter_view(*grad_filter), grad_bias_view(*grad_bias);
                     args.rows = rows_view.data();
                     args.filter = filter_view.data();
                     args.out = out_view.data();
                     args.grad_out = grad_out_view.data();
                     args.grad_rows = grad_rows_view.data();
                     args.grad_filter = grad_filter_view.data();
                     args.grad_bias = grad_bias_view.data();
                     int threads;
                     const ParallelFor workers = Workers(context, Work(args.shape), &threads);
                     MaskedDepthwiseGradients(BestVariant(), args, threads, workers);
                     grad_rows_view.WriteTo(grad_rows);
                     grad_filter_view.WriteTo(grad_filter);
                     grad_bias_view.WriteTo(grad_bias);
                   }));
  }

 private:
  const Activation activation_;
  bool use_spread_;
};

// The op's definition allows "max" and "avg" only.
Pooling PoolingOf(OpKernelConstruction* context) {
  std::string kind;
  return context->GetAttr("kind", &kind).ok() && kind == "max" ? Pooling::kMax : Pooling::kAverage;
}

template <typename T>
class PoolOp : public OpKernel {
 public:
  explicit PoolOp(OpKernelConstruction* context) : OpKernel(context), pooling_(PoolingOf(context)) {
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &table = context->input(1), &spread = context->input(2);
    ForwardArgs args;
    OP_REQUIRES_OK(
        context,
        CheckCall(OperandsOf(rows, nullptr, table, spread, use_spread_, nullptr), &args.shape));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, ShownShape(args.shape), &out));
    if (out->NumElements() == 0) return;
    args.table = table.flat<int32_t>().data();
    args.spread = use_spread_ ? spread.flat<int32_t>().data() : nullptr;
    OP_REQUIRES_OK(context, OrExhausted([&] {
                     const Floats<T> rows_view(rows), out_view(*out);
                     args.rows = rows_view.data();
                     args.out = out_view.data();
                     int threads;
                     Pool(BestVariant(), pooling_, args,
                          Workers(context, Work(args.shape), &threads));
                     out_view.WriteTo(out);
                   }));
  }

 private:
  const Pooling pooling_;
  bool use_spread_;
};

template <typename T>
class PoolGradOp : public OpKernel {
 public:
  explicit PoolGradOp(OpKernelConstruction* context)
      : OpKernel(context), pooling_(PoolingOf(context)) {
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &table = context->input(1), &spread = context->input(2),
                 &grad_out = context->input(3);
    BackwardArgs args;
    OP_REQUIRES_OK(
        context,
        CheckCall(OperandsOf(rows, nullptr, table, spread, use_spread_, nullptr), &args.shape));
    OP_REQUIRES_OK(context, CheckGradient("grad_out", grad_out, args.shape));
    Tensor* grad_rows = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &grad_rows));
    args.table = table.flat<int32_t>().data();
    args.spread = use_spread_ ? spread.flat<int32_t>().data() : nullptr;
    OP_REQUIRES_OK(context, OrExhausted([&] {
                     const Floats<T> rows_view(rows), grad_out_view(grad_out),
                         grad_rows_view(*grad_rows);
                     args.rows = rows_view.data();
                     args.grad_out = grad_out_view.data();
                     args.grad_rows = grad_rows_view.data();
                     int threads;
                     const ParallelFor workers = Workers(context, Work(args.shape), &threads);
                     PoolGradient(BestVariant(), pooling_, args, threads, workers);
                     grad_rows_view.WriteTo(grad_rows);
                   }));
  }

 private:
  const Pooling pooling_;
  bool use_spread_;
};

#define REGISTER_ONE(NAME, KERNEL, T)                                                       \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
                          KERNEL<T>)
#define REGISTER(T)                                                    \
  REGISTER_ONE("EspaceMaskedDepthwiseConv2D", DepthwiseOp, T);         \
  REGISTER_ONE("EspaceMaskedDepthwiseConv2DGrad", DepthwiseGradOp, T); \
  REGISTER_ONE("EspacePool", PoolOp, T);                               \
  REGISTER_ONE("EspacePoolGrad", PoolGradOp, T);
REGISTER(float)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
#undef REGISTER
#undef REGISTER_ONE

}  // namespace
}  // namespace espace
