// SPDX-License-Identifier: Apache-2.0
// What the coordinator's sources share: its records of a connection and of a member, and small
// helpers.
#pragma once

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/control/coordinator_state.h"

namespace arcflow::control {

/// An open, authenticated connection.
struct CoordinatorState::Peer {
  std::shared_ptr<net::Channel> channel;
  MemberState* member = nullptr;  // null until it joined
  bool refused = false;
};

/// A rank that joined; stays until the end of the run.
struct CoordinatorState::MemberState {
  Join join;
  PeerPtr peer;
  Deadline::Clock::time_point last_seen;
  nlohmann::json beat;     // last one
  bool done = false;       // its node returned a result
  bool failed = false;     // it, or we about it, reported a failure
  bool left = false;       // said bye or is lost; its channel is not used any more
  std::string status;      // "ok", "failed", "stopped", "lost" once it left
  nlohmann::json metrics;  // from `done` or `bye`
  nlohmann::json rows;
};

inline std::chrono::nanoseconds Seconds(double s) {
  return std::chrono::nanoseconds(static_cast<long long>(s * 1e9));
}

inline double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// A peer whose queue is full, or who is gone, cannot be kept; its on_closed says so later.
inline void SendOrAbort(net::Channel& channel, const nlohmann::json& message) {
  if (Status status = channel.Send(message); !status.ok()) channel.Abort(status);
}

}  // namespace arcflow::control
