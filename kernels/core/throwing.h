// Memory that runs out in a thread of a parallel loop.
#ifndef ESPACE_TF_KERNELS_CORE_THROWING_H_
#define ESPACE_TF_KERNELS_CORE_THROWING_H_

#include <atomic>
#include <new>
#include <utility>

#include "core/params.h"

namespace espace {

// The same loop for a body that may throw bad_alloc: the caller gets it once every thread is done,
// since an exception that leaves a thread ends the process.
inline ParallelFor Throwing(ParallelFor parallel_for) {
  return [parallel_for = std::move(parallel_for)](
             int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    std::atomic<bool> failed{false};
    parallel_for(count, [&](int64_t begin, int64_t end) {
      try {
        body(begin, end);
      } catch (const std::bad_alloc&) {
        failed = true;
      }
    });
    if (failed) throw std::bad_alloc();
  };
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_THROWING_H_
