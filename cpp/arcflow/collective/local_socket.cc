// SPDX-License-Identifier: Apache-2.0
// Abstract Unix sockets: made, reached and proved.
#include "arcflow/collective/local_socket.h"

#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <span>
#include <thread>

#include "arcflow/net/handshake.h"

namespace arcflow::collective {
namespace {

constexpr int kBacklog = 128;

socklen_t Address(const std::string& name, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  const std::size_t n = std::min(name.size(), sizeof address->sun_path - 1);
  std::memcpy(address->sun_path + 1, name.data(), n);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + n);
}

Result<std::string> ReceiveBytes(const Fd& socket, const Deadline& deadline) {
  std::array<char, 512> buffer;
  for (;;) {
    pollfd waiting{socket.get(), POLLIN, 0};
    const int n = ::poll(&waiting, 1, deadline.poll_ms());
    if (n < 0 && errno != EINTR) return Status::FromErrno(errno, "poll");
    if (n > 0) {
      const ssize_t got = ::recv(socket.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      if (got > 0) return std::string(buffer.data(), static_cast<std::size_t>(got));
      if (got == 0) return Unavailable("the peer closed its socket during the handshake");
      if (errno != EAGAIN && errno != EINTR) return Status::FromErrno(errno, "recv");
    }
    if (deadline.expired()) return DeadlineExceeded("the peer did not finish its handshake");
  }
}

Status Prove(const Fd& socket, net::Handshake handshake, const Deadline& deadline) {
  for (;;) {
    const std::string out = handshake.TakeOutput();
    if (!out.empty() && ::send(socket.get(), out.data(), out.size(), MSG_NOSIGNAL) < 0) {
      return Unavailable("the peer closed its socket during the handshake");
    }
    if (handshake.done()) return Status::Ok();
    auto in = ReceiveBytes(socket, deadline);
    if (!in.ok() && in.status().code() == Code::kUnavailable && handshake.proof_sent()) {
      return Unauthenticated("the other process knows another secret");
    }
    if (!in.ok()) return in.status();
    ARC_ASSIGN(const std::size_t used, handshake.Feed(std::as_bytes(std::span(*in))));
    if (used != in->size()) return Unauthenticated("the peer sent more than its handshake");
  }
}

}  // namespace

Result<std::string> RandomName(std::size_t n) {
  std::array<unsigned char, 32> bytes{};
  n = std::min(n, bytes.size());
  if (::getrandom(bytes.data(), n, 0) != static_cast<ssize_t>(n)) {
    return Internal("the system has no random bytes");
  }
  std::string text;
  for (std::size_t i = 0; i < n; ++i) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += {kDigits[bytes[i] >> 4], kDigits[bytes[i] & 15]};
  }
  return text;
}

Result<Fd> ListenAbstract(std::string* name) {
  ARC_ASSIGN(const std::string random, RandomName(12));
  const std::string full = "arcflow-" + random;
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address;
  const socklen_t length = Address(full, &address);
  if (!socket.valid() ||
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::listen(socket.get(), kBacklog) != 0) {
    return Unavailable(Status::FromErrno(errno, "listen on an abstract Unix socket").ToString());
  }
  *name = full;
  return socket;
}

Result<Fd> ConnectAbstract(const std::string& name, Deadline deadline) {
  sockaddr_un address;
  const socklen_t length = Address(name, &address);
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return Status::FromErrno(errno, "socket");
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) {  // EAGAIN: its queue of connections is full
      return Unavailable(Status::FromErrno(errno, "connect to a process of the group").ToString());
    }
    if (deadline.expired()) return DeadlineExceeded("a process of the group takes no connection");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return socket;
}

Result<pid_t> PeerOf(const Fd& socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return Status::FromErrno(errno, "SO_PEERCRED");
  }
  if (peer.uid != ::geteuid()) {
    return Unauthenticated("a process of user " + std::to_string(peer.uid) + " is at the socket");
  }
  return peer.pid;
}

Status ProveAsServer(const Fd& socket, const std::string& secret, Deadline deadline) {
  ARC_ASSIGN(net::Handshake handshake, net::Handshake::Server(secret));
  return Prove(socket, std::move(handshake), deadline);
}

Status ProveAsClient(const Fd& socket, const std::string& secret, Deadline deadline) {
  ARC_ASSIGN(net::Handshake handshake, net::Handshake::Client(secret));
  return Prove(socket, std::move(handshake), deadline);
}

}  // namespace arcflow::collective
