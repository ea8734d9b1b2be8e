// SPDX-License-Identifier: Apache-2.0
// AgentSession: the agent's side of its connection to the coordinator.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/control/protocol.h"
#include "arcflow/feed/service.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/loop.h"

namespace arcflow::control {

/// Joins a run and passes messages both ways.
/// Threads: the loop's. Lifetime: callbacks come no more after it is destroyed.
class AgentSession {
 public:
  struct Callbacks {
    std::function<void(std::vector<Member> cluster)> on_start;
    std::function<void(const std::string& feed, const std::vector<feed::RankRows>& ranks)> on_rows;
    std::function<void(const nlohmann::json& answer)> on_barrier;
    /// The coordinator asks for a sign of life (at once), or for the node's last lines.
    std::function<void()> on_ping;
    std::function<void(int lines)> on_lines;
    /// The driver, or the answer to a claim (side_server.h).
    std::function<void(const nlohmann::json& message)> on_side;
    /// Where another rank gives rows (hand_messages.h).
    std::function<Status(const nlohmann::json& message)> on_hand;
    /// The node is to be described and ended: it holds up the run.
    std::function<void()> on_describe;
    std::function<void(Verdict verdict)> on_verdict;
    /// Refused, or the connection could not be made or broke before a verdict: `cause`, `message`
    /// are set.
    std::function<void(Failure failure)> on_lost;
    /// The connection is closed, whatever the reason. Last.
    std::function<void()> on_closed;
  };
  AgentSession(net::Loop& loop, Callbacks callbacks);
  ~AgentSession();

  /// Connects (retrying while nobody listens yet) and joins.
  void Connect(const HostPort& coordinator, net::ChannelOptions options, double timeout_s,
               const Join& join);
  /// Sends unless the connection is closed; a message that finds the queue full is dropped.
  void Send(const nlohmann::json& message);
  /// The last message, then the connection closes.
  void Bye(const nlohmann::json& message);

  bool open() const;

 private:
  struct State;  // shared with the channel's callbacks
  net::Loop& loop_;
  std::shared_ptr<State> state_;
};

}  // namespace arcflow::control
