// SPDX-License-Identifier: Apache-2.0
// LoopPort: how an object that users may keep longer than its loop posts to that loop.
#pragma once

#include <asio/io_context.hpp>
#include <asio/post.hpp>
#include <mutex>
#include <utility>

namespace arcflow::net {

/// Internal to this layer. Threads: any.
class LoopPort {
 public:
  explicit LoopPort(asio::io_context& context) : context_(&context) {}

  /// Runs `task` on the loop thread, never inline; dropped after Detach().
  template <typename Task>
  void Post(Task task) {
    std::lock_guard lock(mutex_);
    if (context_ != nullptr) asio::post(*context_, std::move(task));
  }
  /// After it the loop may be destroyed.
  void Detach() {
    std::lock_guard lock(mutex_);
    context_ = nullptr;
  }

 private:
  std::mutex mutex_;
  asio::io_context* context_;
};

}  // namespace arcflow::net
