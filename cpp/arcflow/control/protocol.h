// SPDX-License-Identifier: Apache-2.0
// Protocol: the messages of the control layer as structs, and their strict conversion from and to
// JSON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/feed/service.h"

namespace arcflow::control {

/// Bounds on what a peer may say; anything over them is InvalidArgument. Texts for people are cut
/// instead.
inline constexpr int kMaxSize = 16384;  // nodes of a run
// What a coordinator meets at most of all its agents, whatever their number: the load of the one
// that a run has shall not grow with it. Times between two messages grow instead.
inline constexpr double kBeatsPerSecond = 500;
inline constexpr double kRowsPerSecond = 1000;
inline constexpr std::size_t kMaxFeeds = 256;
inline constexpr std::size_t kMaxNameBytes = 256;        // roles, hosts, feeds, barriers, run ids
inline constexpr std::size_t kMaxTextBytes = 12 * 1024;  // messages, tracebacks
inline constexpr std::size_t kMaxLineBytes = 4096;       // one line of a log
inline constexpr std::size_t kMaxTailLines = 1000;       // lines of a log tail
inline constexpr std::size_t kMaxTailBytes = 12 * 1024;  // all lines of a log tail in one failure
inline constexpr std::size_t kMaxBarrierPayloadBytes =
    48 * 1024;  // what one rank brings to a barrier
inline constexpr std::size_t kMaxToldResultBytes =
    std::size_t{16} << 20;  // of a node whose task has left it: it goes through the coordinator
inline constexpr std::size_t kSecretBytes = 32;
/// The environment variable that tells a node the number of its broker descriptor.
inline constexpr char kNodeFdVariable[] = "ARCFLOW_NODE_FD";

/// Marks a node's processes, wherever they went, for the one who clears up after a killed agent. No
/// secret.
inline constexpr char kNodeMarkVariable[] = "ARCFLOW_NODE_MARK";
std::string NodeMark(const std::string& run_id, int rank, std::int64_t agent_pid);

/// Values of Failure::cause.
namespace cause {
inline constexpr char kException[] = "exception";   // the user's program raised
inline constexpr char kExit[] = "exit";             // the node ended without a result
inline constexpr char kSignal[] = "signal";         // the node was killed
inline constexpr char kFeeder[] = "feeder";         // the Spark task failed or died
inline constexpr char kAgentLost[] = "agent lost";  // the agent's connection broke without a word
inline constexpr char kExecutorLost[] = "executor lost";  // the executor's JVM died
inline constexpr char kDriverLost[] = "driver lost";      // the coordinator went away
inline constexpr char kInterrupted[] = "interrupted";     // a person stopped the run
inline constexpr char kTimeout[] = "timeout";    // a rank never joined, or its heartbeats stopped
inline constexpr char kRejected[] = "rejected";  // the agents do not fit together (versions)
inline constexpr char kLaunch[] = "launch";      // the node could not be started
inline constexpr char kOutOfMemory[] =
    "out of memory";                           // killed by the kernel, or could not get more
inline constexpr char kStalled[] = "stalled";  // it lived and made no progress
inline constexpr char kStopped[] = "stopped";  // a signal stopped a process (SIGSTOP, a debugger)
}  // namespace cause

/// Why a node failed, as the one who saw it reports it. JSON form: docs/formats/control.md.
struct Failure {
  int rank = -1;  // -1: no single node
  std::string role;
  std::string host;
  std::string cause;
  std::string type;  // class of the exception, "" when there is none
  std::string message;
  std::string traceback;
  std::string signal;                 // "SIGKILL"; "" when there is none
  int exit_code = -1;                 // -1 when the process did not exit
  std::vector<std::string> log_tail;  // oldest first
  bool peer_loss = false;             // looks like the consequence of another node's death
  double time_s = 0;                  // seconds since the epoch

  nlohmann::json ToJson() const;
  /// InvalidArgument that names the field; texts over their bounds are cut, unknown fields ignored.
  static Result<Failure> FromJson(const nlohmann::json& json);
  /// One line for logs: "rank 1 (worker on host): signal SIGKILL: message".
  std::string Summary() const;
};

/// A host and a TCP port.
struct HostPort {
  std::string host;
  std::uint16_t port = 0;
  bool operator==(const HostPort&) const = default;
};

/// What an agent tells the coordinator to become a member.
struct Join {
  std::string run_id;
  int rank = 0;
  std::string role;
  int index = 0;
  std::string host;  // where other nodes reach this node's TensorFlow
  std::uint16_t port = 0;
  std::uint16_t side_port = 0;  // where it takes rows of tasks of other executors; 0: nowhere
  std::int64_t pid = 0;
  std::int64_t jvm_pid = 0;
  std::map<std::string, std::string> versions;  // "python", "tensorflow", "keras", "arcflow", …

  nlohmann::json ToJson() const;
  static Result<Join> FromJson(const nlohmann::json& json);
};

/// One node as all others see it.
struct Member {
  int rank = 0;
  std::string role;
  int index = 0;
  std::string host;
  std::uint16_t port = 0;

  nlohmann::json ToJson() const;
  static Result<Member> FromJson(const nlohmann::json& json);
};

/// The end of a run, as the coordinator decided it.
struct Verdict {
  Code code = Code::kOk;  // kOk: every node finished
  std::string reason;
  std::optional<Failure> failure;  // set when a node failed

  nlohmann::json ToJson() const;
  static Result<Verdict> FromJson(const nlohmann::json& json);
  /// "ok", "failed" or "stopped".
  std::string_view Name() const;
};

/// Settings of a coordinator that have good defaults; JSON keys are the names of the fields.
struct CoordinatorTuning {
  double join_timeout_s = 60;  // from Start until every rank has joined
  double settle_s = 0.5;  // after the first failure, how long others may still tell a better cause
  double settle_consequence_s =
      3;  // the same while every report looks like the consequence of another
  double heartbeat_timeout_s = 15;    // silence of a member that counts as its death
  double barrier_timeout_s = 600;     // upper bound for a barrier whose callers gave none
  double progress_interval_s = 0.25;  // at most one progress event in this time
  double stall_settle_s = 3;  // after a node is suspected of a stall, until one of them is blamed
  double bye_timeout_s = 20;  // after a stop, how long agents may take to leave
  std::map<std::string, std::string> expected_versions;  // of the driver; may lack keys

  static Result<CoordinatorTuning> FromJson(const nlohmann::json& json);
  nlohmann::json ToJson() const;
};

/// Everything an agent must know; sent by the feeder as `config`. Field by field in
/// docs/formats/control.md.
struct AgentConfig {
  std::string run_id;
  std::string secret;  // kSecretBytes raw bytes; hex in JSON
  int rank = 0;
  int size = 1;
  std::string role;
  int index = 0;
  int feed_ranks = 0;  // how many of the first ranks are fed and agree on steps; 0: all
  int FedRanks() const { return feed_ranks > 0 ? feed_ranks : size; }
  std::string host;              // address that is bound and told to the others
  std::uint16_t first_port = 0;  // of the range that the node's port is taken from; 0: any
  std::uint16_t last_port = 0;
  HostPort coordinator;
  bool encrypt = false;  // TLS 1.3 to the coordinator, and of the one that is hosted
  struct Hosted {
    std::string bind;
    std::uint16_t port = 0;
    CoordinatorTuning tuning;
  };
  std::optional<Hosted>
      host_coordinator;  // run the coordinator inside this agent; `coordinator` is then ignored
  std::vector<std::string> python;         // argv of the node
  std::map<std::string, std::string> env;  // added to the agent's own environment
  std::string cwd;                         // "" = the agent's
  std::map<std::string, std::string> versions;
  std::int64_t jvm_pid = 0;  // executor's JVM; 0 = none to watch
  std::map<std::string, feed::FeedOptions> feeds;
  std::uint64_t feed_memory_bytes = 0;
  std::uint64_t segment_bytes = 0;  // size that the feeder aims at; 0: learnt as it asks
  std::vector<std::string> local_dirs;
  double grace_s = 5;  // between SIGTERM and SIGKILL
  double heartbeat_s = 1;
  double silence_s = 30;  // what the driver's host does not acknowledge for so long: it is gone
  double connect_timeout_s = 30;
  double stall_timeout_s = 0;  // without progress, until a node counts as stalled; 0 = never
  double stop_timeout_s = 0;   // that a process may be stopped by a signal; 0 = for ever
  double exit_timeout_s = 30;  // how long a node may take to exit after its result
  int respawns = 0;            // how often a node that died while it served others is started again
  std::string serving_at;      // the barrier at which such a node waits meanwhile
  std::size_t log_tail_lines = 50;           // in a failure
  std::size_t log_report_bytes = 64 * 1024;  // of the last lines that the outcome holds
  std::string log_file;      // where all of the node's output goes as well; "" = nowhere
  bool side = false;         // may be detached from its feeder, and then takes rows by SideServer
  bool forward_log = false;  // send the node's output to the coordinator line by line
  std::string job_json = "null";  // passed to the node as it is

  /// InvalidArgument that names the field for a missing, unknown-typed or out-of-range one.
  static Result<AgentConfig> FromJson(const nlohmann::json& json);
};

/// Seconds between two heartbeats of an agent in a run of `size`: `heartbeat_s`, or longer in a
/// large run, so that the coordinator meets at most kBeatsPerSecond of them; at most a fifth of
/// `silence_s`, after which an agent counts as gone.
double BeatInterval(double heartbeat_s, int size, double silence_s);
/// Seconds for which an agent of such a run gathers changes of its rows before it tells them.
double RowsInterval(int size);

/// Why these versions cannot work together, for the driver to show; empty when they can. Python is
/// compared by major.minor, everything else exactly; `by_rank[r]` is what rank r said, `expected`
/// what the driver has.
std::string VersionConflict(const std::vector<std::map<std::string, std::string>>& by_rank,
                            const std::map<std::string, std::string>& expected);

}  // namespace arcflow::control
