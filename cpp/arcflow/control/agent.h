// SPDX-License-Identifier: Apache-2.0
// Agent: the process that owns one node: feeds it, watches it, reports on it, ends it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/counter_page.h"
#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/control/agent_session.h"
#include "arcflow/control/coordinator.h"
#include "arcflow/control/hand_over.h"
#include "arcflow/control/held_port.h"
#include "arcflow/control/log_file.h"
#include "arcflow/control/node_inspector.h"
#include "arcflow/control/node_process.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/remote_server.h"
#include "arcflow/control/side_server.h"
#include "arcflow/control/stall_watch.h"
#include "arcflow/feed/service.h"
#include "arcflow/net/loop.h"
#include "arcflow/net/packet.h"

namespace arcflow::control {

/// The numbers of the descriptors that the feeder leaves in the agent.
inline constexpr int kAgentStdin = 0;
inline constexpr int kAgentFeederFd = 3;

/// main() of the agent executable: runs an agent on descriptors 0 and 3, or, as `--exec-node PID --
/// ARGV…`, becomes a node. Returns the exit code.
int AgentMain(int argc, char* argv[]);

/// One agent, from its configuration to its outcome.
/// It ends when its feeder closes it or dies, and never before it has ended its node and everything
/// below it. Threads: one, the caller's, which runs the loop; a hosted coordinator has its own.
class Agent {
 public:
  explicit Agent(Fd feeder);
  ~Agent();

  /// Runs until the end. Errors: of the descriptors given; nothing was started then.
  Status Run();

 private:
  enum class Phase { kConfig, kJoining, kRunning, kEnding, kLingering, kOver };

  // Watches.
  Status Watch();
  Status WatchFeeder();
  bool OnFeederPacket();
  bool OnStdin();
  void OnFeederGone(const std::string& how);
  void OnExecutorGone();
  bool ExecutorIsDead() const;
  void OnSignal(int signal);

  // Feeder.
  void HandleFeederPacket(net::Message& message);
  void OnConfig(net::Message& message);
  void OnAbort(const nlohmann::json& body);
  void SendToFeeder(const nlohmann::json& packet, const std::vector<int>& fds);
  void SendOutcome();
  void StartHandOver();  // agent_hand.cc
  Status StartSide();    // agent_side.cc, as all below
  void Detach();
  bool TellResult();

  // Run.
  Status Configure(net::Message& message);
  Status HostCoordinator(HostPort* address);
  void Join();
  void OnStart(std::vector<Member> cluster);
  Status StartNode(const std::vector<Member>& cluster);
  NodeProcess::Callbacks NodeCallbacks();
  std::string NodeConfig(const std::vector<Member>& cluster) const;
  void OnReader(const std::string& feed, Fd socket);
  void OnNodeEnd(NodeProcess::End end);
  bool Respawn(const Failure& failure);
  void StartAgain(const Failure& failure);
  void OnNodeBarrier(const nlohmann::json& packet);
  void OnBarrierAnswer(nlohmann::json answer);
  void ForwardLine(std::string_view line);
  std::vector<std::string> LastLines(std::size_t max_lines, std::size_t max_bytes) const;
  void SendLines(int max_lines);
  void Beat();
  void ScheduleBeat(bool now);

  // Liveness: agent_liveness.cc.
  struct Watched {
    const char* name;
    pid_t pid;                                         // 0: none
    std::optional<Deadline::Clock::time_point> since;  // when it was first seen stopped
  };
  void StartLiveness();
  bool WatchesProgress() const;
  void CheckLiveness();
  bool CheckStopped(double limit_s);
  double StoppedFor(Watched& process) const;
  void OnPing();
  StallWatch::Sample Sample() const;
  void Suspect(const StallWatch::Sample& sample);
  bool Excusable(const Inspection& seen, const StallWatch::Sample& sample);
  std::uint64_t StepsDone() const;
  void OnDescribe();
  Failure Stalled(const Inspection& seen, double idle_s) const;

  // The end.
  static constexpr double kAtOnce_s = 0;
  void Fail(Failure failure, double grace_s);
  void OnVerdict(Verdict verdict);
  void Advance();
  void Finish();
  bool HostedOver();
  nlohmann::json Metrics() const;
  nlohmann::json Counters() const;
  nlohmann::json Rows() const;
  void Mark(const char* what);

  Fd feeder_;
  Phase phase_ = Phase::kConfig;
  std::unique_ptr<net::Loop> loop_;
  std::vector<Fd> pidfds_;
  int jvm_pidfd_ = -1;  // one of them; -1 when no JVM is watched
  AgentConfig config_;
  Fd payload_;
  HeldPort port_;
  std::shared_ptr<CounterPage> counters_;
  std::unique_ptr<Coordinator> hosted_;
  std::unique_ptr<feed::FeedService> service_;
  std::unique_ptr<SideServer> side_;      // of an agent that may be detached; needs service_
  std::unique_ptr<RemoteServer> remote_;  // needs side_
  std::unique_ptr<HandOver> hand_;        // of a run with balanced feeds; needs service_
  std::unique_ptr<AgentSession> session_;
  std::unique_ptr<LogFile> log_file_;
  std::unique_ptr<NodeProcess> node_;
  std::unique_ptr<NodeInspector> inspector_;
  StallWatch stall_{std::chrono::nanoseconds(0)};
  std::vector<Watched> watched_;  // node, feeder, JVM
  pid_t feeder_pid_ = 0;
  std::string busy_;                         // why the node says that it makes no progress
  std::string barrier_;                      // where the node waits
  std::optional<std::uint64_t> barrier_id_;  // its own number of it, if a node before it came there
  std::vector<Member> cluster_;              // kept for a node that is started again
  std::unique_ptr<nlohmann::json> early_answer_;  // to a barrier that the new node has yet to reach
  int respawned_ = 0;
  bool suspected_ = false;
  bool describing_ = false;
  int deferrals_ = 0;
  std::uint64_t reports_before_ = 0;
  std::optional<Failure> failure_;  // this node's own
  std::optional<Verdict> verdict_;
  Fd result_;
  bool session_lost_ = false;
  bool feeder_gone_ = false;
  bool detached_ = false;  // nothing that the feeder does matters any more
  bool done_sent_ = false;
  bool verdict_timed_out_ = false;
  bool said_bye_ = false;
  net::Loop::TimerId beat_timer_ = 0;
  std::uint64_t lines_this_second_ = 0;
  std::uint64_t lines_left_out_ = 0;
  std::uint64_t rss_peak_bytes_ = 0;
  std::vector<std::pair<std::string, double>> times_;  // seconds since the epoch
};

}  // namespace arcflow::control
