// SPDX-License-Identifier: Apache-2.0
// WorkPool: a few threads for transfers that run beside their caller.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace arcflow::hdfs {

/// Runs tasks in the order in which they came, on at most `threads` threads, which start when
/// there is work. Threads: Submit from any. The destructor waits for running tasks and drops the
/// others.
class WorkPool {
 public:
  explicit WorkPool(std::size_t threads) : limit_(threads) {}
  ~WorkPool();
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  void Submit(std::function<void()> task);

 private:
  void Run();

  const std::size_t limit_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool closing_ = false;
};

}  // namespace arcflow::hdfs
