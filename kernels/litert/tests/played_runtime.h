// A runtime of one node, played through the structures of abi.h: its arrays have no room to spare.
#ifndef ESPACE_TF_KERNELS_LITERT_TESTS_PLAYED_RUNTIME_H_
#define ESPACE_TF_KERNELS_LITERT_TESTS_PLAYED_RUNTIME_H_

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "litert/abi.h"

namespace espace {
namespace litert {

// Of a tensor that is resized: more of them are refused, as memory that is not there.
constexpr int64_t kMostFloats = 1 << 16;

inline IntArray* Array(const std::vector<int>& values) {
  auto* array = static_cast<IntArray*>(std::malloc(sizeof(int) * (values.size() + 1)));
  array->size = static_cast<int>(values.size());
  if (!values.empty()) std::memcpy(array->data, values.data(), sizeof(int) * values.size());
  return array;
}

// One node with its tensors, as a runtime has them.
class Runtime {
 public:
  Runtime() {
    context_.get_execution_plan = [](Context* context, IntArray** plan) {
      *plan = Own(context)->plan_;
      return static_cast<int>(kOk);
    };
    context_.resize_tensor = [](Context* context, Tensor* tensor, IntArray* size) {
      return Own(context)->Resize(tensor, size);
    };
    context_.report_error = Report;
    context_.get_node_and_registration = [](Context* context, int number, Node** node,
                                            Registration** registration) {
      *node = &Own(context)->node;
      *registration = &Own(context)->registration;
      return static_cast<int>(number == 0 ? kOk : kError);
    };
    context_.replace_nodes = [](Context* context, Registration kernel, const IntArray*, Delegate*) {
      Own(context)->kernel_ = kernel;
      Own(context)->claimed_ = kernel.init(context, nullptr, 0);
      return static_cast<int>(kOk);
    };
    registration.custom_name = "EspaceFusedGraph";
    registration.builtin_code = kCustom;
    context_.implementation = this;
  }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;
  ~Runtime() {
    if (claimed_ != nullptr) kernel_.free(&context_, claimed_);
    for (Tensor& tensor : tensors) {
      std::free(tensor.dims);
      std::free(tensor.data);
    }
    std::free(plan_);
    std::free(node.inputs);
    std::free(node.outputs);
  }

  // A tensor with room for exactly so many bytes; null: not allocated.
  int Add(int type, const std::vector<int>& dims, int allocation, const void* bytes, size_t size) {
    Tensor tensor{};
    tensor.type = type;
    tensor.dims = Array(dims);
    tensor.allocation = allocation;
    tensor.bytes = size;
    if (bytes != nullptr) {
      tensor.data = std::malloc(size);
      std::memcpy(tensor.data, bytes, size);
    }
    tensors.push_back(tensor);
    return static_cast<int>(tensors.size()) - 1;
  }

  // Whether the delegate claimed the node, prepared it and ran it, each as often as it said so.
  bool Run(Delegate* delegate, int threads, int times) {
    context_.tensors = tensors.data();
    context_.tensors_size = tensors.size();
    context_.recommended_threads = threads;
    if (claimed_ == nullptr && delegate->prepare(&context_, delegate) != kOk) return false;
    if (claimed_ == nullptr) return false;
    Node own{};
    own.user_data = claimed_;
    for (int i = 0; i < times; ++i) {
      if (kernel_.prepare(&context_, &own) != kOk || kernel_.invoke(&context_, &own) != kOk) {
        return false;
      }
    }
    return true;
  }

  // What a caller does between two calls without asking the kernel.
  int Invoke() {
    Node own{};
    own.user_data = claimed_;
    return kernel_.invoke(&context_, &own);
  }

  bool claimed() const { return claimed_ != nullptr; }

  int Resize(Tensor* tensor, IntArray* size) {
    int64_t floats = 1;
    for (int i = 0; i < size->size; ++i) {
      floats = size->data[i] > kMostFloats ? kMostFloats + 1 : floats * size->data[i];
    }
    std::free(tensor->dims);
    tensor->dims = size;
    std::free(tensor->data);
    tensor->data = nullptr;
    tensor->bytes = 0;
    if (floats > 16 * kMostFloats || floats < 0) return kError;
    tensor->bytes = floats * sizeof(float);
    tensor->data = std::malloc(tensor->bytes);
    return kOk;
  }

  std::vector<Tensor> tensors;
  Node node{};
  Registration registration{};
  std::string reported;

 private:
  static void Report(Context* context, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    Own(context)->reported = text;
  }

  static Runtime* Own(Context* context) { return static_cast<Runtime*>(context->implementation); }

  Context context_{};
  IntArray* plan_ = Array({0});
  Registration kernel_{};
  void* claimed_ = nullptr;
};

}  // namespace litert
}  // namespace espace

#endif  // ESPACE_TF_KERNELS_LITERT_TESTS_PLAYED_RUNTIME_H_
