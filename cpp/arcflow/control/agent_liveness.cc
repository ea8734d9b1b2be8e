// SPDX-License-Identifier: Apache-2.0
// Whether what an agent looks after still moves: its node's progress, and stopped processes.
#include <signal.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/agent.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr double kLookEvery_s = 1;
constexpr double kLingerStopped_s = 5;  // a feeder that is stopped will not let go by itself
constexpr int kMaxCompilations = 3;     // deferrals for code that is being traced or compiled
constexpr int kMaxSaves = 10;
constexpr double kBusyShare = 0.2;  // of a core: more than a thread that polls
constexpr std::size_t kPythonBytes = 7 * 1024;
constexpr std::size_t kNativeBytes = 3 * 1024;
constexpr std::size_t kThreadsBytes = 1536;

std::string Seconds0(double seconds) { return std::to_string(static_cast<long long>(seconds)); }

}  // namespace

void Agent::StartLiveness() {
  stall_ = StallWatch(Seconds(WatchesProgress() ? config_.stall_timeout_s : 0));
  watched_.push_back({"the node's process", 0, {}});
  watched_.push_back({"the Spark task's Python process", feeder_pid_, {}});
  watched_.push_back({"the executor's JVM", static_cast<pid_t>(config_.jvm_pid), {}});
  const double every_s = config_.stall_timeout_s > 0
                             ? std::min(kLookEvery_s, config_.stall_timeout_s / 4)
                             : kLookEvery_s;
  loop_->Every(Seconds(every_s), [this] { CheckLiveness(); });
}

/// A parameter server and an evaluator wait for others all the time; only a stop is news of them.
bool Agent::WatchesProgress() const { return config_.role != "ps" && config_.role != "evaluator"; }

void Agent::CheckLiveness() {
  if (phase_ == Phase::kLingering) {
    if (StoppedFor(watched_[1]) >= kLingerStopped_s) OnFeederGone("it is stopped by a signal");
    return;
  }
  if (phase_ != Phase::kRunning || !node_ || !node_->running()) return;
  if (CheckStopped(config_.stop_timeout_s) || node_->returned()) return;
  const StallWatch::Sample sample = Sample();
  const bool overdue = stall_.Overdue(sample);
  if (sample.reports != reports_before_) deferrals_ = 0;
  reports_before_ = sample.reports;
  if (!overdue && std::exchange(suspected_, false))
    session_->Send({{"op", "stalled"}, {"over", true}});
  if (overdue && !std::exchange(suspected_, true)) Suspect(sample);
}

double Agent::StoppedFor(Watched& process) const {
  if (process.pid <= 0 || !ProcessState::Of(process.pid).stopped()) {
    process.since.reset();
    return 0;
  }
  if (!process.since) process.since = Deadline::Clock::now();
  return SecondsSince(*process.since);
}

/// True when a stopped process has ended the run for this agent.
bool Agent::CheckStopped(double limit_s) {
  watched_[0].pid = node_->pid();
  for (Watched& process : watched_) {
    const double stopped_s = StoppedFor(process);
    if (!process.since || config_.stop_timeout_s <= 0 || stopped_s < limit_s) continue;
    Failure failure;
    failure.cause = cause::kStopped;
    failure.message = std::string(process.name) + ", " + std::to_string(process.pid) +
                      ", has been stopped by a signal (SIGSTOP, a terminal or a debugger) for " +
                      Seconds0(stopped_s) + " s; SIGCONT would have let it go on";
    failure.traceback = DescribeThreads(process.pid, 1);
    Fail(std::move(failure), kAtOnce_s);  // it could not handle SIGTERM
    return true;
  }
  return false;
}

/// Others have lost a node and the coordinator asks who lives: a stop is told now, not in a while.
void Agent::OnPing() {
  if (phase_ == Phase::kRunning && node_ && node_->running()) CheckStopped(0);
  Beat();
}

StallWatch::Sample Agent::Sample() const {
  const ProcessState state = ProcessState::Of(node_->pid());
  StallWatch::Sample sample;
  sample.now = StallWatch::Clock::now();
  sample.reports = counters_->counters().heartbeat.load(std::memory_order_relaxed);
  sample.cpu_s = state.cpu_s;
  sample.io_bytes = state.io_bytes;
  sample.excused = !busy_.empty() || !barrier_.empty() || (service_ && service_->WaitsForRows());
  return sample;
}

void Agent::Suspect(const StallWatch::Sample& sample) {
  inspector_->Inspect(/*native=*/false, [this, sample](const Inspection& seen) {
    if (phase_ != Phase::kRunning || !suspected_) return;
    if (Excusable(seen, sample)) {
      suspected_ = false;
      stall_.Defer(StallWatch::Clock::now());
      return;
    }
    session_->Send({{"op", "stalled"},
                    {"idle_s", std::chrono::duration<double>(stall_.idle(sample.now)).count()},
                    {"timeout_s", config_.stall_timeout_s},
                    {"steps", StepsDone()},
                    {"in_tensorflow", InsideTensorFlow(seen.python)}});
  });
}

/// What looks like a stall and is work: tracing, compiling, saving. Only as long as it uses the
/// processor or files, and not for ever.
bool Agent::Excusable(const Inspection& seen, const StallWatch::Sample& sample) {
  const bool computes = stall_.cpu_share(sample) >= kBusyShare;
  const bool compiles = Compiling(seen.python) || InsideTensorFlow(seen.python);
  if (compiles && computes && deferrals_ < kMaxCompilations) return ++deferrals_ > 0;
  if (Saving(seen.python) && (computes || stall_.used_files(sample)) && deferrals_ < kMaxSaves) {
    return ++deferrals_ > 0;
  }
  return false;
}

std::uint64_t Agent::StepsDone() const {
  const CounterPageLayout& c = counters_->counters();
  return std::max(c.steps.load(std::memory_order_relaxed),
                  c.user_step.load(std::memory_order_relaxed));
}

/// The coordinator found that this node is the one that holds up the run.
void Agent::OnDescribe() {
  if (phase_ != Phase::kRunning || !node_ || !node_->running() || describing_) return;
  const double idle_s =
      std::chrono::duration<double>(stall_.idle(StallWatch::Clock::now())).count();
  describing_ = inspector_->Inspect(/*native=*/true, [this, idle_s](const Inspection& seen) {
    if (phase_ != Phase::kRunning) return;
    Fail(Stalled(seen, idle_s), config_.grace_s);
  });
}

Failure Agent::Stalled(const Inspection& seen, double idle_s) const {
  Failure failure;
  failure.cause = cause::kStalled;
  failure.message = "no progress for " + Seconds0(idle_s) + " s";
  if (const auto steps = StepsDone(); steps > 0) {
    failure.message += " after step " + std::to_string(steps);
  }
  if (const std::string frame = InnermostFrame(seen.python); !frame.empty()) {
    failure.message += ", in " + frame;
  }
  failure.message +=
      "; its process is " + StateName(ProcessState::Of(node_->pid()).state) +
      ". If that is work: call ctx.alive() now and then, wrap it in ctx.busy(\"…\"), or raise "
      "stall_timeout";
  failure.traceback = CleanText(seen.python, kPythonBytes);
  if (!seen.native.empty()) {
    failure.traceback += "\nNative stacks:\n" + CleanText(seen.native, kNativeBytes);
  }
  failure.traceback += "\nThreads:\n" + CleanText(seen.threads, kThreadsBytes);
  return failure;
}

}  // namespace arcflow::control
