#include "litert/team.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <system_error>

namespace espace {
namespace litert {
namespace {

// The helpers of a stretch end within microseconds of each other; going to sleep and being woken
// takes longer than that.
constexpr int kSpins = 4096;

// For so long a helper looks for the next stretch before it sleeps: to be woken may take as long.
constexpr std::chrono::microseconds kAwake(50);

}  // namespace

std::shared_ptr<Team> Team::Shared() {
  static std::mutex mutex;
  static std::weak_ptr<Team> shared;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Team> team = shared.lock();
  if (team == nullptr || team->process_ != getpid()) {
    team = std::make_shared<Team>();
    shared = team;
  }
  return team;
}

Team::Team() : process_(getpid()), helpers_(new std::vector<std::thread>) {}

Team::~Team() {
  if (process_ != getpid()) return;  // a child of fork has the list, but not the threads
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  work_.notify_all();
  for (std::thread& helper : *helpers_) helper.join();
  delete helpers_;
}

void Team::Run(int64_t count, const Body& body) {
  if (count < 1) return;
  if (count == 1 || process_ != getpid()) return body(0, count);
  const std::unique_lock<std::mutex> call(call_, std::try_to_lock);
  if (!call.owns_lock()) return body(0, count);
  Grow(std::min<int64_t>(count, kMostThreads) - 1);
  int64_t asleep;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    next_ = 1;
    count_ = count;
    has_work_ = true;
    asleep = asleep_;
  }
  for (int64_t i = 0; i < std::min(asleep, count - 1); ++i) work_.notify_one();
  body(0, 1);
  int64_t rest;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    rest = next_;
    next_ = count_;
    has_work_ = false;
  }
  if (rest < count) body(rest, count);
  for (int i = 0; i < kSpins && running_.load(std::memory_order_acquire) > 0; ++i) {
  }
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return running_.load(std::memory_order_acquire) == 0; });
}

// Where the system gives no more threads, there are fewer: the caller takes what they leave.
void Team::Grow(int64_t helpers) {
  try {
    while (static_cast<int64_t>(helpers_->size()) < helpers) {
      helpers_->emplace_back([this] { Help(); });
    }
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
}

void Team::Help() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    AwaitWork(lock);
    if (ends_) return;
    const int64_t piece = next_++;
    has_work_ = next_ < count_;
    running_.fetch_add(1, std::memory_order_relaxed);
    const Body& body = *body_;
    lock.unlock();
    body(piece, piece + 1);
    lock.lock();
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) done_.notify_one();
  }
}

void Team::AwaitWork(std::unique_lock<std::mutex>& lock) {
  const auto is_needed = [this] { return ends_ || next_ < count_; };
  if (is_needed()) return;
  lock.unlock();
  const auto end = std::chrono::steady_clock::now() + kAwake;
  while (!has_work_.load(std::memory_order_acquire) && std::chrono::steady_clock::now() < end) {
  }
  lock.lock();
  ++asleep_;
  work_.wait(lock, is_needed);
  --asleep_;
}

}  // namespace litert
}  // namespace espace
