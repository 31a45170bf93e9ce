// EspaceFusedGraph: a stretch of a network as one TensorFlow operation on the CPU; the arithmetic is
// kernels/core.

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/cpu/fused_graph.h"
#include "core/program.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tf/op_common.h"

namespace espace {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status Parse(const Tensor& words, Program* program) {
  if (words.dtype() != tensorflow::DT_INT32) return InvalidArgument("program must be int32");
  const auto flat = words.flat<int32_t>();
  const std::string error =
      ParseProgram(std::vector<int32_t>(flat.data(), flat.data() + flat.size()), program);
  return error.empty() ? absl::OkStatus() : InvalidArgument(error);
}

absl::Status CheckOutputs(const Program& program, int outputs) {
  if (static_cast<int>(program.outputs.size()) == outputs) return absl::OkStatus();
  return InvalidArgument("program must have ", outputs, " outputs, got ", program.outputs.size());
}

absl::Status FusedGraphShape(InferenceContext* c) {
  Tensor words;
  TF_RETURN_IF_ERROR(c->GetAttr("program", &words));
  Program program;
  TF_RETURN_IF_ERROR(Parse(words, &program));
  DimensionHandle batch = c->UnknownDim();
  for (size_t i = 0; i < program.inputs.size() && static_cast<int>(i) < c->num_inputs(); ++i) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(static_cast<int>(i)), 1, &shape));
    if (c->RankKnown(shape)) TF_RETURN_IF_ERROR(c->Merge(batch, c->Dim(shape, 0), &batch));
  }
  const int outputs = c->num_outputs() - 1;
  TF_RETURN_IF_ERROR(CheckOutputs(program, outputs));
  for (int i = 0; i < outputs; ++i) {
    const Program::Output& size = program.outputs[i];
    c->set_output(i, c->MakeShape({batch, c->MakeDim(size.rows), c->MakeDim(size.channels)}));
  }
  c->set_output(outputs, c->Vector(static_cast<int64_t>(program.steps.size())));
  return absl::OkStatus();
}

REGISTER_OP("EspaceFusedGraph")
    .Input("inputs: num_inputs * float")
    .Input("weights: num_weights * float")
    .Output("out: outputs * float")
    .Output("nanoseconds: int64")
    .Attr("num_inputs: int >= 1")
    .Attr("num_weights: int >= 0")
    .Attr("outputs: int >= 1")
    .Attr("program: tensor")
    .Attr("profile: bool = false")
    .Attr("threads: int >= 0 = 0")
    .SetShapeFn(FusedGraphShape)
    .Doc("A program of convolutions, poolings and sums over index tables, on at most so many threads "
         "(0: as many as TensorFlow computes with).");

class FusedGraphOp : public OpKernel {
 public:
  explicit FusedGraphOp(OpKernelConstruction* context) : OpKernel(context) {
    Tensor words;
    OP_REQUIRES_OK(context, context->GetAttr("program", &words));
    OP_REQUIRES_OK(context, context->GetAttr("profile", &profile_));
    OP_REQUIRES_OK(context, context->GetAttr("threads", &threads_));
    Program program;
    OP_REQUIRES_OK(context, Parse(words, &program));
    // Also where no shape function has run, as in functions that a file brings.
    OP_REQUIRES_OK(context, CheckOutputs(program, context->num_outputs() - 1));
    OP_REQUIRES_OK(context, OrExhausted([&] {
                     graph_ = std::make_unique<FusedGraph>(BestVariant(), std::move(program));
                   }));
  }

  void Compute(OpKernelContext* context) override {
    OpInputList inputs, weights;
    OP_REQUIRES_OK(context, context->input_list("inputs", &inputs));
    OP_REQUIRES_OK(context, context->input_list("weights", &weights));
    int64_t batch = 0;
    OP_REQUIRES_OK(context, Check(inputs, weights, &batch));
    OpOutputList out;
    OP_REQUIRES_OK(context, context->output_list("out", &out));
    std::vector<float*> results;
    for (size_t i = 0; i < graph_->program().outputs.size(); ++i) {
      const Program::Output& size = graph_->program().outputs[i];
      TensorShape shape;
      OP_REQUIRES_OK(context, TensorShape::BuildTensorShape({batch, size.rows, size.channels},
                                                            &shape));
      Tensor* result = nullptr;
      OP_REQUIRES_OK(context, out.allocate(static_cast<int>(i), shape, &result));
      results.push_back(result->flat<float>().data());
    }
    const auto steps = static_cast<int64_t>(graph_->program().steps.size());
    Tensor* times = nullptr;
    OP_REQUIRES_OK(context,
                   context->allocate_output("nanoseconds", TensorShape({steps}), &times));
    times->flat<int64_t>().setZero();
    OP_REQUIRES_OK(context, OrExhausted([&] {
                     const auto held = Hold(weights);
                     int threads;
                     const ParallelFor workers = Team(
                         context, static_cast<double>(batch) * graph_->cost() / 16, &threads);
                     if (threads_ > 0) threads = std::min(threads, threads_);
                     graph_->Run(batch, Pointers(inputs), Pointers(weights), held->packed, results,
                                 threads, workers, profile_ ? times->flat<int64_t>().data() : nullptr);
                   }));
  }

 private:
  // What convolutions read, packed once. Holding the tensors keeps their values as they are:
  // TensorFlow writes a variable's new value into new memory while anyone holds the old one. So
  // equal pointers are equal weights.
  struct Held {
    std::vector<Tensor> tensors;
    std::vector<const float*> pointers;
    FusedGraph::Packed packed;
  };

  absl::Status Check(const OpInputList& inputs, const OpInputList& weights, int64_t* batch) const {
    const Program& program = graph_->program();
    if (inputs.size() != static_cast<int>(program.inputs.size()) ||
        weights.size() != static_cast<int>(program.weights.size())) {
      return InvalidArgument("inputs and weights must be as many as the program has: ",
                             program.inputs.size(), " and ", program.weights.size(), ", got ",
                             inputs.size(), " and ", weights.size());
    }
    for (int i = 0; i < inputs.size(); ++i) {
      const Tensor& input = inputs[i];
      if (i == 0 && input.dims() > 0) *batch = input.dim_size(0);
      if (*batch > std::numeric_limits<int32_t>::max()) {
        return InvalidArgument("inputs must have less than 2^31 images, got ", *batch);
      }
      if (input.dims() < 1 || input.dim_size(0) != *batch ||
          input.NumElements() / std::max<int64_t>(*batch, 1) != (*batch ? program.inputs[i] : 0)) {
        return InvalidArgument("inputs[", i, "] must have ", program.inputs[i],
                               " values for each image of a batch, got shape ",
                               input.shape().DebugString());
      }
    }
    for (int i = 0; i < weights.size(); ++i) {
      if (weights[i].NumElements() == program.weights[i]) continue;
      return InvalidArgument("weights[", i, "] must have ", program.weights[i], " values, got ",
                             weights[i].NumElements());
    }
    return absl::OkStatus();
  }

  static std::vector<const float*> Pointers(const OpInputList& list) {
    std::vector<const float*> pointers;
    for (int i = 0; i < list.size(); ++i) pointers.push_back(list[i].flat<float>().data());
    return pointers;
  }

  std::shared_ptr<const Held> Hold(const OpInputList& weights) {
    auto made = std::make_shared<Held>();
    for (int i = 0; i < weights.size(); ++i) {
      if (!graph_->IsPacked(i)) continue;
      made->tensors.push_back(weights[i]);
      made->pointers.push_back(weights[i].flat<float>().data());
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (held_ != nullptr && held_->pointers == made->pointers) return held_;
    }
    made->packed = graph_->Pack(Pointers(weights));
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = made;
    return made;
  }

  bool profile_ = false;
  int threads_ = 0;
  std::unique_ptr<FusedGraph> graph_;
  std::mutex mutex_;
  std::shared_ptr<const Held> held_;
};

REGISTER_KERNEL_BUILDER(Name("EspaceFusedGraph").Device(tensorflow::DEVICE_CPU), FusedGraphOp);

}  // namespace
}  // namespace espace
