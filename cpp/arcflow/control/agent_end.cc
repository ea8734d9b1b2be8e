// SPDX-License-Identifier: Apache-2.0
// How an agent ends: its node's end, the run's verdict, its feeder's death; and main().
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/agent.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/process.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::chrono::seconds kVerdictTimeout{30};  // the coordinator settles far sooner
constexpr std::chrono::seconds kOrphanTimeout{5};    // the same when no feeder is left to hear it
constexpr std::chrono::milliseconds kHostedPoll{20};
constexpr std::size_t kMaxPasses = 1000;  // told one by one; of more only the last

/// NaN is no JSON; it stands for "not known".
json Number(double value) { return std::isfinite(value) ? json(value) : json(); }

}  // namespace

void Agent::OnFeederGone(const std::string& how) {
  if (detached_) return;
  if (std::exchange(feeder_gone_, true)) return;
  if (phase_ == Phase::kConfig || phase_ == Phase::kLingering) {
    phase_ = Phase::kOver;
    loop_->Stop();
    return;
  }
  if (ExecutorIsDead()) return OnExecutorGone();  // it took its Python worker with it
  Failure failure;
  failure.cause = cause::kFeeder;
  failure.message = "the Spark task that fed this node ended before it: " + how;
  Fail(std::move(failure), kAtOnce_s);
}

bool Agent::ExecutorIsDead() const {
  pollfd entry{jvm_pidfd_, POLLIN, 0};
  return jvm_pidfd_ >= 0 && ::poll(&entry, 1, 0) == 1;
}

void Agent::OnExecutorGone() {
  if (phase_ == Phase::kConfig || phase_ == Phase::kLingering)
    return OnFeederGone("its executor died");
  Failure failure;
  failure.cause = cause::kExecutorLost;
  failure.message = "the executor's JVM, process " + std::to_string(config_.jvm_pid) + ", died";
  Fail(std::move(failure), kAtOnce_s);
}

void Agent::OnSignal(int signal) {
  if (phase_ == Phase::kConfig || phase_ == Phase::kLingering)
    return OnFeederGone("the agent was told to end");
  Failure failure;
  failure.cause = cause::kAgentLost;
  failure.message = "the agent was told to end by " + SignalName(signal);
  Fail(std::move(failure), kAtOnce_s);
}

void Agent::Fail(Failure failure, double grace_s) {
  if (phase_ == Phase::kLingering || phase_ == Phase::kOver) return;
  if (!failure_ &&
      !verdict_) {  // after our own success too: a result that nobody can fetch is none
    failure.rank = config_.rank;
    failure.role = config_.role;
    failure.host = config_.host;
    failure.time_s = WallSeconds();
    if (failure.log_tail.empty() && node_) failure.log_tail = node_->LogLines();
    failure_ = std::move(failure);
    if (session_) session_->Send({{"op", "failed"}, {"failure", failure_->ToJson()}});
    Mark("failed");
    loop_->After(kVerdictTimeout, [this] {
      verdict_timed_out_ = true;
      Advance();
    });
  }
  if (feeder_gone_) {
    loop_->After(kOrphanTimeout, [this] {
      verdict_timed_out_ = true;
      Advance();
    });
  }
  phase_ = Phase::kEnding;
  if (hand_) hand_->Close();
  if (side_) side_->Close(failure_ ? failure_->Summary() : verdict_->reason);
  if (service_) {
    service_->RefuseMore();
    service_->Fail(
        Unavailable("the run is ending: " + (failure_ ? failure_->Summary() : verdict_->reason)));
  }
  if (node_) node_->Stop(grace_s);
  Advance();
}

void Agent::OnVerdict(Verdict verdict) {
  verdict_ = std::move(verdict);
  Mark("verdict");
  phase_ = Phase::kEnding;
  if (hand_) hand_->Close();
  if (side_) side_->Close(verdict_->reason.empty() ? "it is over" : verdict_->reason);
  if (service_) {
    service_->RefuseMore();
    if (verdict_->code != Code::kOk)
      service_->Fail(Status(Code::kCancelled, "the run is ending: " + verdict_->reason));
  }
  if (node_) node_->Stop(config_.grace_s);
  Advance();
}

void Agent::OnNodeEnd(NodeProcess::End end) {
  Mark("node_ended");
  if (end.failure && Respawn(*end.failure)) return;
  inspector_.reset();
  if (service_) service_->RefuseMore();
  if (side_) side_->OnNodeEnd();
  Beat();
  if (end.failure) {
    if (failure_ && failure_->log_tail.size() < end.failure->log_tail.size()) {
      failure_->log_tail = end.failure->log_tail;
    }
    if (!failure_ && !verdict_) return Fail(std::move(*end.failure), kAtOnce_s);
  } else if (!failure_ && !verdict_) {
    if (end.killed_after_result) {
      Log(LogLevel::kWarning,
          "a node returned its result but did not exit in time, and was killed");
    }
    result_ = std::move(end.result);
    if (detached_ && !TellResult()) return;
    done_sent_ = true;
    session_->Send({{"op", "done"}, {"metrics", Metrics()}, {"rows", Rows()}});
  }
  Advance();
}

bool Agent::HostedOver() {
  if (!hosted_) return true;
  for (;;) {
    auto event = hosted_->NextEvent(Deadline::After(std::chrono::nanoseconds(0)));
    if (!event.ok()) return true;
    if (!*event) return hosted_->over();
  }
}

void Agent::Advance() {
  if (phase_ != Phase::kEnding && !(done_sent_ && phase_ == Phase::kRunning)) return;
  if (node_ && node_->running()) return;
  const bool told = verdict_ || session_lost_ || verdict_timed_out_;
  const bool orphan = feeder_gone_ && !hosted_;  // nobody is left to hear a verdict
  if (!told && !orphan) return;
  if (session_ && !std::exchange(said_bye_, true)) {
    json bye{{"op", "bye"}, {"metrics", Metrics()}, {"rows", Rows()}};
    // The task's row may not reach the driver after a failure; this does.
    if (!verdict_ || verdict_->code != Code::kOk) {
      bye["log"] = LastLines(kMaxTailLines, config_.log_report_bytes);
    }
    session_->Bye(bye);
  }
  if (session_ && session_->open()) return;  // on_closed comes back here
  if (!HostedOver() &&
      !verdict_timed_out_) {  // others still need the coordinator to leave in order
    loop_->After(kHostedPoll, [this] { Advance(); });
    return;
  }
  Finish();
}

void Agent::Finish() {
  if (phase_ == Phase::kLingering || phase_ == Phase::kOver) return;
  if (log_file_) log_file_->Close();  // what it holds is read as soon as the run has ended
  SendOutcome();
  phase_ = Phase::kLingering;
  remote_.reset();
  side_.reset();
  hand_.reset();
  service_.reset();
  if (feeder_gone_ || detached_) {
    phase_ = Phase::kOver;
    loop_->Stop();
  }
}

void Agent::SendOutcome() {
  if (feeder_gone_ || detached_) return;
  std::string status = verdict_ ? std::string(verdict_->Name()) : "failed";
  json outcome{{"status", status},       {"role", config_.role},
               {"index", config_.index}, {"reason", verdict_ ? verdict_->reason : ""},
               {"metrics", Metrics()},   {"rows", Rows()}};
  outcome["failure"] = nullptr;
  if (verdict_ && verdict_->failure) {
    outcome["failure"] = verdict_->failure->ToJson();
  } else if (!verdict_ && failure_) {
    outcome["failure"] = failure_->ToJson();
  }
  outcome["own_failure"] = failure_ ? failure_->ToJson() : json();
  outcome["log"] = LastLines(kMaxTailLines, config_.log_report_bytes);
  auto document = DocumentToMemfd("arcflow-outcome", outcome);
  if (!document.ok()) {
    Log(LogLevel::kError, "cannot tell the outcome: " + document.status().ToString());
    return;
  }
  std::vector<int> fds{document->get()};
  if (status == "ok" && result_.valid()) fds.push_back(result_.get());
  SendToFeeder({{"op", "outcome"}, {"status", status}}, fds);
}

json Agent::Counters() const {
  json counters = json::object();
  if (!counters_) return counters;
  const CounterPageLayout& c = counters_->counters();
  const auto get = [](const auto& counter) { return counter.load(std::memory_order_relaxed); };
  counters = {{"steps", get(c.steps)},
              {"rows_used", get(c.rows_used)},
              {"rows_padded", get(c.rows_padded)},
              {"bytes_used", get(c.bytes_used)},
              {"wait_ns", get(c.wait_ns)},
              {"compute_ns", get(c.compute_ns)},
              {"epochs", get(c.epochs)},
              {"batches_copied", get(c.batches_copied)},
              {"user_step", get(c.user_step)},
              {"user_epoch", get(c.user_epoch)},
              {"user_loss", Number(get(c.user_loss))},
              {"heartbeat", get(c.heartbeat)}};
  return counters;
}

json Agent::Rows() const {
  if (!service_) return json::object();
  json stats = service_->Stats();
  json rows = std::move(stats["feeds"]);
  for (auto& [name, feed] : rows.items()) {
    const auto passes = feed.find("passes");
    if (passes == feed.end() || !passes->is_array() || passes->size() <= kMaxPasses) continue;
    passes->erase(passes->begin(), passes->end() - static_cast<std::ptrdiff_t>(kMaxPasses));
  }
  return rows;
}

json Agent::Metrics() const {
  json metrics{
      {"counters", Counters()}, {"rss_peak_bytes", rss_peak_bytes_}, {"times", json::object()}};
  for (const auto& [what, when] : times_) metrics["times"][what] = when;
  if (service_) {
    json stats = service_->Stats();
    stats.erase("feeds");
    metrics["feed"] = std::move(stats);
  }
  return metrics;
}

int AgentMain(int argc, char* argv[]) {
  constexpr int kUsage = 2;
  constexpr int kFirstNodeArgument = 4;
  if (argc > kFirstNodeArgument && std::strcmp(argv[1], "--exec-node") == 0 &&
      std::strcmp(argv[3], "--") == 0) {
    return ExecWithParent(static_cast<pid_t>(std::strtol(argv[2], nullptr, 10)),
                          argv + kFirstNodeArgument);
  }
  if (argc != 1 || ::fcntl(kAgentFeederFd, F_GETFD) < 0) {
    std::fputs("arcflow-agent is started by Arcflow's Spark tasks, not by hand\n", stderr);
    return kUsage;
  }
  ::signal(SIGPIPE, SIG_IGN);
  ::fcntl(kAgentFeederFd, F_SETFD, FD_CLOEXEC);
  ::syscall(SYS_close_range, kAgentFeederFd + 1, ~0U,
            0);  // what the feeder did not mean to leave here
  BecomeSubreaper();
  Agent agent{Fd(kAgentFeederFd)};
  if (Status status = agent.Run(); !status.ok()) {
    std::fprintf(stderr, "arcflow-agent: %s\n", status.ToString().c_str());
    return kUsage;
  }
  return 0;
}

}  // namespace arcflow::control
