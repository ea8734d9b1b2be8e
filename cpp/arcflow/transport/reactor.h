// SPDX-License-Identifier: Apache-2.0
// Reactor: one thread that waits on sockets and runs what is posted to it. Internal to this layer.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::transport {

/// Why not net::Loop: payload needs write interest, several threads for one peer, and no task
/// object for each wake-up.
/// Threads: Post, Watch, Modify, WantTicks from any; Unwatch and handlers on its thread.
class Reactor {
 public:
  using Ready = std::function<void(std::uint32_t epoll_events)>;
  using Id = std::uint64_t;

  static Result<std::unique_ptr<Reactor>> Start(const std::string& name);
  /// Stop() and join.
  ~Reactor();

  /// Ends the thread after everything posted so far; blocks. Idempotent. Not on its own thread.
  void Stop();
  bool InThread() const { return std::this_thread::get_id() == thread_.get_id(); }
  /// Runs `task` on the thread, in order; false (and dropped) once stopped.
  bool Post(std::function<void()> task);

  /// Level-triggered. The handler is kept until Unwatch.
  Result<Id> Watch(int fd, std::uint32_t events, Ready ready);
  void Modify(Id id, int fd, std::uint32_t events);
  void Unwatch(Id id, int fd);

  /// Called on the thread at least every kSlowTick, and every kFastTick while WantTicks says so.
  void SetTick(std::function<void()> tick);
  void WantTicks(int change);
  static constexpr std::chrono::milliseconds kFastTick{10};
  static constexpr std::chrono::milliseconds kSlowTick{250};

  /// Whether the calling thread is a transport thread of any context.
  static bool OnTransportThread();
  static void MarkTransportThread();

 private:
  Reactor() = default;
  void Run(const std::string& name);
  void RunPosted();
  void Wake();

  Fd epoll_;
  Fd wake_;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;
  bool stopping_ = false;
  Id next_ = 1;
  std::unordered_map<Id, std::shared_ptr<Ready>> watches_;
  std::function<void()> tick_;
  std::atomic<int> fast_{0};
  std::thread thread_;
};

}  // namespace arcflow::transport
