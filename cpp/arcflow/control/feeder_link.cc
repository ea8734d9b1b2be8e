// SPDX-License-Identifier: Apache-2.0
// The feeder's side of the packet socket to its agent, and the agent's process.
#include "arcflow/control/feeder_link.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/mapping.h"
#include "arcflow/control/agent.h"
#include "arcflow/control/feeder_packets.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/process.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::chrono::seconds kDeathTimeout{
    2};  // from the end of its socket to the end of its process
constexpr std::chrono::seconds kDefaultClose{5};

struct Request {
  std::string feed;
  std::size_t bytes = 0;
};

}  // namespace

struct FeederLink::Impl {
  std::mutex mutex;  // everything below but the atomics
  ChildProcess agent;
  Fd input;  // the agent's standard input; closing it ends the agent
  Fd socket;
  std::optional<Request>
      outstanding;  // sent, not answered; a caller whose deadline passed may come back for it
  std::map<std::string, Grant> granted;  // answered after its caller had gone
  std::optional<Outcome> outcome;
  Status dead;
  bool detached = false;
  std::string node_mark;  // in the environment of all that the node started
  std::atomic<pid_t> pid{0};
  std::atomic<pid_t> node_pid{0};
  std::atomic<std::uint64_t> acquires{0};
  std::atomic<std::uint64_t> acquire_wait_ns{0};
  std::atomic<std::uint64_t> publishes{0};

  Status Spawn(const std::string& path);
  Status SendConfig(const std::string& config, const std::string& payload);
  Status Send(const json& packet, const std::vector<int>& fds);
  /// Takes one packet in. `*grant` is set by `segment`, a refusal comes as the status.
  Status Receive(Deadline deadline, std::optional<Grant>* grant);
  Status TakeOutcome(net::Message& message);
  Status Died();
  void KillNode();
  Status Ready() const;
  Result<Grant> Acquire(const std::string& feed, std::size_t min_bytes, Deadline deadline);
  void Close(Deadline deadline);
};

Status FeederLink::Impl::Spawn(const std::string& path) {
  ARC_ASSIGN(auto pair, net::PacketPair());
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) return Status::FromErrno(errno, "pipe");
  const Fd agent_input(ends[0]);
  input = Fd(ends[1]);
  SpawnOptions options;
  options.file = path;
  options.argv = {"arcflow-agent"};
  options.env = EnvironmentWith({}, SparkSecrets());
  // Its standard output goes where its errors go: a Spark worker's own may carry a protocol.
  options.fds = {{agent_input.get(), kAgentStdin},
                 {STDERR_FILENO, STDOUT_FILENO},
                 {STDERR_FILENO, STDERR_FILENO},
                 {pair.second.get(), kAgentFeederFd}};
  ARC_ASSIGN(agent, ChildProcess::Spawn(options));
  socket = std::move(pair.first);
  pid = agent.pid();
  return Status::Ok();
}

Status FeederLink::Impl::SendConfig(const std::string& config, const std::string& payload) {
  ARC_ASSIGN(const Fd document, BytesToMemfd("arcflow-config", config));
  ARC_ASSIGN(const Fd bytes, BytesToMemfd("arcflow-payload", payload));
  return Send({{"op", "config"}}, {document.get(), bytes.get()});
}

Result<std::unique_ptr<FeederLink>> FeederLink::Launch(const std::string& agent_path,
                                                       const std::string& config_json,
                                                       const std::string& payload) {
  const json config = json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded()) return InvalidArgument("the agent's configuration is not JSON");
  ARC_ASSIGN(const AgentConfig checked, AgentConfig::FromJson(config));
  if (::access(agent_path.c_str(), X_OK) != 0)
    return Status::FromErrno(errno, "the agent " + agent_path);
  auto impl = std::make_unique<Impl>();
  ARC_TRY(impl->Spawn(agent_path));
  impl->node_mark =
      std::string(kNodeMarkVariable) + "=" + NodeMark(checked.run_id, checked.rank, impl->pid);
  ARC_TRY(impl->SendConfig(config_json, payload));
  return std::unique_ptr<FeederLink>(new FeederLink(std::move(impl)));
}

FeederLink::FeederLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FeederLink::~FeederLink() { Close(Deadline::After(kDefaultClose)); }

Status FeederLink::Impl::Ready() const {
  if (outcome) return Cancelled("the node has ended");
  return dead;
}

Status FeederLink::Impl::Send(const json& packet, const std::vector<int>& fds) {
  Status status = net::SendPacket(socket.get(), packet, fds, Deadline::After(kPeerSends));
  if (status.code() != Code::kUnavailable) return status;
  // The agent is gone; what it said last is still in the socket.
  std::optional<Grant> ignored;
  while (!outcome && dead.ok()) (void)!Receive(Deadline::After(kDeathTimeout), &ignored).ok();
  return Ready();
}

Status FeederLink::Impl::Receive(Deadline deadline, std::optional<Grant>* grant) {
  auto received = ReceiveLastWords(socket.get(), deadline);
  if (received.ok() && !*received) return Died();
  if (!received.ok()) {
    if (received.status().code() == Code::kDeadlineExceeded) return received.status();
    dead = received.status().WithContext("the agent");
    return dead;
  }
  net::Message& message = **received;
  if (message.op == "segment") {
    auto parsed = GrantFromJson(*message.body);
    if (!parsed.ok()) return parsed.status();
    *grant = std::move(*parsed);
    return Status::Ok();
  }
  if (message.op == "refused") {
    outstanding.reset();
    return RefusalFromJson(*message.body);
  }
  if (message.op == "node") {
    std::int64_t number = 0;
    Fields(*message.body, "node").Int64("pid", &number, 2, INT32_MAX, Need::kRequired);
    node_pid = static_cast<pid_t>(number);
    return Status::Ok();
  }
  if (message.op == "outcome") return TakeOutcome(message);
  if (message.op == "detached") {
    detached = true;
    return Status::Ok();
  }
  return InvalidArgument("unknown packet of the agent: " + CleanText(message.op, 64));
}

Status FeederLink::Impl::TakeOutcome(net::Message& message) {
  if (message.fds.empty()) return InvalidArgument("an outcome without a document");
  Outcome taken;
  ARC_ASSIGN(taken.json, ReadAllBytes(message.fds[0], kMaxDocumentBytes));
  if (message.fds.size() > 1) {
    ARC_ASSIGN(taken.result, ReadAllBytes(message.fds[1], kMaxResultBytes));
  }
  outcome = std::move(taken);
  return Status::Ok();
}

Status FeederLink::Impl::Died() {
  if (!dead.ok()) return dead;
  const auto end = agent.Wait(Deadline::After(kDeathTimeout));
  if (!end)
    agent.SignalGroup(SIGKILL);  // it closed its socket and yet lives: no good can come of it
  KillNode();
  dead = Unavailable("the agent of this node ended before it told the outcome" +
                     (end ? ": " + end->ToString() : std::string()));
  return dead;
}

/// What an agent that was killed could not end: the kernel kills its node, but not what the node
/// started.
void FeederLink::Impl::KillNode() {
  if (const pid_t node = node_pid; node > 1) ::kill(-node, SIGKILL);
  KillMarked(node_mark, Deadline::After(kDeathTimeout));
}

Result<feed::SegmentSource::Grant> FeederLink::Impl::Acquire(const std::string& feed,
                                                             std::size_t min_bytes,
                                                             Deadline deadline) {
  for (;;) {
    ARC_TRY(Ready());
    if (const auto it = granted.find(feed); it != granted.end()) {
      if (it->second.size_bytes < min_bytes)
        return FailedPrecondition("an earlier, smaller grant of this feed is still unused");
      Grant grant = std::move(it->second);
      granted.erase(it);
      return grant;
    }
    if (!outstanding) {
      ARC_TRY(Send({{"op", "acquire"}, {"feed", feed}, {"bytes", min_bytes}}, {}));
      outstanding = Request{feed, min_bytes};
    }
    std::optional<Grant> grant;
    ARC_TRY(Receive(deadline, &grant));
    if (grant)
      granted[std::exchange(outstanding, std::nullopt).value_or(Request{feed, 0}).feed] =
          std::move(*grant);
  }
}

Result<feed::SegmentSource::Grant> FeederLink::Acquire(const std::string& feed,
                                                       std::size_t min_bytes, Deadline deadline) {
  const auto start = Deadline::Clock::now();
  const std::lock_guard lock(impl_->mutex);
  auto grant = impl_->Acquire(feed, min_bytes, deadline);
  ++impl_->acquires;
  impl_->acquire_wait_ns += static_cast<std::uint64_t>((Deadline::Clock::now() - start).count());
  return grant;
}

Status FeederLink::Publish(const std::string& feed, const Grant& grant, std::size_t rows,
                           bool closed, int fd) {
  const std::lock_guard lock(impl_->mutex);
  ARC_TRY(impl_->Ready());
  ++impl_->publishes;
  std::vector<int> fds;
  if (fd >= 0) fds.push_back(fd);
  return impl_->Send({{"op", "publish"},
                      {"feed", feed},
                      {"buffer", grant.buffer},
                      {"rows", rows},
                      {"closed", closed}},
                     fds);
}

Status FeederLink::End(const std::string& feed) {
  const std::lock_guard lock(impl_->mutex);
  ARC_TRY(impl_->Ready());
  return impl_->Send({{"op", "end"}, {"feed", feed}}, {});
}

Status FeederLink::Abort(const std::string& code, const std::string& message,
                         const std::string& traceback) {
  const std::lock_guard lock(impl_->mutex);
  ARC_TRY(impl_->Ready());
  return impl_->Send({{"op", "abort"},
                      {"code", CleanText(code, kMaxNameBytes)},
                      {"message", CleanText(message, kMaxTextBytes)},
                      {"traceback", CleanText(traceback, kMaxTextBytes)}},
                     {});
}

Result<std::optional<Outcome>> FeederLink::WaitOutcome(Deadline deadline) {
  const std::lock_guard lock(impl_->mutex);
  while (!impl_->outcome) {
    ARC_TRY(impl_->dead);
    std::optional<Grant> grant;
    const Status status = impl_->Receive(deadline, &grant);
    if (grant && impl_->outstanding) {
      impl_->granted[std::exchange(impl_->outstanding, std::nullopt)->feed] = std::move(*grant);
    }
    if (status.code() == Code::kDeadlineExceeded) return std::optional<Outcome>();
    if (!status.ok() && !impl_->dead.ok()) return status;
  }
  return impl_->outcome;
}

Result<bool> FeederLink::Detach(Deadline deadline) {
  const std::lock_guard lock(impl_->mutex);
  ARC_TRY(impl_->Ready());
  while (!impl_->detached) {
    std::optional<Grant> grant;
    const Status status = impl_->Receive(deadline, &grant);
    if (status.code() == Code::kDeadlineExceeded) return false;
    ARC_TRY(status);
    ARC_TRY(impl_->Ready());
  }
  impl_->dead = Unavailable("the agent lives on without this task");
  impl_->input.reset();
  impl_->socket.reset();
  return true;
}

bool FeederLink::Follow(Deadline deadline) {
  const std::lock_guard lock(impl_->mutex);
  if (!impl_->detached || impl_->agent.pid() == 0) return true;
  const auto end = impl_->agent.Wait(deadline);
  if (!end) return false;
  if (!end->ok()) impl_->KillNode();
  impl_->agent = ChildProcess();
  return true;
}

void FeederLink::Impl::Close(Deadline deadline) {
  if (agent.pid() == 0) return;
  if (detached) return agent.Forget();
  input.reset();
  const auto end = agent.Wait(deadline);
  agent.SignalGroup(SIGKILL);
  if (!end) agent.Wait(Deadline::After(kReapTimeout));
  if (!end || !end->ok()) KillNode();
  if (dead.ok()) dead = Unavailable("the agent was closed");
  agent = ChildProcess();
}

void FeederLink::Close(Deadline deadline) {
  const std::lock_guard lock(impl_->mutex);
  impl_->Close(deadline);
}

pid_t FeederLink::pid() const { return impl_->pid; }
pid_t FeederLink::node_pid() const { return impl_->node_pid; }
FeederLink::Stats FeederLink::stats() const {
  return Stats{impl_->acquires, impl_->acquire_wait_ns, impl_->publishes};
}

}  // namespace arcflow::control
