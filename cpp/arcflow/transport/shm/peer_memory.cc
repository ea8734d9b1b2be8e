// SPDX-License-Identifier: Apache-2.0
// PeerMemory: process_vm_readv, checked by trying.
#include "arcflow/transport/shm/peer_memory.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace arcflow::transport::shm {

Result<PeerMemory> PeerMemory::Find(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return Status::FromErrno(errno, "SO_PEERCRED");
  }
  if (credentials.pid <= 0) {
    return Unavailable("the peer's pid is not visible here: another pid namespace");
  }
  PeerMemory peer;
  peer.pid_ = credentials.pid;
  peer.pidfd_ = Fd(static_cast<int>(::syscall(SYS_pidfd_open, credentials.pid, 0)));
  if (!peer.pidfd_.valid()) return Unavailable(Status::FromErrno(errno, "pidfd_open").ToString());
  return peer;
}

bool PeerMemory::alive() const {
  pollfd p{pidfd_.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) == 0;
}

Status PeerMemory::Prove(std::uint64_t address, const Probe& expected) const {
  Probe seen{};
  ARC_TRY(Read(address, reinterpret_cast<std::byte*>(seen.data()), seen.size()));
  if (seen != expected || !alive()) {
    return Unavailable("process " + std::to_string(pid_) + " is not the peer");
  }
  return Status::Ok();
}

Status PeerMemory::Read(std::uint64_t address, std::byte* to, std::size_t n) const {
  while (n > 0) {
    iovec local{to, n};
    iovec remote{reinterpret_cast<void*>(address), n};
    const ssize_t got = ::process_vm_readv(pid_, &local, 1, &remote, 1, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      if (got < 0 && errno == ESRCH) return Unavailable("the peer's process is gone");
      return NotFound("process " + std::to_string(pid_) + ": " +
                      Status::FromErrno(got < 0 ? errno : EFAULT, "process_vm_readv").ToString());
    }
    to += got;
    address += static_cast<std::uint64_t>(got);
    n -= static_cast<std::size_t>(got);
  }
  return Status::Ok();
}

}  // namespace arcflow::transport::shm
