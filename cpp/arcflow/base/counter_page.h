// SPDX-License-Identifier: Apache-2.0
// CounterPage: one shared page of counters through which a node tells its agent how far it is,
// without any call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "arcflow/base/fd.h"
#include "arcflow/base/mapping.h"
#include "arcflow/base/status.h"

namespace arcflow {

/// Layout of the page; docs/formats/counter_page.md. Any change bumps kVersion.
struct CounterPageLayout {
  static constexpr std::uint32_t kMagic = 0x50435241;  // "ARCP"
  static constexpr std::uint32_t kVersion = 2;

  std::uint32_t magic;
  std::uint32_t version;
  std::atomic<std::uint64_t> steps;        // batches handed out by all readers of training feeds
  std::atomic<std::uint64_t> rows_used;    // real rows handed out
  std::atomic<std::uint64_t> rows_padded;  // padding rows handed out
  std::atomic<std::uint64_t> bytes_used;   // bytes of tensors handed out
  std::atomic<std::uint64_t> wait_ns;      // time that readers spent waiting for rows
  std::atomic<std::uint64_t>
      compute_ns;  // time between handing out a batch and being asked for the next one
  std::atomic<std::uint64_t> epochs;          // passes that reached the end
  std::atomic<std::uint64_t> batches_copied;  // batches that could not be zero copy
  std::atomic<std::uint64_t> user_step;  // as the user's program says (ctx.log, the Keras callback)
  std::atomic<std::uint64_t> user_epoch;
  std::atomic<double> user_loss;         // NaN until known
  std::atomic<std::uint64_t> heartbeat;  // bumped whenever anything above changes
  // What the agent tells the node, of all feeds together, at every heartbeat:
  std::atomic<std::uint64_t> rows_fed;
  std::atomic<std::uint64_t> depth_bytes;     // of rows that no reader has passed
  std::atomic<std::uint64_t> feeder_wait_ns;  // time that the feeder waited for memory
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free &&
              std::atomic<double>::is_always_lock_free);
static_assert(std::is_standard_layout_v<CounterPageLayout> && sizeof(CounterPageLayout) == 128);
static_assert(offsetof(CounterPageLayout, steps) == 8 &&
              offsetof(CounterPageLayout, heartbeat) == 96 &&
              offsetof(CounterPageLayout, feeder_wait_ns) == 120);

/// Owner of a mapped counter page.
/// Threads: every counter is atomic; relaxed order is enough because nothing else is published
/// through the page.
class CounterPage {
 public:
  static constexpr std::size_t kSizeBytes = 4096;

  /// Makes a fresh page backed by a memfd; `fd()` may be passed to the node.
  static Result<std::shared_ptr<CounterPage>> Create();
  /// Attaches to a page that another process made; InvalidArgument for a wrong size, magic or
  /// version.
  static Result<std::shared_ptr<CounterPage>> Attach(Fd fd);

  CounterPageLayout& counters() const {
    return *reinterpret_cast<CounterPageLayout*>(mapping_.data());
  }
  const Fd& fd() const { return fd_; }

 private:
  CounterPage(Fd fd, Mapping mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}

  Fd fd_;
  Mapping mapping_;
};

}  // namespace arcflow
