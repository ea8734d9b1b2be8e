// SPDX-License-Identifier: Apache-2.0
// NodeLink: the node's side of its control session with the agent.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/counter_page.h"
#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::control {

/// Opens a session through the broker: makes a packet pair, hands one end to the agent with {op:
/// open, what, feed}, returns the other. Errors: Unavailable when the agent is gone.
Result<Fd> OpenSession(int broker_fd, const std::string& what, const std::string& feed,
                       Deadline deadline);

/// Talks to the agent for the node's whole life.
/// Threads: any; Barrier calls are serialised, everything else never waits for a barrier.
/// Errors: Unavailable when the agent is gone (the node is about to be killed then).
class NodeLink {
 public:
  /// Opens the control session and waits for the configuration. `broker_fd` is not owned. One per
  /// node.
  static Result<std::unique_ptr<NodeLink>> Open(int broker_fd, Deadline deadline);
  /// The broker's descriptor as the environment says; NotFound outside a node.
  static Result<int> BrokerFdFromEnvironment();
  ~NodeLink();

  /// {"role", "rank", "size", "index", "cluster": {role: ["host:port"…]…}, "feeds": {name: schema},
  /// "job"}
  const std::string& config_json() const;
  /// The bytes given to FeederLink::Launch.
  const std::string& payload() const;
  std::shared_ptr<CounterPage> counters() const;

  /// A line (or several) for the driver's log. Texts are cut to kMaxTextBytes.
  Status Log(std::string_view text);
  /// A JSON object for the driver's `node` events. InvalidArgument when it is not an object or too
  /// long.
  Status Progress(const std::string& json);

  /// Waits until the first `ranks` ranks (0: all) called Barrier with that name, and returns what
  /// each brought, by rank. Barriers for different numbers of ranks do not disturb each other.
  /// `payload` at most kMaxBarrierPayloadBytes. Errors: DeadlineExceeded naming the ranks that are
  /// missing (for all callers: the earliest deadline counts); FailedPrecondition when ranks wait at
  /// differently named barriers; Aborted when a node failed or finished without coming here.
  Result<std::vector<std::string>> Barrier(const std::string& name, std::string_view payload,
                                           Deadline deadline, int ranks = 0);

  /// No progress is to be expected from now on, because of `reason`; "" ends that.
  Status Busy(std::string_view reason);
  /// The file that this process's handlers of stack_dumper.h write to, -1 without one; and the word
  /// that PythonStackSignal() is handled too.
  int stacks_fd() const;
  Status PythonStacks();

  /// What the node returns. The last call before a normal exit; a second one is FailedPrecondition.
  Status SetResult(std::string_view bytes);
  /// The user's program raised: {"type", "message", "traceback", "peer_loss"}.
  Status Failed(const std::string& json);

 private:
  struct Impl;
  explicit NodeLink(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::control
