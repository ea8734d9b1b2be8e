// SPDX-License-Identifier: Apache-2.0
// Supervision of one node on the agent's loop.
#include "arcflow/control/node_process.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/crash_text.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr int kNodeFd = 3;  // the broker's number in the node
constexpr char kSelf[] = "/proc/self/exe";
constexpr std::chrono::seconds kClearTimeout{2};
constexpr std::chrono::seconds kHeldTimeout{5};  // for a debugger to let go of a dead node
constexpr std::chrono::milliseconds kHeldPause{20};
constexpr std::chrono::milliseconds kOomCountPause{50};
constexpr double kStopNow = 0;
constexpr int kShellKilled = 128 + SIGKILL;  // how a shell around the interpreter tells it

Result<std::pair<Fd, Fd>> Pipe() {
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) return Status::FromErrno(errno, "pipe");
  return std::pair<Fd, Fd>(Fd(ends[0]), Fd(ends[1]));
}

}  // namespace

NodeProcess::NodeProcess(net::Loop& loop, Options options, Callbacks callbacks)
    : loop_(loop), options_(std::move(options)), callbacks_(std::move(callbacks)), tail_([this] {
        LogTail::Options log = options_.log;
        log.on_line = [this](std::string_view line) {
          if (!from_packet_ && options_.log.on_line) options_.log.on_line(line);
        };
        return log;
      }()) {}

NodeProcess::~NodeProcess() {
  for (const auto id : watches_) loop_.Unwatch(id);
  for (const auto id : timers_) loop_.CancelTimer(id);
}

Result<std::unique_ptr<NodeProcess>> NodeProcess::Start(net::Loop& loop, Options options,
                                                        Callbacks callbacks) {
  std::unique_ptr<NodeProcess> node(
      new NodeProcess(loop, std::move(options), std::move(callbacks)));
  ARC_TRY(node->Spawn());
  return node;
}

Status NodeProcess::Spawn() {
  ARC_ASSIGN(auto broker, net::PacketPair());
  ARC_ASSIGN(auto output, Pipe());
  const Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!null.valid()) return Status::FromErrno(errno, "/dev/null");
  SpawnOptions spawn;
  spawn.file = kSelf;
  spawn.argv = {"arcflow-agent", "--exec-node", std::to_string(::getpid()), "--"};
  spawn.argv.insert(spawn.argv.end(), options_.argv.begin(), options_.argv.end());
  std::vector<std::pair<std::string, std::string>> set(options_.env.begin(), options_.env.end());
  set.emplace_back(kNodeFdVariable, std::to_string(kNodeFd));
  spawn.env = EnvironmentWith(set, SparkSecrets());
  spawn.cwd = options_.cwd;
  spawn.fds = {{null.get(), 0},
               {output.second.get(), 1},
               {output.second.get(), 2},
               {broker.second.get(), kNodeFd}};
  ARC_ASSIGN(child_, ChildProcess::Spawn(spawn));
  broker_ = std::move(broker.first);
  output_ = std::move(output.first);
  const auto watch = [this](int fd, bool (NodeProcess::*ready)()) -> Status {
    ARC_ASSIGN(const auto id, loop_.WatchReadable(fd, [this, ready] { return (this->*ready)(); }));
    watches_.push_back(id);
    return Status::Ok();
  };
  ARC_TRY(watch(broker_.get(), &NodeProcess::OnBroker));
  ARC_TRY(watch(output_.get(), &NodeProcess::OnOutput));
  ARC_ASSIGN(const auto exit, loop_.WatchReadable(child_.pidfd(), [this] {
    OnExit();  // may destroy us
    return false;
  }));
  watches_.push_back(exit);
  return Status::Ok();
}

bool NodeProcess::OnBroker() {
  for (;;) {
    net::Message message;
    Status error;
    const Incoming incoming = ReceiveNow(broker_.get(), &message, &error);
    if (incoming == Incoming::kNothing) return true;
    if (incoming == Incoming::kClosed)
      return false;  // a node may close it once it opened what it needs
    OnOpen(message);
  }
}

void NodeProcess::OnOpen(net::Message& message) {
  std::string what;
  std::string feed;
  Fields in(*message.body, "open");
  in.String("what", &what, kMaxNameBytes, Need::kRequired)
      .String("feed", &feed, kMaxNameBytes, Need::kOptional);
  if (message.op != "open" || !in.ok() || message.fds.size() != 1) {
    Log(LogLevel::kWarning, "a node sent a broken open packet");
    return;
  }
  if (what == "reader") {
    callbacks_.on_reader(feed, std::move(message.fds[0]));
    return;
  }
  if (what == "side" && callbacks_.on_side) {
    callbacks_.on_side(std::move(message.fds[0]));
    return;
  }
  if (what != "control" || control_.valid()) {
    const json answer{
        {"op", "error"},
        {"code", "FAILED_PRECONDITION"},
        {"message", "no session \"" + CleanText(what, 64) + "\", or there is one already"}};
    (void)!net::SendPacket(message.fds[0].get(), answer, {}, Deadline::After(kAgentSends)).ok();
    return;
  }
  control_ = std::move(message.fds[0]);
  auto id = loop_.WatchReadable(control_.get(), [this] { return OnControl(); });
  if (id.ok()) watches_.push_back(*id);
}

bool NodeProcess::OnControl() {
  for (;;) {
    net::Message message;
    Status error;
    const Incoming incoming = ReceiveNow(control_.get(), &message, &error);
    if (incoming == Incoming::kNothing) return true;
    if (incoming == Incoming::kClosed) return false;  // its exit tells the rest
    OnControlMessage(message);
  }
}

void NodeProcess::OnControlMessage(net::Message& message) {
  const json& body = *message.body;
  if (message.op == "hello") {
    SendConfig();
    callbacks_.on_hello();
  } else if (message.op == "log") {
    std::string text;
    Fields(body, "log").Text("text", &text, kMaxTextBytes);
    from_packet_ = true;
    tail_.Finish();
    tail_.Feed(text + "\n");
    from_packet_ = false;
    callbacks_.on_log(std::move(text));
  } else if (message.op == "progress") {
    const auto it = body.find("progress");
    if (it != body.end() && it->is_object()) callbacks_.on_progress(*it);
  } else if (message.op == "barrier") {
    callbacks_.on_barrier(body);
  } else if (message.op == "stacks" && message.fds.size() == 1) {
    callbacks_.on_stacks(std::move(message.fds[0]));
  } else if (message.op == "python_stacks") {
    callbacks_.on_python_stacks();
  } else if (message.op == "busy") {
    std::string reason;
    Fields(body, "busy").Text("reason", &reason, kMaxNameBytes);
    callbacks_.on_busy(std::move(reason));
  } else if (message.op == "result") {
    OnResult(message);
  } else if (message.op == "failed") {
    OnFailed(body);
  } else {
    Log(LogLevel::kWarning, "a node sent an unknown packet: " + CleanText(message.op, 64));
  }
}

void NodeProcess::SendConfig() {
  auto config = BytesToMemfd("arcflow-node-config", options_.config_json);
  Status sent = config.status();
  if (sent.ok()) {
    sent = net::SendPacket(control_.get(), json{{"op", "config"}},
                           {config->get(), options_.payload_fd, options_.counters_fd},
                           Deadline::After(kAgentSends));
  }
  if (!sent.ok()) Log(LogLevel::kError, "cannot send a node its configuration: " + sent.ToString());
}

void NodeProcess::OnResult(net::Message& message) {
  if (message.fds.size() != 1 || result_.valid() || raised_) return;
  result_ = std::move(message.fds[0]);
  // Teardown of TensorFlow can hang; the result is here, so that must not cost the run.
  timers_.push_back(loop_.After(Seconds(options_.exit_timeout_s), [this] {
    exit_forced_ = true;
    Stop(kStopNow);
  }));
}

void NodeProcess::OnFailed(const json& body) {
  if (raised_ || result_.valid()) return;
  Failure failure;
  failure.cause = cause::kException;
  Fields in(body, "failed");
  in.Text("type", &failure.type, kMaxNameBytes)
      .Text("message", &failure.message, kMaxTextBytes)
      .Text("traceback", &failure.traceback, kMaxTextBytes)
      .Bool("peer_loss", &failure.peer_loss, Need::kOptional);
  if (BlamesMemory(failure.type, failure.message)) failure.cause = cause::kOutOfMemory;
  tail_.Drain(output_.get());
  failure.log_tail = LogLines();
  raised_ = std::move(failure);
  callbacks_.on_failed(*raised_);
}

bool NodeProcess::OnOutput() { return tail_.Drain(output_.get()); }

void NodeProcess::Stop(double grace_s) {
  if (ended_) return;
  if (grace_s <= 0) return Kill();
  if (!std::exchange(stopping_, true)) child_.SignalGroup(SIGTERM);
  timers_.push_back(loop_.After(Seconds(grace_s), [this] { Kill(); }));
}

void NodeProcess::Kill() {
  stopping_ = true;
  if (!ended_) child_.SignalGroup(SIGKILL);
}

void NodeProcess::AnswerBarrier(const json& answer) {
  if (!control_.valid() || ended_) return;
  json packet{{"op", "barrier"}};
  for (const char* key : {"id", "name", "code", "message"}) {
    if (const auto it = answer.find(key); it != answer.end()) packet[key] = *it;
  }
  Status sent;
  if (const auto payloads = answer.find("payloads"); payloads != answer.end()) {
    auto document = DocumentToMemfd("arcflow-barrier", *payloads);
    sent = document.status();
    if (sent.ok())
      sent =
          net::SendPacket(control_.get(), packet, {document->get()}, Deadline::After(kAgentSends));
  } else {
    sent = net::SendPacket(control_.get(), packet, {}, Deadline::After(kAgentSends));
  }
  if (!sent.ok())
    Log(LogLevel::kWarning, "cannot pass the end of a barrier on: " + sent.ToString());
}

void NodeProcess::OnExit() {
  if (ended_) return;
  auto status = child_.TryWait();
  if (!status && held_until_ && held_until_->expired()) status = ExitStatus{255, 0};
  if (!status) {
    // Dead, but a debugger that traces it has not let go of it: its descriptor wakes us only once.
    if (!held_until_) held_until_ = Deadline::After(kHeldTimeout);
    timers_.push_back(loop_.After(kHeldPause, [this] { OnExit(); }));
    return;
  }
  child_.SignalGroup(SIGKILL);  // what the node started and left behind
  KillDescendants(0, Deadline::After(kClearTimeout));
  OnBroker();
  if (control_.valid()) OnControl();  // last words
  tail_.Drain(output_.get());
  tail_.Finish();
  ended_ = true;
  for (const auto id : std::exchange(watches_, {})) loop_.Unwatch(id);
  for (const auto id : std::exchange(timers_, {})) loop_.CancelTimer(id);
  End end;
  end.killed_after_result = exit_forced_;
  if (result_.valid() && (status->ok() || exit_forced_)) {
    end.result = std::move(result_);
  } else {
    end.failure = Explain(*status);
  }
  const auto on_end = callbacks_.on_end;
  on_end(std::move(end));
}

Failure NodeProcess::Explain(const ExitStatus& status) {
  Failure failure = raised_.value_or(Failure{});
  failure.log_tail = LogLines();
  std::string killed = oom_.Happened();
  if (killed.empty() && status.signal == SIGKILL && !stopping_) {
    std::this_thread::sleep_for(kOomCountPause);  // the kernel counts it after it has killed
    killed = oom_.Happened();
  }
  if (raised_) {
    if (!killed.empty() && failure.cause != cause::kOutOfMemory) {
      failure.message += " (" + killed + ")";  // a child of the node's, say
    }
    return failure;
  }
  const bool by_kernel = !killed.empty() && !stopping_ &&
                         (status.signal == SIGKILL || status.exit_code == kShellKilled);
  if (by_kernel) {
    failure.cause = cause::kOutOfMemory;
    failure.signal = SignalName(SIGKILL);
    failure.message = killed;
  } else if (status.signal != 0) {
    ExplainSignal(status, &failure);
  } else {
    ExplainExit(status, &failure);
  }
  return failure;
}

void NodeProcess::ExplainSignal(const ExitStatus& status, Failure* failure) const {
  failure->cause = cause::kSignal;
  failure->signal = SignalName(status.signal);
  failure->message = "the node was killed by " + failure->signal;
  if (status.signal == SIGKILL) {
    if (!stopping_) {
      failure->message +=
          "; when nobody did that on purpose, the kernel or the cluster manager did, for want of "
          "memory";
    }
    return;
  }
  const CrashText crash = ReadCrash(tail_.Lines());
  if (!crash.message.empty()) failure->message += ": " + crash.message;
  failure->type = crash.type;
  failure->traceback = crash.traceback;
  failure->peer_loss = crash.peer_loss;
  if (crash.out_of_memory) failure->cause = cause::kOutOfMemory;
}

void NodeProcess::ExplainExit(const ExitStatus& status, Failure* failure) const {
  failure->cause = cause::kExit;
  failure->exit_code = status.exit_code;
  failure->message =
      "the node ended with " + status.ToString() +
      (result_.valid() ? " after it had returned its result" : " without returning a result");
  failure->peer_loss = ReadCrash(tail_.Lines()).peer_loss;
}

}  // namespace arcflow::control
