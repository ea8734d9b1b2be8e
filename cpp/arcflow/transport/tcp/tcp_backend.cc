// SPDX-License-Identifier: Apache-2.0
// The tcp backend: listening, connecting, and gathering the connections of a session.
#include "arcflow/transport/tcp/tcp_backend.h"

#include <map>
#include <utility>

#include "arcflow/transport/greeting.h"
#include "arcflow/transport/inet.h"
#include "arcflow/transport/session.h"
#include "arcflow/transport/tcp/tcp_link.h"

namespace arcflow::transport::tcp {
namespace {

constexpr int kMaxConnections = 16;
constexpr std::size_t kMaxHalfOpen = 256;

class TcpBackend final : public Backend {
 public:
  TcpBackend(std::shared_ptr<Core> core, std::string where)
      : core_(std::move(core)),
        where_(std::move(where)),
        half_open_(std::make_shared<HalfOpen>()) {}

  Status Start(Fd listener) {
    ARC_ASSIGN(acceptor_, Acceptor::Start(std::move(listener), core_, *core_->reactors.front(),
                                          [core = core_, half_open = half_open_](Guest guest) {
                                            Accept(core, *half_open, std::move(guest));
                                          }));
    return Status::Ok();
  }

  std::string_view name() const override { return "tcp"; }
  std::string where() const override { return where_; }
  Result<std::shared_ptr<Session>> Connect(std::string_view where, const NodeId& node,
                                           Deadline deadline) override;
  void Tick() override { acceptor_->Tick(); }
  void Stop() override { acceptor_->Close(); }

 private:
  /// Lanes of a session that has not all of them yet.
  struct Gathering {
    std::vector<Fd> sockets;
    std::size_t have = 0;
    std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
  };
  using HalfOpen = std::map<std::pair<NodeId, std::uint64_t>, Gathering>;  // reactor thread only

  static void Accept(const std::shared_ptr<Core>& core, HalfOpen& half_open, Guest guest);
  static Result<std::shared_ptr<Session>> MakeSession(const std::shared_ptr<Core>& core,
                                                      const NodeId& peer, std::vector<Fd> sockets,
                                                      std::shared_ptr<TcpLink>* link);

  const std::shared_ptr<Core> core_;
  const std::string where_;
  const std::shared_ptr<HalfOpen> half_open_;
  std::shared_ptr<Acceptor> acceptor_;
};

Result<std::shared_ptr<Session>> TcpBackend::MakeSession(const std::shared_ptr<Core>& core,
                                                         const NodeId& peer,
                                                         std::vector<Fd> sockets,
                                                         std::shared_ptr<TcpLink>* link) {
  const std::string detail =
      std::to_string(sockets.size()) + " connections to " + PeerOf(sockets.front().get());
  std::vector<std::shared_ptr<Lane>> lanes;
  for (Fd& socket : sockets) {
    ARC_TRY(SetNoDelay(socket.get()));
    lanes.push_back(Lane::Create(std::move(socket), core->NextReactor(), true));
  }
  auto session = std::make_shared<Session>(core, BackendKind::kTcp, peer);
  *link = std::make_shared<TcpLink>(session, std::move(lanes), detail);
  session->Start(*link);
  return session;
}

// The peer sends its first frame after our answer on every lane, so the session is made before the
// last answer.
void TcpBackend::Accept(const std::shared_ptr<Core>& core, HalfOpen& half_open, Guest guest) {
  const auto now = std::chrono::steady_clock::now();
  for (auto it = half_open.begin(); it != half_open.end();) {
    it = it->second.since + core->options.handshake_timeout < now ? half_open.erase(it)
                                                                  : std::next(it);
  }
  const Hello& theirs = guest.hello;
  const std::pair key(theirs.node, theirs.session);
  if (theirs.node == core->id || theirs.lanes > kMaxConnections ||
      (half_open.size() >= kMaxHalfOpen && half_open.count(key) == 0)) {
    return;
  }
  Gathering& gathering = half_open[key];
  gathering.sockets.resize(theirs.lanes);
  Fd& slot = gathering.sockets[theirs.lane];
  if (slot.valid()) return;
  Hello mine;
  mine.node = core->id;
  mine.session = theirs.session;
  mine.lane = theirs.lane;
  mine.lanes = theirs.lanes;
  const int fd = guest.socket.get();
  slot = std::move(guest.socket);
  const auto none = Deadline::After(std::chrono::nanoseconds(0));  // a fresh socket has room
  if (++gathering.have < gathering.sockets.size()) {
    if (!SendBytes(fd, mine.Serialize(), -1, none).ok()) half_open.erase(key);
    return;
  }
  std::vector<Fd> sockets = std::move(gathering.sockets);
  half_open.erase(key);
  std::shared_ptr<TcpLink> link;
  auto session = MakeSession(core, theirs.node, std::move(sockets), &link);
  if (!session.ok()) return;
  core->adopt(*session);
  Status status = SendBytes(fd, mine.Serialize(), -1, none);
  if (status.ok()) status = link->Start();
  if (!status.ok()) (*session)->OnLinkDown(status);
}

Result<std::shared_ptr<Session>> TcpBackend::Connect(std::string_view where, const NodeId& node,
                                                     Deadline deadline) {
  Hello mine;
  mine.node = core_->id;
  mine.lanes = static_cast<std::uint16_t>(core_->options.tcp_connections);
  ARC_TRY(RandomBytes({reinterpret_cast<std::uint8_t*>(&mine.session), sizeof(mine.session)}));
  std::vector<Fd> sockets;
  for (std::uint16_t lane = 0; lane < mine.lanes; ++lane) {
    mine.lane = lane;
    ARC_ASSIGN(Fd socket, DialTcp(where, deadline));
    ARC_ASSIGN(const Hello theirs,
               GreetAsClient(socket.get(), core_->options.secret, mine, -1, nullptr, deadline));
    if (theirs.node != node) {
      return Unavailable("another process listens at " + std::string(where) +
                         " now; the peer is gone");
    }
    sockets.push_back(std::move(socket));
  }
  std::shared_ptr<TcpLink> link;
  ARC_ASSIGN(auto session, MakeSession(core_, node, std::move(sockets), &link));
  core_->counters.connections.fetch_add(1, std::memory_order_relaxed);
  core_->adopt(session);
  ARC_TRY(link->Start());
  return session;
}

}  // namespace

Result<std::unique_ptr<Backend>> Make(std::shared_ptr<Core> core) {
  if (core->options.tcp_connections < 1 || core->options.tcp_connections > kMaxConnections) {
    return InvalidArgument("tcp_connections must lie between 1 and " +
                           std::to_string(kMaxConnections));
  }
  std::string where;
  const ContextOptions& options = core->options;
  ARC_ASSIGN(Fd listener, ListenTcp(options.host, options.first_port, options.last_port, &where));
  auto backend = std::make_unique<TcpBackend>(core, where);
  ARC_TRY(backend->Start(std::move(listener)));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace arcflow::transport::tcp
