// What a delegate and the LiteRT (TensorFlow Lite) runtime hand each other, declared anew: the
// layout of the runtime's C structures as far as this delegate reads them. The same on every
// runtime from TensorFlow Lite 2.14 to LiteRT 2.4; nothing of the runtime is needed to compile.
#ifndef ESPACE_TF_KERNELS_LITERT_ABI_H_
#define ESPACE_TF_KERNELS_LITERT_ABI_H_

#include <cstddef>
#include <cstdint>

namespace espace {
namespace litert {

enum Status : int { kOk = 0, kError = 1 };
enum ElementType : int { kFloat32 = 1, kInt32 = 2, kFloat16 = 10 };
enum Allocation : int { kMapped = 1, kPersistentReadOnly = 5 };  // constants
enum BuiltinOperator : int32_t { kCustom = 32, kStablehloComposite = 206 };

struct Context;
struct Delegate;

struct IntArray {
  int size;
  int data[1];  // size of them
};

struct Tensor {
  int type;
  void* data;
  IntArray* dims;
  float scale;
  int32_t zero_point;
  int allocation;
  size_t bytes;
  const void* mapping;
  const char* name;
  Delegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  int quantization;
  void* quantization_parameters;
  void* sparsity;
  const IntArray* dims_signature;
};

struct Node {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* builtin_data;
  const void* custom_initial_data;
  int custom_initial_data_size;
  Delegate* delegate;
  bool might_have_side_effect;
};

// builtin_data of a node of kStablehloComposite.
struct Composite {
  const char* name;
  int32_t subgraph;
  const uint8_t* attributes;
  size_t attributes_size;
  int32_t version;
};

struct Registration {
  void* (*init)(Context*, const char* buffer, size_t length);
  void (*free)(Context*, void*);
  int (*prepare)(Context*, Node*);
  int (*invoke)(Context*, Node*);
  const char* (*profiling_string)(const Context*, const Node*);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* external;
  void* async;
  uint64_t inplace;
  void* reserved[4];  // what a later runtime may read: nothing
};

struct Delegate {
  void* data;
  int (*prepare)(Context*, Delegate*);
  int (*copy_from_buffer)(Context*, Delegate*, int, Tensor*);
  int (*copy_to_buffer)(Context*, Delegate*, int, Tensor*);
  void (*free_buffer)(Context*, Delegate*, int*);
  int64_t flags;
  void* builder;
  void* reserved[4];
};

constexpr int64_t kAllowsDynamicTensors = 1;

struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context*, IntArray**);
  Tensor* tensors;
  void* implementation;
  int (*resize_tensor)(Context*, Tensor*, IntArray* size);  // frees size
  void (*report_error)(Context*, const char* format, ...);
  int (*add_tensors)(Context*, int, int*);
  int (*get_node_and_registration)(Context*, int, Node**, Registration**);
  int (*replace_nodes)(Context*, Registration, const IntArray* nodes, Delegate*);
  int recommended_threads;
};

}  // namespace litert
}  // namespace espace

#endif  // ESPACE_TF_KERNELS_LITERT_ABI_H_
