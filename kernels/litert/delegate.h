// The delegate that runs stretches of compressed networks in LiteRT (TensorFlow Lite). It claims
// what espace_tf.export_tflite(kernel="fused") wrote: operators STABLEHLO_COMPOSITE of the name
// kCompositeName and custom operators of the name kCustomName. What it cannot run it leaves to the
// runtime and says why.
#ifndef ESPACE_TF_KERNELS_LITERT_DELEGATE_H_
#define ESPACE_TF_KERNELS_LITERT_DELEGATE_H_

#include <cstddef>

#if defined(__GNUC__)
#define ESPACE_EXPORT __attribute__((visibility("default")))
#else
#define ESPACE_EXPORT
#endif

extern "C" {

// A delegate, which is a TfLiteDelegate*, for one or several interpreters; must outlive them. Null,
// and the reason to report_error (which may be null), for options that it does not know:
//   num_threads  1 to 1024, or 0: what the interpreter was given (the default)
//   strict       1: a stretch that it cannot run is an error; 0: left to the runtime (the default)
// The names are those by which the runtimes find an external delegate.
ESPACE_EXPORT void* tflite_plugin_create_delegate(char** keys, char** values, size_t count,
                                                  void (*report_error)(const char*));
ESPACE_EXPORT void tflite_plugin_destroy_delegate(void* delegate);

}  // extern "C"

#endif  // ESPACE_TF_KERNELS_LITERT_DELEGATE_H_
