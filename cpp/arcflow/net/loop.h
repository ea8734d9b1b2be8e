// SPDX-License-Identifier: Apache-2.0
// Loop: the one event loop of a context: sockets, timers, watched descriptors and posted tasks, all
// on one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "arcflow/base/status.h"

namespace asio {
class io_context;
}

namespace arcflow::net {

/// Something that lives on a loop and must end before it does (a channel, a listener).
class LoopService {
 public:
  virtual ~LoopService() = default;
  /// Called once on the loop thread when the loop ends; must let go of every descriptor and pending
  /// operation.
  virtual void OnLoopEnd() = 0;
};

/// An event loop. Run it in a thread of its own (StartThread) or in the caller's (Run).
/// Threads: everything but Run and the destructor may be called from any thread. Callbacks run on
/// the loop thread, one at a time, never under a lock of ours and never inside the call that
/// registers them. Lifetime: the destructor stops, joins and closes every channel and listener
/// (their on_closed says Cancelled); it must not run on the loop thread. Callbacks must not throw.
class Loop {
 public:
  static Result<std::unique_ptr<Loop>> Create();
  ~Loop();

  /// Starts the loop's own thread, with all signals blocked in it. FailedPrecondition the second
  /// time.
  Status StartThread();
  /// Runs in the calling thread until Stop().
  void Run();
  /// Ends the loop after the callback that is running; idempotent. Does not wait.
  void Stop();
  /// Waits for the loop's own thread to end; nothing to do without one.
  void Join();
  bool in_loop_thread() const;

  /// Runs `task` on the loop thread, after everything posted before it; dropped once the loop ends.
  void Post(std::function<void()> task);

  using TimerId = std::uint64_t;  // never 0
  TimerId After(std::chrono::nanoseconds delay, std::function<void()> task);
  /// Runs `task` every `period`, first after one period. A late call delays the later ones, it does
  /// not pile them up.
  TimerId Every(std::chrono::nanoseconds period, std::function<void()> task);
  /// On the loop thread: the task will not run any more. From another thread it may be running just
  /// now.
  void CancelTimer(TimerId id);

  using WatchId = std::uint64_t;  // never 0
  /// Calls `ready` whenever `fd` (a pipe, socket, pidfd, eventfd, …; not owned) is readable or
  /// closed by its peer, until it returns false. Level-triggered: what is not read is reported
  /// again. The loop watches a duplicate: a closed descriptor's peer sees the end once the watch is
  /// over too. The open file becomes non-blocking. InvalidArgument for what epoll refuses (a plain
  /// file).
  Result<WatchId> WatchReadable(int fd, std::function<bool()> ready);
  /// As CancelTimer.
  void Unwatch(WatchId id);

  asio::io_context& context();
  /// Keeps `service` informed of the loop's end for as long as it lives.
  void Register(std::weak_ptr<LoopService> service);

 private:
  struct Impl;
  explicit Loop(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::net
