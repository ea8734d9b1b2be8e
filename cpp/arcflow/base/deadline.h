// SPDX-License-Identifier: Apache-2.0
// Deadline: a point on the steady clock that every blocking call takes.
#pragma once

#include <chrono>

namespace arcflow {

/// A moment after which a blocking call gives up. Cheap to copy.
class Deadline {
 public:
  using Clock = std::chrono::steady_clock;
  /// From here on AfterSeconds means infinite: what does not fit 64 bits of nanoseconds.
  static constexpr double kForeverSeconds = 9e9;

  explicit Deadline(Clock::time_point at) : at_(at) {}
  /// Saturates: a moment that the clock cannot hold is infinite.
  static Deadline After(std::chrono::nanoseconds d) {
    const auto now = Clock::now();
    return d > Clock::time_point::max() - now ? Infinite() : Deadline(now + d);
  }
  static Deadline AfterSeconds(double s) {
    if (!(s < kForeverSeconds)) return Infinite();  // NaN as well
    return After(std::chrono::nanoseconds(static_cast<long long>((s < 0 ? 0 : s) * 1e9)));
  }
  /// For loops that something else bounds (a cancellation, the death of a peer).
  static Deadline Infinite() { return Deadline(Clock::time_point::max()); }

  bool infinite() const { return at_ == Clock::time_point::max(); }
  bool expired() const { return !infinite() && Clock::now() >= at_; }
  Clock::time_point at() const { return at_; }
  /// For poll(2): -1 for an infinite deadline, else the milliseconds left, rounded up, never
  /// negative.
  int poll_ms() const {
    if (infinite()) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - Clock::now()).count();
    return left < 0 ? 0 : static_cast<int>(left > 1'000'000'000 ? 1'000'000'000 : left);
  }

 private:
  Clock::time_point at_;
};

}  // namespace arcflow
