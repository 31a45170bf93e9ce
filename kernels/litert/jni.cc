// For Java and Kotlin: espace_tf.EspaceDelegate with two native methods,
//   private external fun create(threads: Int): Long
//   private external fun destroy(handle: Long)
// Declared with the types that jni.h gives these names, which is not needed to compile.
#include <cstdint>
#include <string>

#include "litert/delegate.h"

extern "C" ESPACE_EXPORT int64_t Java_espace_1tf_EspaceDelegate_create(void *, void *,
                                                                       int32_t threads) {
  std::string key = "num_threads", value = std::to_string(threads);
  char *keys[] = {key.data()}, *values[] = {value.data()};
  return reinterpret_cast<intptr_t>(tflite_plugin_create_delegate(keys, values, 1, nullptr));
}

extern "C" ESPACE_EXPORT void Java_espace_1tf_EspaceDelegate_destroy(void *, void *,
                                                                     int64_t handle) {
  tflite_plugin_destroy_delegate(reinterpret_cast<void *>(static_cast<intptr_t>(handle)));
}
