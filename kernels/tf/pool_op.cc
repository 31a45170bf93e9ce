// EspacePool and its gradient as TensorFlow operations on the CPU: checks, types and threads; the
// arithmetic is kernels/core.

#include "core/cpu/pooling.h"
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

// About the cycles of a call: one per value read.
double Work(const ConvShape& s) {
  return static_cast<double>(s.batch * s.computed) * static_cast<double>(s.taps) *
         static_cast<double>(s.filters) / 4;
}

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
    const Operands operands =
        OperandsOf(rows, nullptr, table, use_spread_ ? &spread : nullptr, nullptr);
    ForwardArgs args;
    OP_REQUIRES_OK(context, CheckCall(operands, &args.shape));
    Tensor* out = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, ShownShape(args.shape), &out));
    if (out->NumElements() == 0) return;
    args.table = operands.table.values;
    args.spread = operands.spread ? operands.spread->values : nullptr;
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
    const Operands operands =
        OperandsOf(rows, nullptr, table, use_spread_ ? &spread : nullptr, nullptr);
    BackwardArgs args;
    OP_REQUIRES_OK(context, CheckCall(operands, &args.shape));
    OP_REQUIRES_OK(context, CheckGradient("grad_out", grad_out, args.shape));
    Tensor* grad_rows = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &grad_rows));
    args.table = operands.table.values;
    args.spread = operands.spread ? operands.spread->values : nullptr;
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
#define REGISTER(T)                      \
  REGISTER_ONE("EspacePool", PoolOp, T); \
  REGISTER_ONE("EspacePoolGrad", PoolGradOp, T);
REGISTER(float)
REGISTER(Eigen::half)
REGISTER(Eigen::bfloat16)
#undef REGISTER
#undef REGISTER_ONE

}  // namespace
}  // namespace espace
