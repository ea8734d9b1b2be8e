// SPDX-License-Identifier: Apache-2.0
// The token bucket.
#include "arcflow/net/failure_gate.h"

#include <algorithm>

namespace arcflow::net {

void FailureGate::Fill(Clock::time_point now) {
  const double passed_s = std::chrono::duration<double>(now - filled_).count();
  tokens_ = std::min(kBurst, tokens_ + passed_s * kPerSecond);
  filled_ = now;
}

bool FailureGate::Admits(const std::string& address, Clock::time_point now) {
  Fill(now);
  if (tokens_ >= 1) return true;
  const auto it = failed_.find(address);
  if (it == failed_.end()) return true;
  if (now - it->second < kForget) return false;
  failed_.erase(it);
  return true;
}

void FailureGate::Failed(const std::string& address, Clock::time_point now) {
  Fill(now);
  tokens_ = std::max(0.0, tokens_ - 1);
  // So many addresses are no mistake of a few hosts: forgetting all of them costs tokens, not
  // memory.
  if (failed_.size() >= kMaxAddresses && failed_.count(address) == 0) failed_.clear();
  failed_[address] = now;
}

}  // namespace arcflow::net
