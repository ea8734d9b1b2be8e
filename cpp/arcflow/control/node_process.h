// SPDX-License-Identifier: Apache-2.0
// NodeProcess: one node from spawn to the last of its descendants: broker, control session, output,
// end.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/control/log_tail.h"
#include "arcflow/control/oom_watch.h"
#include "arcflow/control/process.h"
#include "arcflow/control/protocol.h"
#include "arcflow/net/loop.h"
#include "arcflow/net/packet.h"

namespace arcflow::control {

/// Starts the node through the agent's own executable (process.h, ExecWithParent) and reports what
/// becomes of it. Threads: the loop's. Never blocks, but for milliseconds when it clears up after
/// the end.
class NodeProcess {
 public:
  struct Options {
    std::vector<std::string> argv;
    std::map<std::string, std::string> env;
    std::string cwd;
    std::string config_json;  // what the node gets as its configuration
    int payload_fd = -1;      // not owned
    int counters_fd = -1;     // not owned
    double grace_s = 5;
    double exit_timeout_s = 30;
    LogTail::Options log;  // on_line is called for what the node prints, not for its `log` packets
    std::size_t report_lines = 50;  // of log.max_lines, how many a failure shows
  };

  /// How it ended. `failure` has rank, role, host and time still open.
  struct End {
    std::optional<Failure> failure;
    Fd result;                         // valid when there is no failure
    bool killed_after_result = false;  // it did not exit by itself in time
  };

  struct Callbacks {
    std::function<void()> on_hello;
    std::function<void(const std::string& feed, Fd socket)> on_reader;
    /// A session for feeds and requests of a node that lives on (side_server.h).
    std::function<void(Fd socket)> on_side;
    std::function<void(std::string text)> on_log;
    std::function<void(const nlohmann::json& progress)> on_progress;
    std::function<void(const nlohmann::json& barrier)> on_barrier;
    /// Where its stacks will be when it is asked for them (stack_dumper.h), and that its Python
    /// interpreter answers too.
    std::function<void(Fd stacks)> on_stacks;
    std::function<void()> on_python_stacks;
    /// It says that no progress is to be expected, and why; "" when that is over.
    std::function<void(std::string reason)> on_busy;
    /// The program raised; the process still runs. on_end repeats it.
    std::function<void(const Failure& failure)> on_failed;
    /// Once, last: the process is reaped, and so is everything it left behind.
    std::function<void(End end)> on_end;
  };

  static Result<std::unique_ptr<NodeProcess>> Start(net::Loop& loop, Options options,
                                                    Callbacks callbacks);
  ~NodeProcess();

  pid_t pid() const { return child_.pid(); }
  bool running() const { return !ended_; }
  /// It has handed over its result and is to exit.
  bool returned() const { return result_.valid(); }
  /// SIGTERM to its group now, SIGKILL after `grace_s`; at once when that is 0. A later, shorter
  /// grace counts.
  void Stop(double grace_s);
  /// Passes the coordinator's answer to a `barrier` on; payloads travel in a memfd.
  void AnswerBarrier(const nlohmann::json& answer);
  /// The lines that a failure shows, and the last ones within other bounds.
  std::vector<std::string> LogLines() const {
    return tail_.Lines(options_.report_lines, options_.log.max_bytes);
  }
  std::vector<std::string> LastLines(std::size_t max_lines, std::size_t max_bytes) const {
    return tail_.Lines(max_lines, max_bytes);
  }
  std::uint64_t lines_seen() const { return tail_.lines_seen(); }

 private:
  NodeProcess(net::Loop& loop, Options options, Callbacks callbacks);
  Status Spawn();
  bool OnBroker();
  bool OnControl();
  bool OnOutput();
  void OnOpen(net::Message& message);
  void OnControlMessage(net::Message& message);
  void OnResult(net::Message& message);
  void OnFailed(const nlohmann::json& body);
  void SendConfig();
  void OnExit();
  Failure Explain(const ExitStatus& status);
  void ExplainSignal(const ExitStatus& status, Failure* failure) const;
  void ExplainExit(const ExitStatus& status, Failure* failure) const;
  void Kill();

  net::Loop& loop_;
  Options options_;
  Callbacks callbacks_;
  ChildProcess child_;
  Fd broker_;
  Fd control_;
  Fd output_;
  LogTail tail_;
  OomWatch oom_;
  Fd result_;
  std::optional<Failure> raised_;
  std::optional<Deadline> held_until_;
  std::vector<net::Loop::WatchId> watches_;
  std::vector<net::Loop::TimerId> timers_;
  bool stopping_ = false;
  bool from_packet_ = false;  // the line at hand was sent, not printed
  bool exit_forced_ = false;
  bool ended_ = false;
};

}  // namespace arcflow::control
