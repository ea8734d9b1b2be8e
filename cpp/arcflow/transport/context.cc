// SPDX-License-Identifier: Apache-2.0
// Context: threads, backends, and the table of peers.
#include "arcflow/transport/context.h"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "arcflow/net/handshake.h"
#include "arcflow/transport/backend.h"
#include "arcflow/transport/core.h"
#include "arcflow/transport/registry.h"
#include "arcflow/transport/session.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport {
namespace {

constexpr int kMaxIoThreads = 16;

int DefaultIoThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()) / 4, 1, 4);
}

Status CheckOptions(const ContextOptions& options) {
  if (options.secret.size() < net::Handshake::kMinSecretBytes) {
    return InvalidArgument("the run secret has " + std::to_string(options.secret.size()) +
                           " bytes, at least " + std::to_string(net::Handshake::kMinSecretBytes) +
                           " are needed");
  }
  if (options.io_threads < 0 || options.io_threads > kMaxIoThreads) {
    return InvalidArgument("io_threads must lie between 0 and " + std::to_string(kMaxIoThreads));
  }
  if (options.first_port < 0 || options.last_port < options.first_port ||
      options.last_port > 65535) {
    return InvalidArgument("ports from " + std::to_string(options.first_port) + " to " +
                           std::to_string(options.last_port) + " are no range");
  }
  if (options.silence_limit < std::chrono::milliseconds(100)) {
    return InvalidArgument("silence_limit must be at least 100 ms");
  }
  return Status::Ok();
}

}  // namespace

struct Context::Impl {
  std::shared_ptr<Core> core = std::make_shared<Core>();
  std::vector<BackendState> states;
  std::vector<std::unique_ptr<Backend>> backends;
  std::string address;

  mutable std::mutex mutex;
  std::condition_variable changed;
  bool closing = false;
  std::map<NodeId, std::vector<std::shared_ptr<Session>>> sessions;  // live ones
  std::set<NodeId> connecting;

  Status Open(const ContextOptions& options);
  Status OpenBackends();
  void Adopt(std::shared_ptr<Session> session);
  void Forget(const std::shared_ptr<Session>& session);
  std::vector<std::shared_ptr<Session>> Sessions() const;
  std::shared_ptr<Session> FindLocked(const NodeId& node) const;
  void Tick();
  Result<std::shared_ptr<Session>> Connect(const Address& to, Deadline deadline);
  Result<std::shared_ptr<Session>> Try(const Address& to, Deadline deadline);
  void Close();
};

Status Context::Impl::Open(const ContextOptions& options) {
  ARC_TRY(CheckOptions(options));
  ARC_ASSIGN(core->id, NodeId::Random());
  core->options = options;
  core->regions = std::make_shared<RegionTable>(core->id, &core->counters);
  const int threads = options.io_threads > 0 ? options.io_threads : DefaultIoThreads();
  for (int i = 0; i < threads; ++i) {
    ARC_ASSIGN(auto reactor, Reactor::Start("arc-io-" + std::to_string(i)));
    core->reactors.push_back(std::move(reactor));
  }
  core->adopt = [this](std::shared_ptr<Session> session) { Adopt(std::move(session)); };
  core->forget = [this](const std::shared_ptr<Session>& session) { Forget(session); };
  ARC_TRY(OpenBackends());
  core->regions->SetDrain([this](Gate& gate) {
    for (const auto& backend : backends) backend->Drain(gate);
  });
  core->reactors.front()->SetTick([this] { Tick(); });
  return Status::Ok();
}

Status Context::Impl::OpenBackends() {
  ARC_ASSIGN(const BackendChoice choice,
             ChooseBackends(core->options.backends, std::getenv("ARC_TRANSPORTS")));
  Address own;
  own.node = core->id;
  std::string why;
  for (const std::string& name : choice.names) {
    auto backend = FindBackend(name)(core);
    states.push_back({name, backend.status()});
    if (backend.ok()) {
      own.entries.push_back({name, (*backend)->where()});
      backends.push_back(std::move(*backend));
      continue;
    }
    why += (why.empty() ? "" : "; ") + name + ": " + std::string(backend.status().message());
    if (choice.forced || backend.status().code() == Code::kInvalidArgument) {
      return backend.status().WithContext("transport \"" + name + "\" cannot be used here");
    }
  }
  if (backends.empty()) return Unavailable("no transport works here: " + why);
  address = own.Serialize();
  return Status::Ok();
}

void Context::Impl::Adopt(std::shared_ptr<Session> session) {
  bool late = false;
  {
    std::lock_guard lock(mutex);
    late = closing;
    if (!late) sessions[session->peer()].push_back(session);
  }
  if (late) session->Close();
}

void Context::Impl::Forget(const std::shared_ptr<Session>& session) {
  std::lock_guard lock(mutex);
  const auto it = sessions.find(session->peer());
  if (it == sessions.end()) return;
  std::erase(it->second, session);
  if (it->second.empty()) sessions.erase(it);
}

std::vector<std::shared_ptr<Session>> Context::Impl::Sessions() const {
  std::vector<std::shared_ptr<Session>> all;
  std::lock_guard lock(mutex);
  for (const auto& [node, live] : sessions) all.insert(all.end(), live.begin(), live.end());
  return all;
}

std::shared_ptr<Session> Context::Impl::FindLocked(const NodeId& node) const {
  const auto it = sessions.find(node);
  if (it == sessions.end()) return nullptr;
  for (const auto& session : it->second) {
    if (session->status().ok()) return session;
  }
  return nullptr;
}

void Context::Impl::Tick() {
  for (const auto& session : Sessions()) session->Tick();
  for (const auto& backend : backends) backend->Tick();
}

Result<std::shared_ptr<Session>> Context::Impl::Connect(const Address& to, Deadline deadline) {
  {
    std::unique_lock lock(mutex);
    for (;;) {
      if (closing) return Cancelled("the context is closing");
      if (auto live = FindLocked(to.node)) return live;
      if (connecting.insert(to.node).second) break;
      // Another thread is at it.
      if (deadline.infinite()) {
        changed.wait(lock);
      } else if (changed.wait_until(lock, deadline.at()) == std::cv_status::timeout) {
        return DeadlineExceeded("no connection to node " + to.node.ToString().substr(0, 8) +
                                " in time");
      }
    }
  }
  auto session = Try(to, deadline);
  {
    std::lock_guard lock(mutex);
    connecting.erase(to.node);
  }
  changed.notify_all();
  return session;
}

Result<std::shared_ptr<Session>> Context::Impl::Try(const Address& to, Deadline deadline) {
  std::string why;
  Code code = Code::kUnavailable;
  // A peer that is stopped accepts connections (its kernel does) and never answers.
  const Deadline limit = Deadline::After(core->options.handshake_timeout);
  if (limit.at() < deadline.at()) deadline = limit;
  for (const auto& backend : backends) {
    for (const Address::Entry& entry : to.entries) {
      if (entry.backend != backend->name()) continue;
      auto session = backend->Connect(entry.where, to.node, deadline);
      if (session.ok()) return session;
      const Code this_code = session.status().code();
      if (this_code == Code::kDeadlineExceeded || this_code == Code::kUnauthenticated) {
        code = this_code;
      }
      why += (why.empty() ? "" : "; ") + std::string(backend->name()) + ": " +
             std::string(session.status().message());
    }
  }
  if (why.empty()) {
    why = "no transport in common; this side has";
    for (const auto& backend : backends) why += " " + std::string(backend->name());
    why += ", the peer";
    for (const auto& entry : to.entries) why += " " + entry.backend;
  }
  return Status(code, "no connection to node " + to.node.ToString().substr(0, 8) + ": " + why);
}

void Context::Impl::Close() {
  if (core->regions == nullptr) return;  // Open() refused its options
  {
    std::lock_guard lock(mutex);
    closing = true;
  }
  changed.notify_all();
  for (const auto& session : Sessions()) session->Close();
  for (const auto& backend : backends) backend->Stop();
  core->regions->RemoveAll();
  for (const auto& reactor : core->reactors) reactor->Stop();
  core->regions->SetDrain({});
  core->adopt = [](const std::shared_ptr<Session>&) {};
  core->forget = nullptr;
  for (auto& [channel, hook] : core->handlers) hook->Set({});  // what it captured goes now
  core->peer_down.Set({});
}

Context::Context(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Context::~Context() { impl_->Close(); }

Result<std::unique_ptr<Context>> Context::Create(const ContextOptions& options) {
  std::unique_ptr<Context> context(new Context(std::make_unique<Impl>()));
  ARC_TRY(context->impl_->Open(options));
  return context;
}

const NodeId& Context::id() const { return impl_->core->id; }

const std::string& Context::address() const { return impl_->address; }

Result<std::shared_ptr<Endpoint>> Context::Connect(std::string_view address, Deadline deadline) {
  if (Reactor::OnTransportThread()) {
    return FailedPrecondition("a callback of the transport must not connect");
  }
  if (address.size() > kMaxAddressBytes) return InvalidArgument("transport address too long");
  ARC_ASSIGN(const Address to, Address::Parse(address));
  if (to.node == id()) return InvalidArgument("this is the context's own address");
  ARC_ASSIGN(auto session, impl_->Connect(to, deadline));
  return std::shared_ptr<Endpoint>(std::move(session));
}

std::shared_ptr<Endpoint> Context::Find(const NodeId& node) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->FindLocked(node);
}

Result<Region> Context::Register(std::span<std::byte> bytes, Access access) {
  return impl_->core->regions->Add(bytes, access);
}

void Context::Handle(Channel channel, MessageHandler handler) {
  impl_->core->HookOf(channel).Set(std::move(handler));
}

void Context::OnPeerDown(PeerDown callback) { impl_->core->peer_down.Set(std::move(callback)); }

std::vector<BackendState> Context::backends() const { return impl_->states; }

Counters& Context::counters() { return impl_->core->counters; }

bool Context::OnTransportThread() { return Reactor::OnTransportThread(); }

}  // namespace arcflow::transport
