// SPDX-License-Identifier: Apache-2.0
// FeederLink: the Spark task's hold on its agent: starts it, feeds it, hears its outcome, ends it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/feed/writer.h"

namespace arcflow::control {

/// How a node ended, as its agent says.
struct Outcome {
  std::string json;    // {"status": "ok" | "failed" | "stopped", "failure": {…} | null, "reason",
                       // "metrics": {…}, "rows": {…}}
  std::string result;  // bytes that the node returned; empty unless ok
};

/// One agent process and the packet socket to it.
/// The agent sits in a process group of its own and ends when this object, or its process, ends.
/// Threads: any; calls are serialised, so a long WaitOutcome holds up an Acquire. pid() and stats()
/// never wait. Blocking: Launch, Acquire, Publish (while the agent's queue is full), WaitOutcome,
/// Close. Errors of all calls after the agent died: Unavailable with how it died; its node is then
/// killed too.
class FeederLink : public feed::SegmentSource {
 public:
  struct Stats {
    std::uint64_t acquires = 0;
    std::uint64_t acquire_wait_ns = 0;
    std::uint64_t publishes = 0;
  };

  /// Starts `agent_path` and gives it its configuration (JSON of AgentConfig, checked here first)
  /// and the bytes that the node will find as its payload. Errors: InvalidArgument (config),
  /// NotFound (no such agent), Unavailable.
  static Result<std::unique_ptr<FeederLink>> Launch(const std::string& agent_path,
                                                    const std::string& config_json,
                                                    const std::string& payload);
  /// As Close with a short deadline.
  ~FeederLink() override;

  Result<Grant> Acquire(const std::string& feed, std::size_t min_bytes, Deadline deadline) override;
  Status Publish(const std::string& feed, const Grant& grant, std::size_t rows, bool closed,
                 int fd) override;

  /// No more rows of that feed.
  Status End(const std::string& feed);
  /// The feeder failed: this becomes the node's failure. `code` is a name as CodeName gives it.
  Status Abort(const std::string& code, const std::string& message, const std::string& traceback);

  /// The outcome once there is one; std::nullopt when the deadline passed. Later calls return the
  /// same outcome.
  Result<std::optional<Outcome>> WaitOutcome(Deadline deadline);

  /// Of an agent whose configuration says `side`: waits until its node runs and it lives on without
  /// this feeder. True: it does, and this link is of no more use than to Follow; false: the
  /// deadline passed. Cancelled when there is an outcome instead.
  Result<bool> Detach(Deadline deadline);
  /// After Detach: waits for the agent's end, reaps it, and ends what its node has left behind when
  /// the agent was killed. False: the deadline passed.
  bool Follow(Deadline deadline);

  /// Ends the agent: closes its standard input, waits, kills it (and its node) at the deadline.
  /// Reaps it. Idempotent.
  void Close(Deadline deadline);

  pid_t pid() const;
  /// The node's process and process group; 0 as long as the agent has not told.
  pid_t node_pid() const;
  Stats stats() const;

 private:
  struct Impl;
  explicit FeederLink(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::control
