// SPDX-License-Identifier: Apache-2.0
// What the coordinator's sources share: its records of a connection and of a member, and small
// helpers.
#pragma once

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "arcflow/base/log.h"
#include "arcflow/control/coordinator_state.h"
#include "arcflow/net/frame.h"

namespace arcflow::control {

inline constexpr std::size_t kControlFrameBytes = std::size_t{8} << 20;
inline constexpr double kUnknownOffset = 1e18;

/// An open, authenticated connection.
struct CoordinatorState::Peer {
  std::shared_ptr<net::Channel> channel;
  MemberState* member = nullptr;  // null until it joined
  bool refused = false;
};

/// A node that its agent suspects of having stopped making progress.
struct CoordinatorState::Stall {
  Deadline::Clock::time_point since;  // of the report
  double idle_s = 0;
  double timeout_s = 0;  // of that agent
  std::uint64_t steps = 0;
  bool in_tensorflow = false;  // inside an operation, where it may wait for others
};

/// A rank that joined; stays until the end of the run.
struct CoordinatorState::MemberState {
  Join join;
  PeerPtr peer;
  Deadline::Clock::time_point last_seen;
  std::string beat;  // the last one, as progress tells it: text, for a thousand trees are slow
  double clock_offset_s = kUnknownOffset;  // ours minus its; the least that a message showed
  bool done = false;                       // its node returned a result
  bool failed = false;                     // it, or we about it, reported a failure
  std::size_t result_bytes = 0;            // of its result, told in pieces
  bool left = false;                       // said bye or is lost; its channel is not used any more
  std::optional<Stall> stall;
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

inline double SecondsSince(Deadline::Clock::time_point moment) {
  return std::chrono::duration<double>(Deadline::Clock::now() - moment).count();
}

/// "15.2"
inline std::string Tenths(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", seconds);
  return text;
}

/// One message for many channels. Null, and logged, when it is over the bound of a frame.
inline net::SharedFrame ShareFrame(const nlohmann::json& message) {
  auto frame = net::EncodeFrame(message, kControlFrameBytes);
  if (frame.ok()) return std::make_shared<const std::string>(std::move(*frame));
  Log(LogLevel::kError, "a message to all agents was lost: " + frame.status().ToString());
  return nullptr;
}

inline void SendOrAbort(net::Channel& channel, const net::SharedFrame& frame) {
  if (!frame) return;
  if (Status status = channel.SendFrame(frame); !status.ok()) channel.Abort(status);
}

/// A peer whose queue is full, or who is gone, cannot be kept; its on_closed says so later.
inline void SendOrAbort(net::Channel& channel, const nlohmann::json& message) {
  if (Status status = channel.Send(message); !status.ok()) channel.Abort(status);
}

}  // namespace arcflow::control
