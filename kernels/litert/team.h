// The threads that run stretches in LiteRT, whose runtime offers none to delegates.
#ifndef ESPACE_TF_KERNELS_LITERT_TEAM_H_
#define ESPACE_TF_KERNELS_LITERT_TEAM_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace espace {
namespace litert {

// One for the whole process, as long as somebody holds it. It serves one call at a time; another
// one, and a call in a child of fork, runs on its own thread alone.
class Team {
 public:
  static constexpr int kMostThreads = 1024;

  static std::shared_ptr<Team> Shared();

  Team();
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Runs body over pieces that cover [0, count), on at most `count` threads with the caller's.
  // body must not throw.
  void Run(int64_t count, const std::function<void(int64_t begin, int64_t end)>& body);

 private:
  using Body = std::function<void(int64_t, int64_t)>;

  void Grow(int64_t helpers);
  void Help();
  void AwaitWork(std::unique_lock<std::mutex>& lock);

  const int64_t process_;
  std::mutex call_;   // held by the call that is served
  std::mutex mutex_;  // guards what follows; atomics are read without it, too
  std::condition_variable work_, done_;
  const Body* body_ = nullptr;
  int64_t next_ = 0, count_ = 0;
  int64_t asleep_ = 0;               // helpers that wait for work_
  std::atomic<int64_t> running_{0};  // helpers in body_
  std::atomic<bool> has_work_{false};
  bool ends_ = false;
  std::vector<std::thread>* const helpers_;
};

}  // namespace litert
}  // namespace espace

#endif  // ESPACE_TF_KERNELS_LITERT_TEAM_H_
