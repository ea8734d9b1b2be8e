// SPDX-License-Identifier: Apache-2.0
// WatchedGroup: one thread that polls sockets and pidfds.
#include "arcflow/collective/watched_group.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

namespace arcflow::collective {

Result<std::shared_ptr<Group>> WatchedGroup::Make(std::shared_ptr<BoardMemory> memory, int rank,
                                                  void (*probe)(Moment), std::vector<Peer> peers) {
  Fd stop(::eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return Status::FromErrno(errno, "eventfd");
  auto watched = std::make_shared<WatchedGroup>(std::move(memory), rank, probe, std::move(peers),
                                                std::move(stop));
  Group* const group = &watched->group_;
  return std::shared_ptr<Group>(std::move(watched), group);
}

WatchedGroup::WatchedGroup(std::shared_ptr<BoardMemory> memory, int rank, void (*probe)(Moment),
                           std::vector<Peer> peers, Fd stop)
    : group_(std::move(memory), rank, probe), peers_(std::move(peers)), stop_(std::move(stop)) {
  for (const Peer& peer : peers_) {
    const bool other = peer.pid > 0 && peer.pid != ::getpid();
    pidfds_.emplace_back(other ? static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)) : -1);
  }
  thread_ = std::thread([this] { Watch(); });
}

WatchedGroup::~WatchedGroup() {
  // Before the sockets close, so that peers read that we left and do not take us for dead.
  group_.Fail(Unavailable("rank " + std::to_string(group_.rank()) + " has left the group"));
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &one, sizeof one);
  thread_.join();
}

void WatchedGroup::Watch() {
  std::vector<pollfd> waiting{{stop_.get(), POLLIN, 0}};
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    waiting.push_back({peers_[i].socket.get(), POLLIN, 0});  // nothing is ever sent: it is EOF
    waiting.push_back({pidfds_[i].get(), POLLIN, 0});        // a negative descriptor is ignored
  }
  for (;;) {
    if (::poll(waiting.data(), waiting.size(), -1) < 0 && errno != EINTR) break;
    if (waiting[0].revents != 0) return;
    for (std::size_t i = 1; i < waiting.size(); ++i) {
      if (waiting[i].revents == 0) continue;
      const Peer& peer = peers_[(i - 1) / 2];
      std::string who = "rank " + std::to_string(peer.rank);
      if (peer.pid > 0) who += " (process " + std::to_string(peer.pid) + ")";
      group_.Fail(Unavailable(who + " has died or left the group"));
      return;  // a group fails once
    }
  }
  group_.Fail(Internal("cannot watch the processes of the group"));
}

}  // namespace arcflow::collective
