// SPDX-License-Identifier: Apache-2.0
// SideServer: its socket, the connections of tasks, and what tasks say; stages and the node's
// sessions are in side_stages.cc and side_sessions.cc.
#include "arcflow/control/side_server.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/side_link.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::size_t kMaxClients = 1024;
constexpr double kHandshake_s = 10;
constexpr std::chrono::milliseconds kTick{100};
constexpr int kBacklog = 128;
constexpr double kMaxWait_s = 1e8;

}  // namespace

SideServer::SideServer(net::Loop& loop, Options options, feed::FeedService& service,
                       Callbacks callbacks)
    : loop_(loop),
      options_(std::move(options)),
      service_(service),
      callbacks_(std::move(callbacks)) {}

SideServer::~SideServer() {
  Close("the agent ended");
  if (tick_ != 0) loop_.CancelTimer(tick_);
  if (listen_watch_ != 0) loop_.Unwatch(listen_watch_);
}

Result<std::unique_ptr<SideServer>> SideServer::Listen(net::Loop& loop, Options options,
                                                       feed::FeedService& service,
                                                       Callbacks callbacks) {
  auto server = std::unique_ptr<SideServer>(
      new SideServer(loop, std::move(options), service, std::move(callbacks)));
  ARC_TRY(server->Bind());
  return server;
}

Status SideServer::Bind() {
  sockaddr_un address{};
  socklen_t length = 0;
  const std::string name = SideAddress(options_.run_id, options_.jvm_pid, options_.rank);
  ARC_TRY(AbstractAddress(name, &address, &length));
  listener_ = Fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_.valid()) return Status::FromErrno(errno, "a socket for feeding tasks");
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(listener_.get(), kBacklog) != 0) {
    return Status::FromErrno(errno, "the socket for feeding tasks, @" + name);
  }
  ARC_ASSIGN(listen_watch_,
             loop_.WatchReadable(listener_.get(), [this] { return OnConnection(); }));
  tick_ = loop_.Every(kTick, [this] { Admit(); });
  return Status::Ok();
}

bool SideServer::OnConnection() {
  for (;;) {
    Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) return true;
    auto handshake = net::Handshake::Server(options_.secret);
    if (closed_ || clients_.size() >= kMaxClients || !handshake.ok()) continue;  // closes it
    const int id = AddClient(std::move(socket));
    if (id == 0) continue;
    Client& client = clients_.at(id);
    client.handshake.emplace(std::move(*handshake));
    client.patience = loop_.After(Seconds(kHandshake_s), [this, id] { Drop(id); });
    const std::string hello = client.handshake->TakeOutput();
    if (::send(client.socket.get(), hello.data(), hello.size(), MSG_NOSIGNAL) < 0) Drop(id);
  }
}

/// 0: it cannot be watched.
int SideServer::AddClient(Fd socket) {
  const int id = next_id_++;
  Client& client = clients_[id];
  client.socket = std::move(socket);
  auto watch = loop_.WatchReadable(client.socket.get(), [this, id] { return OnClient(id); });
  if (!watch.ok()) {
    clients_.erase(id);
    return 0;
  }
  client.watch = *watch;
  return id;
}

void SideServer::AddTask(Fd socket) {
  if (!closed_ && clients_.size() < kMaxClients) (void)AddClient(std::move(socket));
}

/// False: the watch is over; Drop has then been called.
bool SideServer::OnClient(int id) {
  for (;;) {
    const auto found = clients_.find(id);
    if (found == clients_.end()) return false;
    Client& client = found->second;
    Status status;
    if (client.handshake) {
      status = OnHandshake(client);
      if (status.code() == Code::kDeadlineExceeded) return true;
    } else {
      net::Message message;
      const Incoming incoming = ReceiveNow(client.socket.get(), &message, &status);
      if (incoming == Incoming::kNothing) return true;
      if (incoming == Incoming::kClosed) {
        Drop(id);
        return false;
      }
      status = OnPacket(id, client, message);
    }
    if (status.ok()) continue;
    Log(LogLevel::kWarning, "a feeding task was cut off: " + status.ToString());
    Drop(id);
    return false;
  }
}

/// DeadlineExceeded: nothing there yet.
Status SideServer::OnHandshake(Client& client) {
  std::array<std::byte, 256> bytes;
  const ssize_t n = ::recv(client.socket.get(), bytes.data(), bytes.size(), 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return DeadlineExceeded("");
  if (n <= 0) return Unavailable("it left during the handshake");
  const std::size_t got = static_cast<std::size_t>(n);
  ARC_ASSIGN(const std::size_t used, client.handshake->Feed(std::span(bytes).first(got)));
  if (used != got) return InvalidArgument("more than a handshake");
  const std::string proof = client.handshake->TakeOutput();
  if (!proof.empty() && ::send(client.socket.get(), proof.data(), proof.size(), MSG_NOSIGNAL) < 0)
    return Status::FromErrno(errno, "handshake");
  if (client.handshake->done()) {
    client.handshake.reset();
    loop_.CancelTimer(std::exchange(client.patience, 0));
  }
  return Status::Ok();
}

void SideServer::Send(Client& client, const json& packet, const std::vector<int>& fds) {
  if (!client.socket.valid()) return;
  const Status status =
      net::SendPacket(client.socket.get(), packet, fds, Deadline::After(kAgentSends));
  if (!status.ok() && status.code() != Code::kUnavailable)
    Log(LogLevel::kWarning, "a packet to a feeding task was lost: " + status.ToString());
}

void SideServer::Refuse(Client& client, const Status& why) {
  client.waits = false;
  Send(client, {{"op", "refused"}, {"code", CodeName(why.code())}, {"message", why.message()}});
}

Status SideServer::OnPacket(int id, Client& client, net::Message& message) {
  if (message.op == "attach") return OnAttach(id, client, message);
  if (!client.attached) return InvalidArgument("the first packet must be attach");
  if (message.op == "acquire" || message.op == "publish") return OnRows(client, message);
  if (message.op == "seal") return OnSeal(client);
  if (message.op == "claim") return OnClaim(client, *message.body);
  if (message.op == "block") return OnBlock(client);
  if (message.op == "serve") return OnServe(id, client);
  return InvalidArgument("unknown packet " + CleanText(message.op, 64));
}

Status SideServer::OnAttach(int id, Client& client, net::Message& message) {
  if (client.attached || client.waits) return InvalidArgument("attached twice");
  std::string kind;
  std::string cache = "none";
  double wait_s = 0;
  Fields in(*message.body, "attach");
  in.String("kind", &kind, kMaxNameBytes, Need::kRequired)
      .String("feed", &client.target, kMaxNameBytes / 2, Need::kRequired)
      .String("job", &client.job, kMaxNameBytes / 4, Need::kRequired)
      .Int64("partition", &client.partition, 0, INT64_MAX, Need::kRequired)
      .Int64("attempt", &client.attempt, 0, INT64_MAX, Need::kRequired)
      .String("cache", &cache, kMaxNameBytes, Need::kOptional)
      .Number("wait_s", &wait_s, 0, kMaxWait_s, Need::kOptional);
  ARC_TRY(in.status());
  if (kind != "feed" && kind != "infer") return InvalidArgument("attach.kind is unknown");
  if (message.fds.size() != 1) return InvalidArgument("attach comes without a schema");
  json document;
  ARC_TRY(DocumentFromMemfd(message.fds[0], &document));
  ARC_ASSIGN(client.feed.schema, columnar::Schema::FromJson(document));
  ARC_ASSIGN(client.feed.cache, feed::CacheFromName(cache));
  client.infers = kind == "infer";
  client.deadline = std::chrono::steady_clock::now() +
                    std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                        std::chrono::duration<double>(wait_s));
  client.waits = true;
  AdmitOne(client);
  if (client.attached && !client.stage.empty()) writers_[client.stage] = id;
  return Status::Ok();
}

/// Once in a while, and after what may have made room.
void SideServer::Admit() {
  for (auto& [id, client] : clients_) {
    if (!client.waits) continue;
    AdmitOne(client);
    if (client.attached && !client.stage.empty()) writers_[client.stage] = id;
  }
}

Status SideServer::OnRows(Client& client, net::Message& message) {
  const auto feed = message.body->find("feed");
  if (feed == message.body->end() || !feed->is_string()) return InvalidArgument("rows of no feed");
  if (client.stage.empty() || *feed != client.stage || client.sealed) {
    if (message.op == "acquire") Refuse(client, Cancelled("this attempt does not count any more"));
    return Status::Ok();
  }
  return service_.OnFeederPacket(*message.body, std::move(message.fds));
}

bool SideServer::Route(const json& packet) {
  const auto feed = packet.find("feed");
  if (feed == packet.end() || !feed->is_string()) return false;
  const auto writer = writers_.find(feed->get_ref<const std::string&>());
  if (writer == writers_.end()) return targets_.contains(feed->get_ref<const std::string&>());
  if (const auto client = clients_.find(writer->second); client != clients_.end())
    Send(client->second, packet);
  return true;
}

Status SideServer::OnClaim(Client& client, const json& body) {
  if (client.infers || !client.sealed) return InvalidArgument("claim before seal");
  const auto ranks = body.find("ranks");
  if (ranks == body.end() || !ranks->is_array()) return InvalidArgument("claim without ranks");
  client.claimed = true;
  callbacks_.to_coordinator({{"op", "claim"},
                             {"job", client.job},
                             {"partition", client.partition},
                             {"attempt", client.attempt},
                             {"ranks", *ranks}});
  return Status::Ok();
}

/// Forgets a connection. What it has sealed stays until the coordinator or the driver decides.
void SideServer::Drop(int id) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return;
  Client client = std::move(found->second);
  clients_.erase(found);
  if (client.watch != 0) loop_.Unwatch(client.watch);
  if (client.patience != 0) loop_.CancelTimer(client.patience);
  if (!client.stage.empty() && !client.sealed) {
    writers_.erase(client.stage);
    std::erase_if(requests_, [&](const Request& each) { return each.stage == client.stage; });
    service_.RemoveFeed(client.stage);
  }
}

void SideServer::Close(const std::string& why) {
  if (std::exchange(closed_, true)) return;
  for (auto& [id, client] : clients_) {
    if (client.attached || client.waits) Refuse(client, Unavailable("the run is ending: " + why));
  }
  while (!clients_.empty()) Drop(clients_.begin()->first);
  while (!sessions_.empty()) DropSession(sessions_.begin()->first);
}

}  // namespace arcflow::control
