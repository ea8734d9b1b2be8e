// SPDX-License-Identifier: Apache-2.0
// EventQueue: carries the coordinator's events from its loop to whoever asks for the next one.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"

namespace arcflow::control {

/// A queue of JSON texts that nobody has to read: of progress only the newest waits, of chatter
/// (logs, what nodes say) at most kMaxChatter entries, oldest dropped first. Everything else is
/// bounded by the number of ranks. Threads: any.
class EventQueue {
 public:
  static constexpr std::size_t kMaxChatter = 10000;
  enum class Kind { kPlain, kChatter, kProgress, kLast };

  void Push(Kind kind, std::string event);
  /// See Coordinator::NextEvent.
  Result<std::optional<std::string>> Next(Deadline deadline);
  /// Wakes everybody with Cancelled.
  void Close();
  /// Waits until the last event was pushed; false at the deadline or after Close.
  bool WaitLast(Deadline deadline);
  bool has_last() const;

 private:
  struct Entry {
    Kind kind;
    std::string event;
  };
  void Wait(std::unique_lock<std::mutex>& lock, Deadline deadline);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> entries_;
  std::size_t chatter_ = 0;
  bool last_pushed_ = false;
  bool last_taken_ = false;
  bool closed_ = false;
};

}  // namespace arcflow::control
