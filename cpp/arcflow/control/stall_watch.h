// SPDX-License-Identifier: Apache-2.0
// StallWatch: decides from samples whether a node that lives has stopped making progress.
#pragma once

#include <chrono>
#include <cstdint>

namespace arcflow::control {

/// The rule, without clocks and processes. Time counts only while the node should make progress:
/// not while it says that it is busy (saving, `ctx.busy`), waits at a barrier, or waits for rows.
///   - A node that reports progress must do so again within `timeout`; kStartFactor times that for
///     its first kStartReports, because these hold TensorFlow's start and compilation.
///   - One that never reported is watched by its use of processor and files instead: as long as it
///     uses kIdleShare of a core, or reads and writes, it is taken for one that works.
/// Threads: one.
class StallWatch {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr double kStartFactor = 4;
  static constexpr std::uint64_t kStartReports = 3;
  static constexpr double kIdleShare = 0.05;

  struct Sample {
    Clock::time_point now;
    std::uint64_t reports = 0;   // grows with every sign of progress
    double cpu_s = 0;            // used so far
    std::uint64_t io_bytes = 0;  // read and written so far
    bool excused = false;        // busy, or waiting for another
  };

  /// `timeout` 0: off.
  explicit StallWatch(std::chrono::nanoseconds timeout) : timeout_(timeout) {}

  /// Takes a sample; true when the node is overdue. Then either it is described and ended, or
  /// Defer() gives it more time.
  bool Overdue(const Sample& sample);
  /// Starts to count anew.
  void Defer(Clock::time_point now);
  /// Since the last progress, as far as it counts.
  std::chrono::nanoseconds idle(Clock::time_point now) const { return now - since_; }
  /// Share of a core that the node used since the last progress.
  double cpu_share(const Sample& sample) const;
  bool used_files(const Sample& sample) const { return sample.io_bytes > io_at_; }
  bool reported() const { return reports_ > 0; }
  bool on() const { return timeout_.count() > 0; }

 private:
  void Start(const Sample& sample);

  std::chrono::nanoseconds timeout_;
  bool begun_ = false;
  Clock::time_point since_;
  std::uint64_t reports_ = 0;
  double cpu_at_ = 0;  // used when since_ was
  std::uint64_t io_at_ = 0;
};

}  // namespace arcflow::control
