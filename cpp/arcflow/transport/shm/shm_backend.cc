// SPDX-License-Identifier: Apache-2.0
// The shm backend: two processes meet over an abstract socket and find out what the kernel allows.
#include "arcflow/transport/shm/shm_backend.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "arcflow/transport/greeting.h"
#include "arcflow/transport/session.h"
#include "arcflow/transport/shm/shm_link.h"

namespace arcflow::transport::shm {
namespace {

constexpr std::size_t kNameBytes = 40;  // "arcflow-" and 32 digits
constexpr std::size_t kExtraBytes = sizeof(std::uint64_t) + kProbeBytes;

sockaddr_un AbstractAddress(std::string_view name, socklen_t* length) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());  // a leading zero: no file
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return address;
}

/// Our slots, writable for us alone.
Result<std::pair<Fd, Mapping>> MakeSlots() {
  ARC_ASSIGN(Fd fd, CreateMemfd("arcflow-slots", kSlotAreaBytes));
  ARC_ASSIGN(Mapping mapping, Mapping::Map(fd, kSlotAreaBytes, true, false));
  ARC_TRY(SealForReaders(fd));
  return std::pair(std::move(fd), std::move(mapping));
}

/// The peer's slots. It must not be able to truncate them under us (SIGBUS).
Result<Mapping> MapSlots(const std::vector<Fd>& fds) {
  if (fds.size() != 1) return InvalidArgument("the peer sent no slots");
  const int seals = ::fcntl(fds.front().get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return InvalidArgument("the peer's slots are not sealed");
  }
  return Mapping::Map(fds.front(), kSlotAreaBytes, false, false);
}

class ShmBackend final : public Backend {
 public:
  ShmBackend(std::shared_ptr<Core> core, std::string name)
      : core_(std::move(core)), name_(std::move(name)), probe_(std::make_shared<Probe>()) {}

  Status Start(Fd listener) {
    ARC_TRY(RandomBytes(*probe_));
    ARC_ASSIGN(acceptor_, Acceptor::Start(std::move(listener), core_, *core_->reactors.front(),
                                          [core = core_, probe = probe_](Guest guest) {
                                            Accept(core, probe, std::move(guest));
                                          }));
    return Status::Ok();
  }

  std::string_view name() const override { return "shm"; }
  std::string where() const override { return name_; }
  Result<std::shared_ptr<Session>> Connect(std::string_view where, const NodeId& node,
                                           Deadline deadline) override;
  void Tick() override { acceptor_->Tick(); }
  void Stop() override { acceptor_->Close(); }

 private:
  static void Accept(const std::shared_ptr<Core>& core, const std::shared_ptr<Probe>& probe,
                     Guest guest);
  static std::string Extra(const Probe& probe);
  /// What the other side's hello and socket tell.
  static Result<ShmPeer> Meet(const Core& core, int socket, const Hello& theirs,
                              const std::vector<Fd>& fds);
  static std::shared_ptr<ShmLink> MakeSession(const std::shared_ptr<Core>& core, const NodeId& node,
                                              Fd socket, ShmPeer peer,
                                              std::shared_ptr<Session>* session);

  const std::shared_ptr<Core> core_;
  const std::string name_;
  const std::shared_ptr<Probe> probe_;  // read by peers, for as long as anybody may accept
  std::shared_ptr<Acceptor> acceptor_;
};

std::string ShmBackend::Extra(const Probe& probe) {
  const auto address = reinterpret_cast<std::uint64_t>(probe.data());
  std::string out(reinterpret_cast<const char*>(&address), sizeof(address));
  out.append(reinterpret_cast<const char*>(probe.data()), probe.size());
  return out;
}

Result<ShmPeer> ShmBackend::Meet(const Core& core, int socket, const Hello& theirs,
                                 const std::vector<Fd>& fds) {
  if (theirs.extra.size() != kExtraBytes) return InvalidArgument("hello of another backend");
  ShmPeer peer;
  ARC_ASSIGN(peer.theirs, MapSlots(fds));
  auto memory = PeerMemory::Find(socket);
  if (!memory.ok()) return peer;  // another pid namespace: slots
  std::uint64_t address = 0;
  Probe probe{};
  std::memcpy(&address, theirs.extra.data(), sizeof(address));
  std::memcpy(probe.data(), theirs.extra.data() + sizeof(address), probe.size());
  peer.we_read = core.options.shm_direct && memory->Prove(address, probe).ok();
  peer.memory = std::move(*memory);
  return peer;
}

std::shared_ptr<ShmLink> ShmBackend::MakeSession(const std::shared_ptr<Core>& core,
                                                 const NodeId& node, Fd socket, ShmPeer peer,
                                                 std::shared_ptr<Session>* session) {
  *session = std::make_shared<Session>(core, BackendKind::kShm, node);
  Reactor& reactor = core->NextReactor();
  auto link = std::make_shared<ShmLink>(*session, Lane::Create(std::move(socket), reactor, false),
                                        reactor, std::move(peer));
  (*session)->Start(link);
  core->adopt(*session);
  return link;
}

void ShmBackend::Accept(const std::shared_ptr<Core>& core, const std::shared_ptr<Probe>& probe,
                        Guest guest) {
  if (guest.hello.node == core->id || guest.hello.lanes != 1) return;
  auto peer = Meet(*core, guest.socket.get(), guest.hello, guest.fds);
  auto slots = MakeSlots();
  if (!peer.ok() || !slots.ok()) return;  // the other side sees the connection close
  peer->ours = std::move(slots->second);
  Hello mine;
  mine.node = core->id;
  mine.session = guest.hello.session;
  mine.extra = Extra(*probe);
  const auto none = Deadline::After(std::chrono::nanoseconds(0));  // a fresh socket has room
  if (!SendBytes(guest.socket.get(), mine.Serialize(), slots->first.get(), none).ok()) return;
  std::shared_ptr<Session> session;
  const auto link =
      MakeSession(core, guest.hello.node, std::move(guest.socket), std::move(*peer), &session);
  if (const Status status = link->Start(); !status.ok()) session->OnLinkDown(status);
}

Result<std::shared_ptr<Session>> ShmBackend::Connect(std::string_view where, const NodeId& node,
                                                     Deadline deadline) {
  if (where.size() != kNameBytes) return InvalidArgument("no name of a shm socket");
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return Status::FromErrno(errno, "socket");
  socklen_t length = 0;
  const sockaddr_un address = AbstractAddress(where, &length);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    return Unavailable("the peer is not on this host, or in another network namespace (" +
                       Status::FromErrno(errno, "connect").ToString() + ")");
  }
  ARC_ASSIGN(auto slots, MakeSlots());
  Hello mine;
  mine.node = core_->id;
  mine.extra = Extra(*probe_);
  ARC_TRY(RandomBytes({reinterpret_cast<std::uint8_t*>(&mine.session), sizeof(mine.session)}));
  std::vector<Fd> fds;
  ARC_ASSIGN(const Hello theirs, GreetAsClient(socket.get(), core_->options.secret, mine,
                                               slots.first.get(), &fds, deadline));
  if (theirs.node != node) return Unavailable("another process has the peer's socket");
  ARC_ASSIGN(ShmPeer peer, Meet(*core_, socket.get(), theirs, fds));
  peer.ours = std::move(slots.second);
  std::shared_ptr<Session> session;
  const auto link = MakeSession(core_, node, std::move(socket), std::move(peer), &session);
  core_->counters.connections.fetch_add(1, std::memory_order_relaxed);
  ARC_TRY(link->Start());
  return session;
}

}  // namespace

Result<std::unique_ptr<Backend>> Make(std::shared_ptr<Core> core) {
  NodeId random;
  ARC_ASSIGN(random, NodeId::Random());
  const std::string name = "arcflow-" + random.ToString();
  Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener.valid()) return Status::FromErrno(errno, "socket");
  socklen_t length = 0;
  const sockaddr_un address = AbstractAddress(name, &length);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(listener.get(), 256) != 0) {
    return Unavailable(Status::FromErrno(errno, "abstract Unix socket").ToString());
  }
  auto backend = std::make_unique<ShmBackend>(core, name);
  ARC_TRY(backend->Start(std::move(listener)));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace arcflow::transport::shm
