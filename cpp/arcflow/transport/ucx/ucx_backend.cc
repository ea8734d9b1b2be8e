// SPDX-License-Identifier: Apache-2.0
// The ucx and rdma backends: both ends meet over an authenticated TCP connection, exchange UCX
// addresses and keep it.
#include "arcflow/transport/ucx/ucx_backend.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "arcflow/transport/greeting.h"
#include "arcflow/transport/inet.h"
#include "arcflow/transport/session.h"
#include "arcflow/transport/ucx/engine.h"
#include "arcflow/transport/ucx/ucx_link.h"

namespace arcflow::transport::ucx {
namespace {

// UCX's name for every transport over verbs devices.
constexpr const char* kVerbs = "ib";

struct Introduction {
  Token token{};
  std::string worker_address;
};

std::string Extra(const Token& token, const std::string& worker_address) {
  std::string out(reinterpret_cast<const char*>(token.data()), token.size());
  const auto length = static_cast<std::uint32_t>(worker_address.size());
  out.append(reinterpret_cast<const char*>(&length), sizeof(length));
  return out + worker_address;
}

Result<Introduction> ParseExtra(std::string_view bytes) {
  Introduction found;
  std::uint32_t length = 0;
  constexpr std::size_t kFixed = sizeof(Token) + sizeof(length);
  if (bytes.size() < kFixed) return InvalidArgument("hello of another backend");
  std::memcpy(found.token.data(), bytes.data(), sizeof(Token));
  std::memcpy(&length, bytes.data() + sizeof(Token), sizeof(length));
  if (bytes.size() != kFixed + length || length == 0) {
    return InvalidArgument("UCX address of the wrong length");
  }
  found.worker_address = bytes.substr(kFixed);
  return found;
}

class UcxBackend final : public Backend {
 public:
  UcxBackend(std::shared_ptr<Core> core, BackendKind kind, std::unique_ptr<Engine> engine,
             std::string where)
      : core_(std::move(core)), kind_(kind), engine_(std::move(engine)), where_(std::move(where)) {}
  ~UcxBackend() override { engine_->Stop(); }

  Status Start(Fd listener) {
    ARC_ASSIGN(acceptor_, Acceptor::Start(std::move(listener), core_, *core_->reactors.front(),
                                          [this](Guest guest) { Accept(std::move(guest)); }));
    return Status::Ok();
  }

  std::string_view name() const override { return BackendKindName(kind_); }
  std::string where() const override { return where_; }
  Result<std::shared_ptr<Session>> Connect(std::string_view where, const NodeId& node,
                                           Deadline deadline) override;
  void Drain(Gate& gate) override { engine_->Drain(gate); }
  void Tick() override { acceptor_->Tick(); }
  void Stop() override {
    acceptor_->Close();
    engine_->Stop();
  }

 private:
  void Accept(Guest guest);
  Result<std::shared_ptr<UcxLink>> MakeLink(const std::shared_ptr<Session>& session, Fd socket,
                                            const Token& own, const Hello& theirs);
  Result<Hello> MakeHello(std::uint64_t session, Token* token) const;

  const std::shared_ptr<Core> core_;
  const BackendKind kind_;
  const std::unique_ptr<Engine> engine_;
  const std::string where_;
  std::shared_ptr<Acceptor> acceptor_;
};

Result<Hello> UcxBackend::MakeHello(std::uint64_t session, Token* token) const {
  ARC_TRY(RandomBytes(*token));
  Hello hello;
  hello.node = core_->id;
  hello.session = session;
  hello.extra = Extra(*token, engine_->worker_address());
  return hello;
}

Result<std::shared_ptr<UcxLink>> UcxBackend::MakeLink(const std::shared_ptr<Session>& session,
                                                      Fd socket, const Token& own,
                                                      const Hello& theirs) {
  ARC_ASSIGN(const Introduction peer, ParseExtra(theirs.extra));
  const std::string address = PeerOf(socket.get());
  auto lane = Lane::Create(std::move(socket), core_->NextReactor(), false);
  auto link =
      std::make_shared<UcxLink>(session, std::move(lane), *engine_, own, peer.token, address);
  session->Start(link);
  ARC_TRY(link->Connect(peer.worker_address));
  core_->adopt(session);
  return link;
}

void UcxBackend::Accept(Guest guest) {
  if (guest.hello.node == core_->id || guest.hello.lanes != 1) return;
  Token token{};
  auto mine = MakeHello(guest.hello.session, &token);
  if (!mine.ok()) return;
  const int fd = guest.socket.get();
  auto session = std::make_shared<Session>(core_, kind_, guest.hello.node);
  // Ready for messages before the other side learns our token.
  auto link = MakeLink(session, std::move(guest.socket), token, guest.hello);
  if (!link.ok()) return;
  Status status =
      SendBytes(fd, mine->Serialize(), -1, Deadline::After(std::chrono::nanoseconds(0)));
  if (status.ok()) status = (*link)->Start();
  if (!status.ok()) session->OnLinkDown(status);
}

Result<std::shared_ptr<Session>> UcxBackend::Connect(std::string_view where, const NodeId& node,
                                                     Deadline deadline) {
  Token token{};
  std::uint64_t number = 0;
  ARC_TRY(RandomBytes({reinterpret_cast<std::uint8_t*>(&number), sizeof(number)}));
  ARC_ASSIGN(const Hello mine, MakeHello(number, &token));
  ARC_ASSIGN(Fd socket, DialTcp(where, deadline));
  ARC_ASSIGN(const Hello theirs,
             GreetAsClient(socket.get(), core_->options.secret, mine, -1, nullptr, deadline));
  if (theirs.node != node) {
    return Unavailable("another process listens at " + std::string(where) +
                       " now; the peer is gone");
  }
  auto session = std::make_shared<Session>(core_, kind_, node);
  ARC_ASSIGN(auto link, MakeLink(session, std::move(socket), token, theirs));
  core_->counters.connections.fetch_add(1, std::memory_order_relaxed);
  ARC_TRY(link->Start());
  return session;
}

Result<std::unique_ptr<Backend>> MakeWith(std::shared_ptr<Core> core, BackendKind kind,
                                          const std::string& transports) {
  ARC_ASSIGN(auto engine, Engine::Start(transports, core->options.quiesce_timeout));
  std::string where;
  const ContextOptions& options = core->options;
  ARC_ASSIGN(Fd listener, ListenTcp(options.host, options.first_port, options.last_port, &where));
  auto backend = std::make_unique<UcxBackend>(core, kind, std::move(engine), where);
  ARC_TRY(backend->Start(std::move(listener)));
  return std::unique_ptr<Backend>(std::move(backend));
}

std::string FirstLine(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

}  // namespace

Status CheckRdmaDevices(const std::string& sysfs, const std::string& dev) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::string devices;
  std::string states;
  bool active = false;
  for (const auto& device : fs::directory_iterator(sysfs + "/class/infiniband", error)) {
    devices += (devices.empty() ? "" : ", ") + device.path().filename().string();
    for (const auto& port : fs::directory_iterator(device.path() / "ports", error)) {
      const std::string state = FirstLine(port.path() / "state");  // "4: ACTIVE"
      states += (states.empty() ? "" : ", ") + device.path().filename().string() + " port " +
                port.path().filename().string() + " " + state;
      active = active || state.find("ACTIVE") != std::string::npos;
    }
  }
  if (devices.empty()) {
    return Unavailable("there is no RDMA device: " + sysfs +
                       "/class/infiniband is empty or missing (no card, or its driver is not "
                       "loaded; for Soft-RoCE: rdma link add rxe0 type rxe netdev <interface>)");
  }
  if (!active) {
    return Unavailable("no port of an RDMA device is active: " + states);
  }
  std::string denied;
  for (const auto& node : fs::directory_iterator(dev + "/infiniband", error)) {
    if (node.path().filename().string().rfind("uverbs", 0) != 0) continue;
    if (::access(node.path().c_str(), R_OK | W_OK) == 0) return Status::Ok();
    denied = node.path().string() + ": " + std::strerror(errno);
  }
  if (denied.empty()) {
    return Unavailable("RDMA device " + devices + " is there, but " + dev +
                       "/infiniband has no uverbs node: load the module ib_uverbs, or pass the "
                       "devices into the container");
  }
  return Status(Code::kPermissionDenied,
                "RDMA device " + devices + " may not be opened: " + denied);
}

Result<std::unique_ptr<Backend>> Make(std::shared_ptr<Core> core) {
  return MakeWith(std::move(core), BackendKind::kUcx, "");
}

Result<std::unique_ptr<Backend>> MakeRdma(std::shared_ptr<Core> core) {
  ARC_TRY(CheckRdmaDevices("/sys", "/dev"));
  auto made = MakeWith(std::move(core), BackendKind::kRdma, kVerbs);
  if (made.ok()) return made;
  return made.status().WithContext(
      "there is an RDMA device, but UCX cannot use it (its verbs module libuct_ib, libibverbs or "
      "the device's provider may be missing; UCX_LOG_LEVEL=info tells more)");
}

}  // namespace arcflow::transport::ucx
