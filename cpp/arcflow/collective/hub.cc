// SPDX-License-Identifier: Apache-2.0
// Hub: the leader offers memory, the others come for it, all start together.
#include "arcflow/collective/hub.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/base/log.h"
#include "arcflow/collective/local_socket.h"
#include "arcflow/collective/watched_group.h"
#include "arcflow/net/handshake.h"
#include "arcflow/net/packet.h"

namespace arcflow::collective {
namespace {

using Json = nlohmann::json;

constexpr int kProtocol = 2;
constexpr int kMaxGuests = 256;       // connections that are not members yet
constexpr double kProofSeconds = 10;  // a stranger holds a thread no longer
constexpr double kGuestSeconds = 600;
constexpr std::chrono::milliseconds kHubLook{50};

Json ToJson(const Geometry& g) {
  return {{"ranks", g.ranks},
          {"slots", g.slots},
          {"block", g.block_bytes},
          {"small", g.small_bytes},
          {"results", g.result_bytes}};
}

Geometry GeometryFrom(const Json& body) {
  Geometry g;
  g.ranks = body.value("ranks", 0u);
  g.slots = body.value("slots", 0u);
  g.block_bytes = body.value("block", 0u);
  g.small_bytes = body.value("small", 0u);
  g.result_bytes = body.value("results", std::uint64_t{0});
  return g;
}

/// A field that is missing or of another type gives `other`: what peers send is never trusted.
template <typename T>
T Field(const Json& body, const char* name, T other) {
  const auto found = body.find(name);
  if (found == body.end()) return other;
  try {
    return found->get<T>();
  } catch (const Json::exception&) {
    return other;
  }
}

/// A group that the leader is making.
struct Offer {
  Geometry geometry;
  Fd memfd;
  std::map<int, Peer> ready;  // by rank
  bool closed = false;        // complete, or given up
};

/// A guest that gave up leaves a socket that has hung up.
bool HungUp(const Fd& socket) {
  pollfd look{socket.get(), POLLIN, 0};
  return ::poll(&look, 1, 0) > 0;  // guests say nothing once they are ready
}

std::string Missing(const Offer& offer, int ranks) {
  std::string text;
  for (int r = 1; r < ranks; ++r) {
    if (!offer.ready.contains(r)) text += (text.empty() ? "" : ", ") + std::to_string(r);
  }
  return text;
}

}  // namespace

struct Hub::State : std::enable_shared_from_this<Hub::State> {
  std::string secret;
  std::string name;
  Fd listener;
  Fd stop;
  std::thread thread;
  std::atomic<void (*)(Moment)> probe{nullptr};

  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, std::shared_ptr<Offer>> offers;
  int guests = 0;
  bool closing = false;

  void Accept();
  void Welcome(Fd socket);
  Status Serve(Fd socket);
  Result<std::shared_ptr<Offer>> AwaitOffer(const std::string& group, const Fd& socket);
  Status Admit(const std::shared_ptr<Offer>& offer, const Json& join, Peer peer);
  Result<std::shared_ptr<Group>> Lead(const Membership& m, const Deadline& deadline);
  Result<std::shared_ptr<Group>> Follow(const Membership& m, const Deadline& deadline);
};

Result<std::unique_ptr<Hub>> Hub::Listen(const std::string& secret) {
  if (secret.size() < net::Handshake::kMinSecretBytes) {
    return InvalidArgument("the run's secret is too short");
  }
  auto state = std::make_shared<State>();
  state->secret = secret;
  ARC_ASSIGN(state->listener, ListenAbstract(&state->name));
  state->stop = Fd(::eventfd(0, EFD_CLOEXEC));
  if (!state->stop.valid()) return Status::FromErrno(errno, "eventfd");
  state->thread = std::thread([raw = state.get()] { raw->Accept(); });
  return std::unique_ptr<Hub>(new Hub(std::move(state)));
}

Hub::~Hub() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->closing = true;
  }
  state_->changed.notify_all();
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(state_->stop.get(), &one, sizeof one);
  state_->thread.join();
  std::unique_lock lock(state_->mutex);  // threads of guests end within a look
  state_->changed.wait(lock, [&] { return state_->guests == 0; });
}

const std::string& Hub::address() const { return state_->name; }
void Hub::SetProbe(void (*probe)(Moment)) { state_->probe.store(probe); }

Result<std::shared_ptr<Group>> Hub::Join(const Membership& m, Deadline deadline) {
  Geometry geometry = Geometry::For(m.ranks);
  ARC_TRY(geometry.Check());
  if (m.rank < 0 || m.rank >= m.ranks || m.group.empty() || m.group.size() > 4096) {
    return InvalidArgument("rank " + std::to_string(m.rank) + " of " + std::to_string(m.ranks) +
                           " in group '" + m.group.substr(0, 80) + "' cannot be");
  }
  if (m.rank == 0) return state_->Lead(m, deadline);
  return state_->Follow(m, deadline);
}

// ---- the leader ----

Result<std::shared_ptr<Group>> Hub::State::Lead(const Membership& m, const Deadline& deadline) {
  auto offer = std::make_shared<Offer>();
  offer->geometry = Geometry::For(m.ranks);
  ARC_ASSIGN(offer->memfd, Board::Create(offer->geometry));
  ARC_ASSIGN(auto memory, Board::Map(offer->memfd, offer->geometry));
  std::unique_lock lock(mutex);
  if (!offers.emplace(m.group, offer).second) {
    return InvalidArgument("group '" + m.group + "' is being made already");
  }
  changed.notify_all();
  const auto complete = [&] {
    return closing || offer->ready.size() + 1 == static_cast<std::size_t>(m.ranks);
  };
  while (!complete() && !deadline.expired()) changed.wait_for(lock, kHubLook);
  offers.erase(m.group);
  offer->closed = true;
  const bool all = offer->ready.size() + 1 == static_cast<std::size_t>(m.ranks);
  const std::string missing = Missing(*offer, m.ranks);
  std::vector<Peer> peers;
  for (auto& [rank, peer] : offer->ready) peers.push_back(std::move(peer));
  lock.unlock();
  changed.notify_all();
  const std::string text = "ranks " + missing + " did not come to group '" + m.group + "'";
  for (const Peer& peer : peers) {
    const Json word = all ? Json{{"op", "open"}} : Json{{"op", "refused"}, {"message", text}};
    // One that is gone by now is found by the watch.
    (void)net::SendPacket(peer.socket.get(), word, {}, Deadline::AfterSeconds(1)).ok();
  }
  if (!all) return DeadlineExceeded(text);
  return WatchedGroup::Make(std::move(memory), 0, probe.load(), std::move(peers));
}

void Hub::State::Accept() {
  for (;;) {
    pollfd waiting[2] = {{stop.get(), POLLIN, 0}, {listener.get(), POLLIN, 0}};
    if (::poll(waiting, 2, -1) < 0 && errno != EINTR) return;
    if (waiting[0].revents != 0) return;
    Fd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.valid()) Welcome(std::move(socket));
  }
}

/// A thread for each guest, a bounded number of them; other users do not even get that.
void Hub::State::Welcome(Fd socket) {
  if (!PeerOf(socket).ok()) return;
  {
    const std::lock_guard lock(mutex);
    if (closing || guests >= kMaxGuests) return;
    ++guests;
  }
  std::thread([self = shared_from_this(), guest = std::move(socket)]() mutable {
    if (const Status served = self->Serve(std::move(guest)); !served.ok()) {
      Log(LogLevel::kInfo, "collective: turned away a process: " + served.ToString());
    }
    net::Handshake::ForgetThread();
    const std::lock_guard lock(self->mutex);
    --self->guests;
    self->changed.notify_all();
  }).detach();
}

Status Hub::State::Serve(Fd socket) {
  const Deadline soon = Deadline::AfterSeconds(kProofSeconds);
  ARC_TRY(ProveAsServer(socket, secret, soon));
  ARC_ASSIGN(const pid_t pid, PeerOf(socket));
  ARC_ASSIGN(auto message, net::ReceiveMessage(socket.get(), stop.get(), soon));
  if (!message) return Unavailable("it left before it asked");
  const Json& join = *message->body;
  Status status = InvalidArgument("a process of another version of arcflow");
  if (message->op == "join" && Field(join, "protocol", 0) == kProtocol) {
    auto offer = AwaitOffer(Field(join, "group", std::string()), socket);
    if (!offer.ok()) return offer.status();
    Peer peer{Field(join, "rank", -1), pid, std::move(socket)};
    return Admit(*offer, join, std::move(peer));
  }
  (void)net::SendPacket(socket.get(), {{"op", "refused"}, {"message", status.message()}}, {}, soon)
      .ok();
  return status;
}

Result<std::shared_ptr<Offer>> Hub::State::AwaitOffer(const std::string& group, const Fd& socket) {
  const Deadline patience = Deadline::AfterSeconds(kGuestSeconds);
  std::unique_lock lock(mutex);
  while (!closing && !patience.expired()) {
    if (const auto found = offers.find(group); found != offers.end()) return found->second;
    changed.wait_for(lock, kHubLook);
    if (HungUp(socket)) return Unavailable("it left before its group was made");
  }
  return Unavailable("its group was not made");
}

/// Gives a guest the memory and takes it in when it is ready.
Status Hub::State::Admit(const std::shared_ptr<Offer>& offer, const Json& join, Peer peer) {
  const Deadline soon = Deadline::AfterSeconds(kProofSeconds);
  const auto ranks = static_cast<int>(offer->geometry.ranks);
  Status status;
  if (peer.rank < 1 || peer.rank >= ranks || Field(join, "ranks", 0) != ranks) {
    status = InvalidArgument("rank " + std::to_string(peer.rank) + " of " +
                             std::to_string(Field(join, "ranks", 0)) + " asked for a group of " +
                             std::to_string(ranks));
    (void)net::SendPacket(peer.socket.get(), {{"op", "refused"}, {"message", status.message()}}, {},
                          soon)
        .ok();
    return status;
  }
  Json segment = {{"op", "segment"}, {"geometry", ToJson(offer->geometry)}};
  ARC_TRY(net::SendPacket(peer.socket.get(), segment, {offer->memfd.get()}, soon));
  ARC_ASSIGN(auto message, net::ReceiveMessage(peer.socket.get(), stop.get(), soon));
  if (!message || message->op != "ready") return Unavailable("it left before it was ready");
  const std::lock_guard lock(mutex);
  const auto before = offer->ready.find(peer.rank);
  const bool taken = before != offer->ready.end() && !HungUp(before->second.socket);
  if (offer->closed || taken) {
    status = Unavailable(taken ? "its rank is taken" : "it came too late");
    (void)net::SendPacket(peer.socket.get(), {{"op", "refused"}, {"message", status.message()}}, {},
                          Deadline::AfterSeconds(1))
        .ok();
    return status;
  }
  offer->ready[peer.rank] = std::move(peer);
  changed.notify_all();
  return Status::Ok();
}

// ---- the others ----

namespace {

/// The next word of the leader, which is `wanted` or an error.
Result<net::Message> Expect(const Fd& socket, const std::string& wanted, const Deadline& deadline) {
  ARC_ASSIGN(auto message, net::ReceiveMessage(socket.get(), -1, deadline));
  if (!message) return Unavailable("rank 0 has left while the group was made");
  if (message->op == wanted) return std::move(*message);
  return Unavailable("rank 0 refused: " + Field(*message->body, "message", message->op));
}

}  // namespace

Result<std::shared_ptr<Group>> Hub::State::Follow(const Membership& m, const Deadline& deadline) {
  ARC_ASSIGN(Fd socket, ConnectAbstract(m.leader, deadline));
  ARC_ASSIGN(const pid_t pid, PeerOf(socket));
  ARC_TRY(ProveAsClient(socket, secret, deadline));
  const Json join = {{"op", "join"},
                     {"protocol", kProtocol},
                     {"group", m.group},
                     {"rank", m.rank},
                     {"ranks", m.ranks}};
  ARC_TRY(net::SendPacket(socket.get(), join, {}, deadline));
  ARC_ASSIGN(auto segment, Expect(socket, "segment", deadline));
  const Geometry geometry = GeometryFrom(Field(*segment.body, "geometry", Json::object()));
  if (segment.fds.size() != 1 || geometry.ranks != static_cast<std::uint32_t>(m.ranks)) {
    return InvalidArgument("rank 0 sent no memory for a group of " + std::to_string(m.ranks));
  }
  ARC_ASSIGN(auto memory, Board::Map(segment.fds[0], geometry));
  ARC_TRY(net::SendPacket(socket.get(), {{"op", "ready"}}, {}, deadline));
  ARC_ASSIGN([[maybe_unused]] auto open, Expect(socket, "open", deadline));
  std::vector<Peer> peers;
  peers.push_back(Peer{0, pid, std::move(socket)});
  return WatchedGroup::Make(std::move(memory), m.rank, probe.load(), std::move(peers));
}

std::string HostIdentity() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  struct stat net {};
  const bool known = ::stat("/proc/self/ns/net", &net) == 0;
  return boot + "/" + std::to_string(known ? net.st_ino : 0) + "/" + std::to_string(::geteuid());
}

}  // namespace arcflow::collective
