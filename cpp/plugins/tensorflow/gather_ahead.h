// SPDX-License-Identifier: Apache-2.0
// GatherAhead: makes the next elements on threads of its own while the last one is used.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "arcflow/feed/reader.h"
#include "tensorflow/core/framework/tensor.h"

namespace arcflow::tf {

/// What a source gives: an element, its end, or an error. The last two are final.
struct Gathered {
  absl::Status status;
  bool end = false;
  std::vector<tensorflow::Tensor> element;
  std::shared_ptr<const feed::Batch> batch;  // what the element was made of

  bool final() const { return end || !status.ok(); }
};

/// Takes what elements are made of one after the other, makes several at a time, and hands them out
/// in order. Gathering rows is a copy at the speed of memory; on the thread that asks for elements
/// it would add to what tf.data and the program do there.
/// Threads: Next from one thread at a time. Lifetime: the destructor waits for calls that are under
/// way; the owner makes one of `take` that waits return.
class GatherAhead {
 public:
  /// Makes the element.
  using Make = std::function<Gathered()>;
  /// What the next element is made by; never two calls at a time, none after nullptr, which is the
  /// end or an error: `*last` says which.
  using Take = std::function<Make(Gathered* last)>;

  /// What is there or on its way: at most `elements`, and none more once those that are there have
  /// `bytes`, but one for each of the `threads`. Several, so that no side waits for the other to be
  /// woken at each.
  struct Limits {
    std::size_t elements = 16;
    std::size_t bytes = std::size_t{16} << 20;
    std::size_t threads = 2;
  };

  GatherAhead(Take take, const Limits& limits) : take_(std::move(take)), limits_(limits) {
    const std::size_t threads = limits_.threads;
    for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~GatherAhead() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  GatherAhead(const GatherAhead&) = delete;
  GatherAhead& operator=(const GatherAhead&) = delete;

  /// The next in order. Blocks. After a final one: that one again.
  Gathered Next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !slots_.empty() && slots_.front()->ready; });
    if (slots_.front()->value.final()) return slots_.front()->value;
    Gathered next = std::move(slots_.front()->value);
    slots_.pop_front();
    bytes_ -= BytesOf(next);
    lock.unlock();
    changed_.notify_all();
    return next;
  }

 private:
  struct Slot {
    bool ready = false;
    Gathered value;
  };

  void Run() {
    for (;;) {
      Make make;
      auto slot = std::make_shared<Slot>();
      {
        const std::lock_guard one(taking_);
        if (!AwaitRoom()) return;
        make = take_(&slot->value);
        const std::lock_guard lock(mutex_);
        slots_.push_back(slot);
        if (make == nullptr) slot->ready = over_ = true;
      }
      if (make != nullptr) {
        Gathered made = make();
        const std::lock_guard lock(mutex_);
        slot->value = std::move(made);
        slot->ready = true;
        bytes_ += BytesOf(slot->value);
      }
      changed_.notify_all();
    }
  }

  /// False when there is nothing more to take.
  bool AwaitRoom() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stop_ || over_ || HasRoom(); });
    return !stop_ && !over_;
  }
  bool HasRoom() const {
    return slots_.size() < limits_.threads ||
           (slots_.size() < limits_.elements && bytes_ < limits_.bytes);
  }
  static std::size_t BytesOf(const Gathered& gathered) {
    std::size_t bytes = 0;
    for (const tensorflow::Tensor& tensor : gathered.element) bytes += tensor.TotalBytes();
    return bytes;
  }

  const Take take_;
  const Limits limits_;
  std::mutex taking_;  // before mutex_
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Slot>> slots_;
  std::size_t bytes_ = 0;  // of slots that are ready
  bool over_ = false;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace arcflow::tf
