// SPDX-License-Identifier: Apache-2.0
// A bounded queue of events.
#include "arcflow/control/event_queue.h"

#include <algorithm>
#include <utility>

namespace arcflow::control {

void EventQueue::Push(Kind kind, std::string event) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_ || last_pushed_) return;
    const auto same = [kind](const Entry& e) { return e.kind == kind; };
    if (kind == Kind::kProgress) {
      const auto waiting = std::find_if(entries_.begin(), entries_.end(), same);
      if (waiting != entries_.end()) entries_.erase(waiting);
    }
    if (kind == Kind::kChatter && ++chatter_ > kMaxChatter) {
      entries_.erase(std::find_if(entries_.begin(), entries_.end(), same));
      --chatter_;
    }
    if (kind == Kind::kLast) last_pushed_ = true;
    entries_.push_back(Entry{kind, std::move(event)});
  }
  changed_.notify_all();
}

void EventQueue::Wait(std::unique_lock<std::mutex>& lock, Deadline deadline) {
  if (deadline.infinite()) {
    changed_.wait(lock);
  } else {
    changed_.wait_until(lock, deadline.at());
  }
}

Result<std::optional<std::string>> EventQueue::Next(Deadline deadline) {
  std::unique_lock lock(mutex_);
  while (entries_.empty()) {
    if (closed_) return Cancelled("the coordinator is closed");
    if (last_taken_ || deadline.expired()) return std::optional<std::string>();
    Wait(lock, deadline);
  }
  Entry entry = std::move(entries_.front());
  entries_.pop_front();
  if (entry.kind == Kind::kChatter) --chatter_;
  if (entry.kind == Kind::kLast) last_taken_ = true;
  return std::optional<std::string>(std::move(entry.event));
}

bool EventQueue::WaitLast(Deadline deadline) {
  std::unique_lock lock(mutex_);
  while (!last_pushed_ && !closed_ && !deadline.expired()) Wait(lock, deadline);
  return last_pushed_;
}

bool EventQueue::has_last() const {
  const std::lock_guard lock(mutex_);
  return last_pushed_;
}

void EventQueue::Close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

}  // namespace arcflow::control
