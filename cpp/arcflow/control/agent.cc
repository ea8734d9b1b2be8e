// SPDX-License-Identifier: Apache-2.0
// The agent's conversation with its feeder and the start of its node; agent_end.cc has its end.
#include "arcflow/control/agent.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/process.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr double kConfigTimeout_s = 60;
constexpr std::uint64_t kLinesPerSecond = 500;  // forwarded to the driver
constexpr double kFeedTick_s = 1;
constexpr std::size_t kLeastTailBytes = std::size_t{64} << 10;  // a crash is explained from it

}  // namespace

Agent::Agent(Fd feeder) : feeder_(std::move(feeder)) { Mark("agent_started"); }
Agent::~Agent() {
  inspector_.reset();
  node_.reset();
  session_.reset();
  remote_.reset();
  side_.reset();
  hand_.reset();
  service_.reset();
}

void Agent::Mark(const char* what) { times_.emplace_back(what, WallSeconds()); }

Status Agent::Run() {
  ARC_ASSIGN(loop_, net::Loop::Create());
  ARC_TRY(Watch());
  loop_->After(Seconds(kConfigTimeout_s), [this] {
    if (phase_ == Phase::kConfig) OnFeederGone("it sent no configuration");
  });
  loop_->Run();
  hosted_.reset();
  return Status::Ok();
}

Status Agent::Watch() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  Fd signals(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals.valid()) return Status::FromErrno(errno, "signalfd");
  const int descriptor = signals.get();
  ARC_TRY(loop_
              ->WatchReadable(descriptor,
                              [this, descriptor] {
                                signalfd_siginfo info{};
                                if (::read(descriptor, &info, sizeof info) == sizeof info)
                                  OnSignal(static_cast<int>(info.ssi_signo));
                                return true;
                              })
              .status());
  pidfds_.push_back(std::move(signals));
  ARC_TRY(loop_->WatchReadable(kAgentStdin, [this] { return OnStdin(); })
              .status()
              .WithContext("standard input"));
  ARC_TRY(loop_->WatchReadable(feeder_.get(), [this] { return OnFeederPacket(); })
              .status()
              .WithContext("descriptor 3"));
  return WatchFeeder();
}

Status Agent::WatchFeeder() {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(feeder_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return Status::FromErrno(errno, "descriptor 3 is no packet socket");
  }
  if (peer.pid <= 0) return Status::Ok();  // of another pid namespace: standard input has to do
  feeder_pid_ = peer.pid;
  auto pidfd = OpenPidfd(peer.pid);
  if (!pidfd.ok()) return pidfd.status().WithContext("the feeder");
  ARC_TRY(loop_
              ->WatchReadable(pidfd->get(),
                              [this] {
                                OnFeederGone("its process ended");
                                return false;
                              })
              .status());
  pidfds_.push_back(std::move(*pidfd));
  return Status::Ok();
}

bool Agent::OnStdin() {
  char ignored[256];
  const ssize_t n = ::read(kAgentStdin, ignored, sizeof ignored);
  if (n > 0 || (n < 0 && (errno == EINTR || errno == EAGAIN))) return true;
  OnFeederGone("it closed the agent");
  return false;
}

bool Agent::OnFeederPacket() {
  for (;;) {
    net::Message message;
    Status error;
    const Incoming incoming = ReceiveNow(feeder_.get(), &message, &error);
    if (incoming == Incoming::kNothing) return true;
    if (incoming == Incoming::kClosed) {
      OnFeederGone(std::string(error.message()));
      return false;
    }
    HandleFeederPacket(message);
  }
}

void Agent::HandleFeederPacket(net::Message& message) {
  if (phase_ == Phase::kConfig) return OnConfig(message);
  if (message.op == "abort") return OnAbort(*message.body);
  if (!service_) {  // the outcome is out, or there never was a run
    if (message.op == "acquire") {
      SendToFeeder({{"op", "refused"},
                    {"code", CodeName(Code::kCancelled)},
                    {"message", "the node has ended"}},
                   {});
    }
    return;
  }
  if (Status status = service_->OnFeederPacket(*message.body, std::move(message.fds));
      !status.ok()) {
    Failure failure;
    failure.cause = cause::kFeeder;
    failure.message = "the feeder broke the protocol: " + std::string(status.message());
    Fail(std::move(failure), config_.grace_s);
  }
}

void Agent::OnAbort(const json& body) {
  Failure failure;
  failure.cause = cause::kFeeder;
  Fields in(body, "abort");
  in.Text("code", &failure.type, kMaxNameBytes)
      .Text("message", &failure.message, kMaxTextBytes)
      .Text("traceback", &failure.traceback, kMaxTextBytes);
  Fail(std::move(failure), config_.grace_s);
}

void Agent::SendToFeeder(const json& packet, const std::vector<int>& fds) {
  if (feeder_gone_ || detached_) return;
  if (Status status = net::SendPacket(feeder_.get(), packet, fds, Deadline::After(kAgentSends));
      !status.ok()) {
    Log(LogLevel::kWarning, "a packet to the feeder was lost: " + status.ToString());
  }
}

void Agent::OnConfig(net::Message& message) {
  if (Status status = Configure(message); !status.ok()) {
    phase_ = Phase::kEnding;
    session_lost_ = true;  // there is none
    Failure failure;
    failure.cause = cause::kLaunch;
    failure.type = CodeName(status.code());
    failure.message = std::string(status.message());
    Fail(std::move(failure), kAtOnce_s);
    return;
  }
  Join();
}

Status Agent::Configure(net::Message& message) {
  if (message.op != "config" || message.fds.size() != 2) {
    return InvalidArgument("the first packet must be config with two descriptors");
  }
  json document;
  ARC_TRY(DocumentFromMemfd(message.fds[0], &document));
  ARC_ASSIGN(config_, AgentConfig::FromJson(document));
  payload_ = std::move(message.fds[1]);
  ARC_ASSIGN(counters_, CounterPage::Create());
  feed::ServiceOptions options;
  options.rank = config_.rank;
  options.size = config_.FedRanks();
  options.feeds = config_.feeds;
  options.feed_memory_bytes = config_.feed_memory_bytes;
  if (config_.segment_bytes > 0) options.segment_bytes = config_.segment_bytes;
  options.local_dirs = config_.local_dirs;
  feed::FeedService::Callbacks callbacks;
  callbacks.send_to_feeder = [this](const json& packet) {
    if (hand_ && hand_->Route(packet)) return;
    if (!side_ || !side_->Route(packet)) SendToFeeder(packet, {});
  };
  callbacks.rows_changed = [this](const std::string& feed) {
    ScheduleBeat(service_ && service_->Local(feed).ended);
  };
  callbacks.balanced = [this](const std::string& feed) {
    if (hand_) hand_->OnBalanced(feed);
  };
  callbacks.settled = [this](const std::string& feed) {
    if (hand_) hand_->OnSettled(feed);
  };
  callbacks.dropped = [this](const std::string& feed) {
    if (hand_) hand_->OnDropped(feed);
  };
  service_ = std::make_unique<feed::FeedService>(std::move(options), std::move(callbacks));
  StartHandOver();
  loop_->Every(Seconds(kFeedTick_s),
               [this] { service_->OnTick(std::chrono::steady_clock::now()); });
  ARC_ASSIGN(port_, HeldPort::Reserve(config_.host, config_.first_port, config_.last_port));
  if (!config_.log_file.empty()) {
    ARC_ASSIGN(log_file_, LogFile::Open(config_.log_file));
  }
  if (config_.side) ARC_TRY(StartSide());
  if (config_.jvm_pid == 0) return Status::Ok();
  auto pidfd = OpenPidfd(static_cast<pid_t>(config_.jvm_pid));
  if (!pidfd.ok()) return pidfd.status().WithContext("the executor's JVM");
  ARC_TRY(loop_
              ->WatchReadable(pidfd->get(),
                              [this] {
                                OnExecutorGone();
                                return false;
                              })
              .status());
  jvm_pidfd_ = pidfd->get();
  pidfds_.push_back(std::move(*pidfd));
  return Status::Ok();
}

Status Agent::HostCoordinator(HostPort* address) {
  CoordinatorOptions options;
  options.bind_host = config_.host_coordinator->bind;
  options.port = config_.host_coordinator->port;
  options.secret = config_.secret;
  options.encrypt = config_.encrypt;
  options.run_id = config_.run_id;
  options.size = config_.size;
  options.tuning = config_.host_coordinator->tuning;
  ARC_ASSIGN(hosted_, Coordinator::Start(std::move(options)));
  *address = hosted_->address();
  return Status::Ok();
}

void Agent::Join() {
  phase_ = Phase::kJoining;
  Mark("configured");
  HostPort address = config_.coordinator;
  if (config_.host_coordinator) {
    if (Status status = HostCoordinator(&address); !status.ok()) {
      session_lost_ = true;
      Failure failure;
      failure.cause = cause::kLaunch;
      failure.type = CodeName(status.code());
      failure.message = "cannot host the coordinator: " + std::string(status.message());
      return Fail(std::move(failure), kAtOnce_s);
    }
  }
  AgentSession::Callbacks callbacks;
  callbacks.on_start = [this](std::vector<Member> cluster) { OnStart(std::move(cluster)); };
  callbacks.on_rows = [this](const std::string& feed, const std::vector<feed::RankRows>& ranks) {
    if (service_ && config_.feeds.count(feed) > 0) service_->SetRanks(feed, ranks);
  };
  callbacks.on_barrier = [this](const json& answer) { OnBarrierAnswer(answer); };
  callbacks.on_side = [this](const json& message) {
    if (side_) side_->OnCoordinator(message);
  };
  callbacks.on_hand = [this](const json& message) {
    return hand_ ? hand_->OnCoordinator(message) : Status::Ok();
  };
  callbacks.on_ping = [this] { OnPing(); };
  callbacks.on_describe = [this] { OnDescribe(); };
  callbacks.on_lines = [this](int lines) { SendLines(lines); };
  callbacks.on_verdict = [this](Verdict verdict) { OnVerdict(std::move(verdict)); };
  callbacks.on_lost = [this](Failure failure) {
    session_lost_ = true;
    Fail(std::move(failure), config_.grace_s);
  };
  callbacks.on_closed = [this] { Advance(); };
  session_ = std::make_unique<AgentSession>(*loop_, std::move(callbacks));
  control::Join join;
  join.run_id = config_.run_id;
  join.rank = config_.rank;
  join.role = config_.role;
  join.index = config_.index;
  join.host = config_.host;
  join.port = port_.port;
  if (remote_) join.side_port = remote_->port();
  join.pid = ::getpid();
  join.jvm_pid = config_.jvm_pid;
  join.versions = config_.versions;
  net::ChannelOptions options = ControlChannelOptions(config_.secret, config_.encrypt);
  options.unacknowledged_timeout =
      std::chrono::duration_cast<std::chrono::milliseconds>(Seconds(config_.silence_s));
  session_->Connect(address, std::move(options), config_.connect_timeout_s, join);
  loop_->Every(Seconds(BeatInterval(config_.heartbeat_s, config_.size, config_.silence_s)),
               [this] { Beat(); });
  loop_->Every(std::chrono::seconds(1), [this] {
    lines_this_second_ = 0;
    if (const auto n = std::exchange(lines_left_out_, 0); n > 0) {
      session_->Send(
          {{"op", "log"},
           {"line", "(" + std::to_string(n) + " lines are only in the executor's log)"}});
    }
  });
}

void Agent::OnStart(std::vector<Member> cluster) {
  if (phase_ != Phase::kJoining || failure_) return;
  Mark("all_joined");
  phase_ = Phase::kRunning;
  cluster_ = std::move(cluster);
  if (Status status = StartNode(cluster_); !status.ok()) {
    Failure failure;
    failure.cause = cause::kLaunch;
    failure.type = CodeName(status.code());
    failure.message = std::string(status.message());
    return Fail(std::move(failure), kAtOnce_s);
  }
  if (config_.side) Detach();
}

std::string Agent::NodeConfig(const std::vector<Member>& cluster) const {
  json config{{"role", config_.role},   {"rank", config_.rank},     {"size", config_.size},
              {"index", config_.index}, {"run_id", config_.run_id}, {"respawned", respawned_}};
  std::map<std::string, std::map<int, std::string>> by_role;
  for (const Member& m : cluster) by_role[m.role][m.index] = m.host + ":" + std::to_string(m.port);
  for (const auto& [role, members] : by_role) {
    for (const auto& [index, address] : members) config["cluster"][role].push_back(address);
  }
  config["feeds"] = json::object();
  for (const auto& [name, feed] : config_.feeds) config["feeds"][name] = feed.schema.ToJson();
  config["job"] = json::parse(config_.job_json, nullptr, /*allow_exceptions=*/false);
  return config.dump(-1, ' ', false, json::error_handler_t::replace);
}

Status Agent::StartNode(const std::vector<Member>& cluster) {
  NodeProcess::Options options;
  options.argv = config_.python;
  options.env = config_.env;
  options.env[kNodeMarkVariable] = NodeMark(config_.run_id, config_.rank, ::getpid());
  options.cwd = config_.cwd;
  options.config_json = NodeConfig(cluster);
  options.payload_fd = payload_.get();
  options.counters_fd = counters_->fd().get();
  options.grace_s = config_.grace_s;
  options.exit_timeout_s = config_.exit_timeout_s;
  options.report_lines = config_.log_tail_lines;
  options.log.max_lines = kMaxTailLines;
  options.log.max_bytes = std::max<std::size_t>(config_.log_report_bytes, kLeastTailBytes);
  if (log_file_) options.log.on_bytes = [this](std::string_view bytes) { log_file_->Write(bytes); };
  options.log.copy_fd = STDERR_FILENO;
  options.log.copy_prefix = "[arcflow " + std::to_string(config_.rank) + "] ";
  if (config_.forward_log)
    options.log.on_line = [this](std::string_view line) { ForwardLine(line); };
  ARC_ASSIGN(node_, NodeProcess::Start(*loop_, std::move(options), NodeCallbacks()));
  inspector_ = std::make_unique<NodeInspector>(*loop_, node_->pid());
  if (respawned_ == 0) StartLiveness();
  Mark("node_spawned");
  SendToFeeder({{"op", "node"}, {"pid", node_->pid()}}, {});
  return Status::Ok();
}

NodeProcess::Callbacks Agent::NodeCallbacks() {
  NodeProcess::Callbacks callbacks;
  callbacks.on_hello = [this] { Mark("node_hello"); };
  callbacks.on_reader = [this](const std::string& feed, Fd socket) {
    OnReader(feed, std::move(socket));
  };
  callbacks.on_side = [this](Fd socket) {
    if (side_) side_->AddSession(std::move(socket));
  };
  callbacks.on_log = [this](std::string text) {
    session_->Send({{"op", "log"}, {"line", std::move(text)}});
  };
  callbacks.on_progress = [this](const json& progress) {
    session_->Send({{"op", "progress"}, {"progress", progress}});
  };
  callbacks.on_barrier = [this](const json& packet) { OnNodeBarrier(packet); };
  callbacks.on_stacks = [this](Fd stacks) {
    if (inspector_) inspector_->SetStacks(std::move(stacks));
  };
  callbacks.on_python_stacks = [this] {
    if (inspector_) inspector_->SetPython();
  };
  callbacks.on_busy = [this](std::string reason) { busy_ = std::move(reason); };
  callbacks.on_failed = [this](const Failure& failure) { Fail(failure, config_.grace_s); };
  callbacks.on_end = [this](NodeProcess::End end) { OnNodeEnd(std::move(end)); };
  return callbacks;
}

void Agent::OnReader(const std::string& feed, Fd socket) {
  if (!service_) return;
  auto descriptor = service_->AddReader(feed, std::move(socket));
  if (!descriptor.ok()) {
    Log(LogLevel::kWarning, "a reader was refused: " + descriptor.status().ToString());
    return;
  }
  const int fd = *descriptor;
  (void)!loop_->WatchReadable(fd, [this, fd] { return service_ && service_->OnReaderReadable(fd); })
      .ok();
}

void Agent::ForwardLine(std::string_view line) {
  if (++lines_this_second_ > kLinesPerSecond) {
    ++lines_left_out_;
    return;
  }
  session_->Send({{"op", "log"}, {"line", CleanText(line, kMaxLineBytes)}});
}

std::vector<std::string> Agent::LastLines(std::size_t max_lines, std::size_t max_bytes) const {
  std::vector<std::string> lines;
  if (!node_) return lines;
  for (const std::string& line : node_->LastLines(std::min(max_lines, kMaxTailLines), max_bytes)) {
    lines.push_back(CleanText(line, kMaxLineBytes));
  }
  return lines;
}

void Agent::SendLines(int max_lines) {
  session_->Send({{"op", "lines"},
                  {"lines", LastLines(static_cast<std::size_t>(std::max(max_lines, 0)),
                                      config_.log_report_bytes)}});
}

void Agent::ScheduleBeat(bool now) {
  if (now) {
    loop_->Post([this] { Beat(); });
    return;
  }
  if (beat_timer_ == 0)
    beat_timer_ = loop_->After(Seconds(RowsInterval(config_.size)), [this] { Beat(); });
}

void Agent::Beat() {
  if (beat_timer_ != 0) loop_->CancelTimer(std::exchange(beat_timer_, 0));
  if (!session_ || !session_->open() || said_bye_) return;
  json message{
      {"op", "beat"}, {"time", WallSeconds()}, {"counters", Counters()}, {"feeds", json::object()}};
  if (service_) {
    std::uint64_t rows = 0;
    std::uint64_t depth_bytes = 0;
    std::uint64_t wait_ns = 0;
    for (const auto& [name, feed] : config_.feeds) {
      json levels = service_->Levels(name);
      if (levels.empty()) continue;
      rows += levels["rows"].get<std::uint64_t>();
      depth_bytes += levels["depth_bytes"].get<std::uint64_t>();
      wait_ns += levels["acquire_wait_ns"].get<std::uint64_t>();
      message["feeds"][name] = std::move(levels);
    }
    if (counters_) {
      CounterPageLayout& page = counters_->counters();
      page.rows_fed.store(rows, std::memory_order_relaxed);
      page.depth_bytes.store(depth_bytes, std::memory_order_relaxed);
      page.feeder_wait_ns.store(wait_ns, std::memory_order_relaxed);
    }
  }
  const std::uint64_t rss = node_ && node_->running() ? ResidentBytes(node_->pid()) : 0;
  rss_peak_bytes_ = std::max(rss_peak_bytes_, rss);
  message["rss_bytes"] = rss;
  session_->Send(message);
}

}  // namespace arcflow::control
