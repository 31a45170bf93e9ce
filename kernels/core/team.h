// A loop whose caller waits for no thread that has yet to begin.
#ifndef ESPACE_TF_KERNELS_CORE_TEAM_H_
#define ESPACE_TF_KERNELS_CORE_TEAM_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace espace {

// Hands a task to another thread, which runs it at any time, or never; or runs it at once.
using Schedule = std::function<void(std::function<void()> task)>;

// Runs body(0, 1) on this thread and body(i, i + 1), i < count, on threads that begin before it has
// ended; those that come later do nothing. For bodies that take pieces of work until none is left:
// the first one does what the others are too late for, so that on a busy machine the call takes no
// longer than alone. Bodies must not throw.
inline void RunTeam(int64_t count, const std::function<void(int64_t, int64_t)>& body,
                    const Schedule& schedule) {
  struct Gate {
    std::mutex mutex;
    std::condition_variable left;
    int64_t inside = 0;
    bool closed = false;

    bool Enter() {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!closed) ++inside;
      return !closed;
    }
    void Leave() {
      const std::lock_guard<std::mutex> lock(mutex);
      if (--inside == 0) left.notify_all();
    }
    void Close() {
      std::unique_lock<std::mutex> lock(mutex);
      closed = true;
      left.wait(lock, [this] { return inside == 0; });
    }
  };
  // Held by the tasks too, which may outlive this call; `body` is touched by those that enter.
  const auto gate = std::make_shared<Gate>();
  struct Closing {  // also where a task cannot be made
    Gate& gate;
    ~Closing() { gate.Close(); }
  } const closing{*gate};
  for (int64_t i = 1; i < count; ++i) {
    schedule([gate, &body, i] {
      if (!gate->Enter()) return;
      body(i, i + 1);
      gate->Leave();
    });
  }
  body(0, 1);
}

}  // namespace espace

#endif  // ESPACE_TF_KERNELS_CORE_TEAM_H_
