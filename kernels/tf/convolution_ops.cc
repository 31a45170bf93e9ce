// EspaceMaskedConv2D, EspaceMaskedDepthwiseConv2D and their gradients as TensorFlow operations on
// the CPU: checks, types and threads; the arithmetic is kernels/core.

#include "core/cpu/depthwise.h"
#include "core/cpu/masked_conv2d.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf/op_common.h"
#include "tf/shapes.h"

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

// Every output channel reads every channel: filter [taps, C, N].
struct Full {
  static constexpr bool kDepthwise = false;
  // About the cycles of a call.
  static double Work(const ConvShape& s) {
    return static_cast<double>(s.batch * s.computed) * static_cast<double>(s.taps * s.channels) *
           static_cast<double>(s.filters) / 16;
  }
  static void Forward(const ForwardArgs& args, int threads, const ParallelFor& workers) {
    MaskedConv2D(BestVariant(), args, threads, workers);
  }
  static void Backward(const BackwardArgs& args, int threads, const ParallelFor& workers) {
    MaskedConv2DGradients(BestVariant(), args, threads, workers);
  }
};

// A channel has filters of its own: filter [taps, C, multiplier].
struct Depthwise {
  static constexpr bool kDepthwise = true;
  static double Work(const ConvShape& s) {
    return static_cast<double>(s.batch * s.computed) * static_cast<double>(s.taps) *
           static_cast<double>(s.filters) / 4;
  }
  static void Forward(const ForwardArgs& args, int, const ParallelFor& workers) {
    MaskedDepthwise(BestVariant(), args, workers);
  }
  static void Backward(const BackwardArgs& args, int threads, const ParallelFor& workers) {
    MaskedDepthwiseGradients(BestVariant(), args, threads, workers);
  }
};

// rows [B, M, C], filter as above, table [Q, taps]; unknown sizes stay unknown.
template <typename Kind>
absl::Status CheckShapes(InferenceContext* c, ShapeHandle* rows, ShapeHandle* filter,
                         DimensionHandle* columns) {
  ShapeHandle table;
  DimensionHandle channels, unused;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, rows));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 3, filter));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 2, &table));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(*rows, 2), c->Dim(*filter, 1), &channels));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(table, 1), c->Dim(*filter, 0), &unused));
  *columns = c->Dim(*filter, 2);
  return Kind::kDepthwise ? c->Multiply(channels, *columns, columns) : absl::OkStatus();
}

template <typename Kind>
absl::Status ForwardShape(InferenceContext* c) {
  ShapeHandle rows, filter, bias;
  DimensionHandle columns, shown;
  TF_RETURN_IF_ERROR(CheckShapes<Kind>(c, &rows, &filter, &columns));
  TF_RETURN_IF_ERROR(ShownRows(c, 2, &shown));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 1, &bias));
  c->set_output(0, c->MakeShape({c->Dim(rows, 0), shown, columns}));
  return absl::OkStatus();
}

template <typename Kind>
absl::Status GradientShape(InferenceContext* c) {
  ShapeHandle rows, filter;
  DimensionHandle columns;
  TF_RETURN_IF_ERROR(CheckShapes<Kind>(c, &rows, &filter, &columns));
  c->set_output(0, rows);
  c->set_output(1, filter);
  c->set_output(2, c->Vector(columns));
  return absl::OkStatus();
}

#define REGISTER_PAIR(NAME, KIND, DOC)                        \
  REGISTER_OP(NAME)                                           \
      .Input("rows: T")                                       \
      .Input("filter: T")                                     \
      .Input("table: int32")                                  \
      .Input("spread: int32")                                 \
      .Input("bias: T")                                       \
      .Output("out: T")                                       \
      .Attr("T: {float, half, bfloat16}")                     \
      .Attr("activation: {'none', 'relu', 'relu6'} = 'none'") \
      .Attr("use_spread: bool")                               \
      .Attr("use_bias: bool")                                 \
      .SetShapeFn(ForwardShape<KIND>)                         \
      .Doc(DOC);                                              \
  REGISTER_OP(NAME "Grad")                                    \
      .Input("rows: T")                                       \
      .Input("filter: T")                                     \
      .Input("table: int32")                                  \
      .Input("spread: int32")                                 \
      .Input("out: T")                                        \
      .Input("grad_out: T")                                   \
      .Output("grad_rows: T")                                 \
      .Output("grad_filter: T")                               \
      .Output("grad_bias: T")                                 \
      .Attr("T: {float, half, bfloat16}")                     \
      .Attr("activation: {'none', 'relu', 'relu6'} = 'none'") \
      .Attr("use_spread: bool")                               \
      .SetShapeFn(GradientShape<KIND>)                        \
      .Doc("The gradients of " NAME ".");
REGISTER_PAIR("EspaceMaskedConv2D", Full,
              "A convolution whose geometry, mask and interpolation are the integers of table and "
              "spread.")
REGISTER_PAIR("EspaceMaskedDepthwiseConv2D", Depthwise,
              "A depthwise convolution over an index table.")
#undef REGISTER_PAIR

template <typename T, typename Kind>
class ConvolutionOp : public OpKernel {
 public:
  explicit ConvolutionOp(OpKernelConstruction* context)
      : OpKernel(context), activation_(ActivationOf(context)) {
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
    OP_REQUIRES_OK(context, context->GetAttr("use_bias", &use_bias_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &filter = context->input(1), &table = context->input(2),
                 &spread = context->input(3), &bias = context->input(4);
    Operands operands = OperandsOf(rows, &filter, table, use_spread_ ? &spread : nullptr,
                                   use_bias_ ? &bias : nullptr);
    operands.depthwise = Kind::kDepthwise;
    ForwardArgs args;
    OP_REQUIRES_OK(context, CheckCall(operands, &args.shape));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, ShownShape(args.shape), &out));
    if (out->NumElements() == 0) return;
    args.table = operands.table.values;
    args.spread = operands.spread ? operands.spread->values : nullptr;
    args.activation = activation_;
    OP_REQUIRES_OK(context, OrExhausted([&] {
                     const Floats<T> rows_view(rows), filter_view(filter), bias_view(bias),
                         out_view(*out);
                     args.rows = rows_view.data();
                     args.filter = filter_view.data();
                     args.bias = use_bias_ ? bias_view.data() : nullptr;
                     args.out = out_view.data();
                     int threads;
                     const ParallelFor workers = Workers(context, Kind::Work(args.shape), &threads);
                     Kind::Forward(args, threads, workers);
                     out_view.WriteTo(out);
                   }));
  }

 private:
  const Activation activation_;
  bool use_spread_, use_bias_;
};

template <typename T, typename Kind>
class ConvolutionGradOp : public OpKernel {
 public:
  explicit ConvolutionGradOp(OpKernelConstruction* context)
      : OpKernel(context), activation_(ActivationOf(context)) {
    OP_REQUIRES_OK(context, context->GetAttr("use_spread", &use_spread_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(0), &filter = context->input(1), &table = context->input(2),
                 &spread = context->input(3), &out = context->input(4),
                 &grad_out = context->input(5);
    Operands operands = OperandsOf(rows, &filter, table, use_spread_ ? &spread : nullptr, nullptr);
    operands.depthwise = Kind::kDepthwise;
    BackwardArgs args;
    OP_REQUIRES_OK(context, CheckCall(operands, &args.shape));
    OP_REQUIRES_OK(context, CheckGradient("out", out, args.shape));
    OP_REQUIRES_OK(context, CheckGradient("grad_out", grad_out, args.shape));
    Tensor *grad_rows = nullptr, *grad_filter = nullptr, *grad_bias = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &grad_rows));
    OP_REQUIRES_OK(context, context->allocate_output(1, filter.shape(), &grad_filter));
    OP_REQUIRES_OK(context,
                   context->allocate_output(2, TensorShape({args.shape.filters}), &grad_bias));
    args.table = operands.table.values;
    args.spread = operands.spread ? operands.spread->values : nullptr;
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
                     const ParallelFor workers = Workers(context, Kind::Work(args.shape), &threads);
                     Kind::Backward(args, threads, workers);
                     grad_rows_view.WriteTo(grad_rows);
                     grad_filter_view.WriteTo(grad_filter);
                     grad_bias_view.WriteTo(grad_bias);
                   }));
  }

 private:
  const Activation activation_;
  bool use_spread_;
};

#define REGISTER_ONE(NAME, KERNEL, T, KIND)                                                 \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
                          KERNEL<T, KIND>)
#define REGISTER(T)                                                         \
  REGISTER_ONE("EspaceMaskedConv2D", ConvolutionOp, T, Full);               \
  REGISTER_ONE("EspaceMaskedConv2DGrad", ConvolutionGradOp, T, Full);       \
  REGISTER_ONE("EspaceMaskedDepthwiseConv2D", ConvolutionOp, T, Depthwise); \
  REGISTER_ONE("EspaceMaskedDepthwiseConv2DGrad", ConvolutionGradOp, T, Depthwise);
REGISTER(float)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
#undef REGISTER
#undef REGISTER_ONE

}  // namespace
}  // namespace espace
