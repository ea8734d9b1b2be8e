// SPDX-License-Identifier: Apache-2.0
// Gate: lets threads into memory for the length of one copy, and closes it for good.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "arcflow/base/deadline.h"

namespace arcflow::transport {

/// The one means by which this layer keeps its promise about memory: whoever reads or writes
/// caller's memory holds the gate open meanwhile, and whoever gives the memory back closes it and
/// waits until nobody is inside. Threads: any. Lifetime: shared by all who may enter.
class Gate {
 public:
  /// False once closed; after true call Leave().
  bool Enter() {
    // acquire: what is done inside must not move before the check
    std::uint32_t now = word_.load(std::memory_order_relaxed);
    while ((now & kClosed) == 0) {
      if (word_.compare_exchange_weak(now, now + 1, std::memory_order_acquire,
                                      std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }
  void Leave() {
    // release: what was done inside is over for whoever sees the count fall
    if (word_.fetch_sub(1, std::memory_order_release) == (kClosed | 1U)) word_.notify_all();
  }
  /// Nobody enters any more; does not wait. Idempotent.
  void Close() { word_.fetch_or(kClosed, std::memory_order_acq_rel); }
  bool closed() const { return (word_.load(std::memory_order_acquire) & kClosed) != 0; }
  /// Closed and nobody inside.
  bool drained() const { return word_.load(std::memory_order_acquire) == kClosed; }
  /// Requires Close(). Blocks until nobody is inside.
  void Wait() const {
    for (;;) {
      const std::uint32_t now = word_.load(std::memory_order_acquire);
      if (now == kClosed) return;
      word_.wait(now, std::memory_order_acquire);
    }
  }

 private:
  static constexpr std::uint32_t kClosed = 1U << 31;
  std::atomic<std::uint32_t> word_{0};
};

/// Leaves when it goes out of scope, if it got in.
class GatePass {
 public:
  explicit GatePass(Gate* gate) : gate_(gate != nullptr && gate->Enter() ? gate : nullptr) {}
  ~GatePass() {
    if (gate_ != nullptr) gate_->Leave();
  }
  GatePass(const GatePass&) = delete;
  GatePass& operator=(const GatePass&) = delete;
  explicit operator bool() const { return gate_ != nullptr; }

 private:
  Gate* gate_;
};

/// A word that a peer on the same host reads out of our memory after it has copied from us: it
/// holds a number that is never used twice while the copied memory is the transport's, 0
/// afterwards. Words are reused but stay readable until the table is gone.
class ValidityTable {
 public:
  using Word = std::atomic<std::uint64_t>;

  /// A word that holds a fresh number.
  Word* Take() {
    std::lock_guard lock(mutex_);
    if (free_.empty()) {
      blocks_.push_back(std::make_unique<Word[]>(kBlock));
      for (std::size_t i = 0; i < kBlock; ++i) free_.push_back(&blocks_.back()[i]);
    }
    Word* word = free_.back();
    free_.pop_back();
    word->store(next_++, std::memory_order_seq_cst);
    return word;
  }
  /// Ends what the word stood for. seq_cst: no later write to the memory may be seen before it.
  static void Revoke(Word* word) { word->store(0, std::memory_order_seq_cst); }
  void Give(Word* word) {
    Revoke(word);
    std::lock_guard lock(mutex_);
    free_.push_back(word);
  }

 private:
  static constexpr std::size_t kBlock = 256;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Word[]>> blocks_;
  std::vector<Word*> free_;
  std::uint64_t next_ = 1;
};

}  // namespace arcflow::transport
