// SPDX-License-Identifier: Apache-2.0
// FailureGate: bounds how many failed handshakes a listener pays for.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>

namespace arcflow::net {

/// A bucket of tokens for all, and a bounded memory of who failed. A failure takes a token; while
/// there is none, addresses that failed lately are turned away at once, before a byte is exchanged.
/// Others come in all the same: a stranger cannot keep the run's own hosts out. Who shares an
/// address with a stranger tries again and gets one of the tokens that come back.
/// Threads: one.
class FailureGate {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr double kPerSecond = 100;
  static constexpr double kBurst = 400;
  static constexpr std::size_t kMaxAddresses = 1024;
  static constexpr std::chrono::seconds kForget{60};

  explicit FailureGate(Clock::time_point now) : filled_(now) {}

  /// Whether to talk to a peer at this address at all.
  bool Admits(const std::string& address, Clock::time_point now);
  /// A handshake with it failed, or did not end in time.
  void Failed(const std::string& address, Clock::time_point now);
  std::size_t known() const { return failed_.size(); }

 private:
  void Fill(Clock::time_point now);

  double tokens_ = kBurst;
  Clock::time_point filled_;
  std::unordered_map<std::string, Clock::time_point> failed_;  // when last
};

}  // namespace arcflow::net
