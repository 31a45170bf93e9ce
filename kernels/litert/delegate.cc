#include "litert/delegate.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "litert/abi.h"
#include "litert/stretch.h"
#include "litert/team.h"

namespace espace {
namespace litert {
namespace {

constexpr char kCompositeName[] = "espace_tf.fused_graph";
constexpr char kCustomName[] = "EspaceFusedGraph";

struct Options {
  int threads = 0;
  bool strict = false;
};

struct Owned {
  Delegate base;
  Options options;
  std::shared_ptr<Team> team;
};

std::string Number(int64_t value) { return std::to_string(value); }

int Fail(Context* context, const std::string& problem) {
  context->report_error(context, "espace_tf: %s", problem.c_str());
  return kError;
}

// What the runtime calls must not throw.
template <typename Body>
int Guarded(Context* context, const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Fail(context, "there is not enough memory for a fused stretch");
  } catch (const std::exception& error) {
    return Fail(context, error.what());
  }
}

bool Names(const Registration& registration, const Node& node) {
  if (registration.builtin_code == kCustom) {
    const char* name = registration.custom_name;
    return name != nullptr && std::strcmp(name, kCustomName) == 0;
  }
  if (registration.builtin_code != kStablehloComposite) return false;
  if (node.builtin_data == nullptr) return false;
  const char* name = static_cast<const Composite*>(node.builtin_data)->name;
  return name != nullptr && std::strcmp(name, kCompositeName) == 0;
}

// Tensors are looked up in every call: the runtime moves its list of them when it grows.
const Tensor* At(const Context* context, int index) {
  const bool there = index >= 0 && static_cast<size_t>(index) < context->tensors_size;
  return there ? context->tensors + index : nullptr;
}

bool IsConstant(const Tensor& tensor) {
  return tensor.allocation == kMapped || tensor.allocation == kPersistentReadOnly;
}

// The product of dimensions from `first` on; -1 where one is negative or there are too many values.
int64_t Product(const IntArray* dims, int first) {
  int64_t product = 1;
  for (int i = first; i < dims->size; ++i) {
    if (dims->data[i] < 0) return -1;
    product *= dims->data[i];
    if (product > std::numeric_limits<int32_t>::max()) return -1;
  }
  return product;
}

// A claimed node.
class Kernel {
 public:
  // An empty text, and the kernel; else why the node is none. Its inputs are the words (stretch.h),
  // the inputs of the program and its weights.
  static std::string Make(const Context* context, const Node& node, const Owned& owner,
                          std::unique_ptr<Kernel>* made) {
    if (node.inputs == nullptr || node.outputs == nullptr) return "it has no inputs or outputs";
    std::vector<int> inputs(node.inputs->data, node.inputs->data + node.inputs->size);
    std::vector<Stretch::Constant> constants;
    std::vector<int> given;
    for (int index : inputs) {
      const Tensor* tensor = At(context, index);
      if (tensor == nullptr) return "it lacks an input";
      if (tensor->data == nullptr || !IsConstant(*tensor)) {
        given.push_back(index);
        continue;
      }
      const bool words = constants.empty();
      const bool known = tensor->type == kFloat32 || tensor->type == kFloat16;
      if (words ? tensor->type != kInt32 : !known) {
        return "its constant " + Number(constants.size()) + " is of type " + Number(tensor->type);
      }
      constants.push_back(
          {tensor->data, static_cast<int64_t>(tensor->bytes), tensor->type == kFloat16});
    }
    if (constants.empty()) return "it has no words";
    std::unique_ptr<Stretch> stretch;
    std::string error =
        Stretch::Make(constants[0], {constants.begin() + 1, constants.end()}, &stretch);
    if (!error.empty()) return error;
    std::unique_ptr<Kernel> kernel(new Kernel(std::move(stretch), owner));
    kernel->inputs_ = std::move(given);
    kernel->outputs_.assign(node.outputs->data, node.outputs->data + node.outputs->size);
    error = kernel->FindShapes(context);
    if (error.empty()) *made = std::move(kernel);
    return error;
  }

  // The sizes of the outputs for the inputs that there are now.
  int Prepare(Context* context) {
    const std::string error = FindBatch(context, &batch_);
    if (!error.empty()) return Fail(context, error);
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const size_t count = shapes_[i].size() + 1;
      auto* size = static_cast<IntArray*>(std::malloc(sizeof(int) * (count + 1)));
      if (size == nullptr) throw std::bad_alloc();
      size->size = static_cast<int>(count);
      size->data[0] = static_cast<int>(batch_);
      for (size_t k = 1; k < count; ++k) size->data[k] = shapes_[i][k - 1];
      Tensor* tensor = context->tensors + outputs_[i];
      if (context->resize_tensor(context, tensor, size) != kOk) return kError;
    }
    return kOk;
  }

  int Invoke(Context* context) {
    int64_t batch = 0;
    const std::string error = FindBatch(context, &batch);
    if (!error.empty()) return Fail(context, error);
    if (batch != batch_) return Fail(context, "the batch has changed since it was allocated");
    if (batch_ == 0) return kOk;
    std::vector<const float*> inputs;
    std::vector<float*> outputs;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Tensor* tensor = At(context, inputs_[i]);
      if (!Holds(*tensor, batch_ * program().inputs[i])) {
        return Fail(context, "input " + Number(i) + " is not allocated");
      }
      inputs.push_back(static_cast<const float*>(tensor->data));
    }
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const Tensor* tensor = At(context, outputs_[i]);
      const Program::Output& output = program().outputs[i];
      if (!Holds(*tensor, batch_ * output.rows * output.channels)) {
        return Fail(context, "output " + Number(i) + " is not allocated");
      }
      outputs.push_back(static_cast<float*>(tensor->data));
    }
    const int threads = threads_ > 0 ? threads_ : context->recommended_threads;
    stretch_->Run(batch_, inputs, outputs, threads, *team_);
    return kOk;
  }

 private:
  Kernel(std::unique_ptr<Stretch> stretch, const Owned& owner)
      : stretch_(std::move(stretch)), threads_(owner.options.threads), team_(owner.team) {}

  const Program& program() const { return stretch_->program(); }

  static bool Holds(const Tensor& tensor, int64_t floats) {
    return tensor.data != nullptr && static_cast<int64_t>(tensor.bytes / sizeof(float)) >= floats;
  }

  // Whether inputs and outputs are as many as the program has, and the outputs' sizes per image.
  std::string FindShapes(const Context* context) {
    if (inputs_.size() != program().inputs.size() || outputs_.size() != program().outputs.size()) {
      return "its program has " + Number(program().inputs.size()) + " inputs and " +
             Number(program().outputs.size()) + " outputs, the operator " + Number(inputs_.size()) +
             " and " + Number(outputs_.size());
    }
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const Tensor* tensor = At(context, outputs_[i]);
      const Program::Output& output = program().outputs[i];
      if (tensor == nullptr || tensor->type != kFloat32 || IsConstant(*tensor) ||
          tensor->dims == nullptr || tensor->dims->size < 1 ||
          Product(tensor->dims, 1) != output.rows * output.channels) {
        return "output " + Number(i) + " is not one of " + Number(output.rows) + " rows of " +
               Number(output.channels) + " floats per image";
      }
      if (std::count(inputs_.begin(), inputs_.end(), outputs_[i]) > 0 ||
          std::count(outputs_.begin(), outputs_.end(), outputs_[i]) > 1) {
        return "output " + Number(i) + " is another tensor of it, too";
      }
      shapes_.emplace_back(tensor->dims->data + 1, tensor->dims->data + tensor->dims->size);
    }
    return "";
  }

  // The batch of the inputs, or what is wrong with them.
  std::string FindBatch(const Context* context, int64_t* batch) const {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Tensor* tensor = At(context, inputs_[i]);
      const bool floats = tensor != nullptr && tensor->type == kFloat32 &&
                          tensor->dims != nullptr && tensor->dims->size >= 1 &&
                          tensor->dims->data[0] >= 0;
      if (floats && i == 0) *batch = tensor->dims->data[0];
      if (!floats || tensor->dims->data[0] != *batch ||
          Product(tensor->dims, 1) != program().inputs[i]) {
        return "input " + Number(i) + " must have " + Number(program().inputs[i]) +
               " floats for each image of a batch, the same batch in every input";
      }
    }
    return "";
  }

  std::unique_ptr<Stretch> stretch_;
  const int threads_;
  const std::shared_ptr<Team> team_;
  std::vector<int> inputs_, outputs_;     // indices of tensors
  std::vector<std::vector<int>> shapes_;  // of the outputs, without the batch
  int64_t batch_ = 0;
};

// What `init` is to take: the runtime calls it while the node is being replaced, in this thread.
thread_local std::unique_ptr<Kernel> claimed;

Registration KernelRegistration() {
  Registration registration{};
  registration.init = [](Context*, const char*, size_t) -> void* { return claimed.release(); };
  registration.free = [](Context*, void* kernel) { delete static_cast<Kernel*>(kernel); };
  registration.prepare = [](Context* context, Node* node) {
    auto* kernel = static_cast<Kernel*>(node->user_data);
    if (kernel == nullptr) return Fail(context, "a fused stretch was replaced out of turn");
    return Guarded(context, [&] { return kernel->Prepare(context); });
  };
  registration.invoke = [](Context* context, Node* node) {
    auto* kernel = static_cast<Kernel*>(node->user_data);
    return Guarded(context, [&] { return kernel->Invoke(context); });
  };
  registration.builtin_code = kCustom;
  registration.custom_name = kCustomName;
  registration.version = 1;
  return registration;
}

// Claims every node that is one of ours and fits together; says why about one that does not.
int Claim(Context* context, Delegate* delegate) {
  IntArray* plan = nullptr;
  if (context->get_execution_plan(context, &plan) != kOk || plan == nullptr) return kError;
  // A copy: replacing nodes writes the plan anew, with the same numbers for the old nodes.
  const std::vector<int> nodes(plan->data, plan->data + plan->size);
  const auto& owner = *static_cast<const Owned*>(delegate->data);
  for (int number : nodes) {
    Node* node = nullptr;
    Registration* registration = nullptr;
    if (context->get_node_and_registration(context, number, &node, &registration) != kOk) {
      return kError;
    }
    if (!Names(*registration, *node)) continue;
    const std::string error = Kernel::Make(context, *node, owner, &claimed);
    if (!error.empty()) {
      const char* what = owner.options.strict ? "refused" : "left to the runtime";
      const int status = Fail(context, std::string("a fused stretch is ") + what + ": " + error);
      if (owner.options.strict) return status;
      continue;
    }
    const IntArray one{1, {number}};
    const int status = context->replace_nodes(context, KernelRegistration(), &one, delegate);
    claimed.reset();
    if (status != kOk) return status;
  }
  return kOk;
}

// An empty text, and what the options say; else which of them makes no sense.
std::string Read(char** keys, char** values, size_t count, Options* options) {
  for (size_t i = 0; i < count; ++i) {
    const std::string key = keys[i] ? keys[i] : "", value = values[i] ? values[i] : "";
    const bool threads = key == "num_threads";
    if (!threads && key != "strict") {
      return "an option must be num_threads or strict, got " + key;
    }
    char* end = nullptr;
    const long number = std::strtol(value.c_str(), &end, 10);
    const int most = threads ? Team::kMostThreads : 1;
    if (value.empty() || *end != '\0' || number < 0 || number > most) {
      return key + " must be 0 to " + Number(most) + ", got " + value;
    }
    if (threads) options->threads = static_cast<int>(number);
    if (!threads) options->strict = number == 1;
  }
  return "";
}

}  // namespace
}  // namespace litert
}  // namespace espace

void* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                    void (*report_error)(const char*)) {
  using namespace espace::litert;
  try {
    Options options;
    const std::string problem = Read(keys, values, count, &options);
    if (!problem.empty()) {
      if (report_error != nullptr) report_error(("espace_tf: " + problem).c_str());
      return nullptr;
    }
    auto owned = std::make_unique<Owned>(Owned{{}, options, Team::Shared()});
    owned->base.data = owned.get();
    owned->base.flags = kAllowsDynamicTensors;
    owned->base.prepare = [](Context* context, Delegate* delegate) {
      return Guarded(context, [&] { return Claim(context, delegate); });
    };
    return &owned.release()->base;
  } catch (const std::exception& error) {
    if (report_error != nullptr) report_error(error.what());
    return nullptr;
  }
}

void tflite_plugin_destroy_delegate(void* delegate) {
  using namespace espace::litert;
  if (delegate == nullptr) return;
  delete static_cast<Owned*>(static_cast<Delegate*>(delegate)->data);
}
