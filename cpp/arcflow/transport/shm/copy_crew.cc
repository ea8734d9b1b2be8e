// SPDX-License-Identifier: Apache-2.0
// CopyCrew: parts are taken from one counter by whoever is there.
#include "arcflow/transport/shm/copy_crew.h"

#include <algorithm>
#include <atomic>

#include "arcflow/base/cores.h"

namespace arcflow::transport::shm {
namespace {

constexpr std::size_t kCrewPart = std::size_t{256} << 10;
constexpr std::size_t kHelpedBytes = std::size_t{1}
                                     << 20;  // below, waking costs more than it saves
constexpr int kMostHelpers = 3;              // memory gives no more to one copy

}  // namespace

struct CopyCrew::Task {
  const std::size_t total;
  const CopyPart& part;
  std::atomic<std::size_t> next{0};
  std::atomic<bool> failed{false};
  // By the crew's mutex:
  int inside = 0;  // helpers
  Status status;

  /// Takes parts until none is left.
  Status Work() {
    while (!failed.load(std::memory_order_relaxed)) {
      const std::size_t offset = next.fetch_add(kCrewPart, std::memory_order_relaxed);
      if (offset >= total) break;
      if (Status s = part(offset, std::min(kCrewPart, total - offset)); !s.ok()) {
        failed.store(true, std::memory_order_relaxed);
        return s;
      }
    }
    return Status::Ok();
  }
};

std::shared_ptr<CopyCrew> CopyCrew::Shared() {
  static std::mutex mutex;
  static std::weak_ptr<CopyCrew> shared;
  const std::lock_guard lock(mutex);
  auto crew = shared.lock();
  if (crew == nullptr) {
    crew = std::make_shared<CopyCrew>(std::min(UsableCores() - 1, kMostHelpers));
    shared = crew;
  }
  return crew;
}

CopyCrew::~CopyCrew() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wanted_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Status CopyCrew::Copy(std::size_t total, const CopyPart& part) {
  Task task{total, part};
  bool helped = false;
  if (helpers_ > 0 && total >= kHelpedBytes) {
    const std::lock_guard lock(mutex_);
    helped = task_ == nullptr;
    if (helped) {
      if (threads_.empty()) Start();
      task_ = &task;
      ++tasks_;
    }
  }
  if (!helped) return part(0, total);
  wanted_.notify_all();
  Status mine = task.Work();
  std::unique_lock lock(mutex_);
  task_ = nullptr;  // nobody comes in any more
  left_.wait(lock, [&] { return task.inside == 0; });
  return mine.ok() ? task.status : mine;
}

void CopyCrew::Start() {
  for (int i = 0; i < helpers_; ++i) threads_.emplace_back([this] { Help(); });
}

void CopyCrew::Help() {
  std::unique_lock lock(mutex_);
  std::uint64_t last = 0;  // what was worked on has nothing left
  for (;;) {
    wanted_.wait(lock, [&] { return ending_ || (task_ != nullptr && tasks_ != last); });
    if (ending_) return;
    Task* const task = task_;
    last = tasks_;
    ++task->inside;
    lock.unlock();
    const Status status = task->Work();
    lock.lock();
    if (!status.ok()) task->status = status;
    --task->inside;
    left_.notify_all();
  }
}

}  // namespace arcflow::transport::shm
