// EspaceMaskedConv2D and its gradient as TensorFlow operations on the CPU: checks, types and
// threads; the arithmetic is kernels/core.

#include "core/cpu/masked_conv2d.h"
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

// bias: null for a call without one.
absl::Status ShapeOf(const Tensor& rows, const Tensor& filter, const Tensor& table,
                     const Tensor& spread, bool use_spread, const Tensor* bias, ConvShape* shape) {
  Operands operands;
  operands.rows = SizesOf(rows);
  operands.filter = SizesOf(filter);
  if (bias != nullptr) operands.bias = SizesOf(*bias);
  operands.table = IndicesOf(table);
  if (use_spread) operands.spread = IndicesOf(spread);
  return CheckCall(operands, shape);
}

double Work(const ConvShape& s) {
  return static_cast<double>(s.batch * s.computed) * static_cast<double>(s.taps * s.channels) *
         static_cast<double>(s.filters) / 16;
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
    OP_REQUIRES_OK(context, ShapeOf(rows, filter, table, spread, use_spread_,
                                    use_bias_ ? &bias : nullptr, &shape));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, ShownShape(shape), &out));
    if (out->NumElements() == 0) return;
    ForwardArgs args;
    args.shape = shape;
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
          const ParallelFor workers = Workers(context, Work(shape), &threads);
          MaskedConv2D(BestVariant(), args, threads, workers);
          out_view.WriteTo(out);
        }));
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
    OP_REQUIRES_OK(context, ShapeOf(rows, filter, table, spread, use_spread_, nullptr, &shape));
    OP_REQUIRES_OK(context, CheckGradient("out", out, shape));
    OP_REQUIRES_OK(context, CheckGradient("grad_out", grad_out, shape));
    Tensor *grad_rows = nullptr, *grad_filter = nullptr, *grad_bias = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &grad_rows));
    OP_REQUIRES_OK(context, context->allocate_output(1, filter.shape(), &grad_filter));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({shape.filters}), &grad_bias));
    BackwardArgs args;
    args.shape = shape;
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
                     const ParallelFor workers = Workers(context, Work(shape), &threads);
                     MaskedConv2DGradients(BestVariant(), args, threads, workers);
                     grad_rows_view.WriteTo(grad_rows);
                     grad_filter_view.WriteTo(grad_filter);
                     grad_bias_view.WriteTo(grad_bias);
                   }));
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
