// SPDX-License-Identifier: Apache-2.0
// Listening and dialling over TCP.
#include "arcflow/transport/inet.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <utility>

namespace arcflow::transport {
namespace {

struct Resolved {
  sockaddr_storage address{};
  socklen_t length = 0;
};

Result<Resolved> Resolve(const std::string& host, const std::string& port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (code != 0) {
    return InvalidArgument("host \"" + host + "\" does not resolve: " + ::gai_strerror(code));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  Resolved out;
  out.length = found->ai_addrlen;
  std::copy_n(reinterpret_cast<const char*>(found->ai_addr), found->ai_addrlen,
              reinterpret_cast<char*>(&out.address));
  return out;
}

std::string ToString(const sockaddr_storage& address, socklen_t length) {
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (::getnameinfo(reinterpret_cast<const sockaddr*>(&address), length, host.data(), host.size(),
                    port.data(), port.size(), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "";
  }
  const std::string name(host.data());
  return (name.find(':') == std::string::npos ? name : "[" + name + "]") + ":" + port.data();
}

Status WaitConnected(int socket, Deadline deadline) {
  pollfd p{socket, POLLOUT, 0};
  for (;;) {
    const int n = ::poll(&p, 1, deadline.poll_ms());
    if (n > 0) break;
    if (n < 0 && errno != EINTR) return Status::FromErrno(errno, "poll");
    if (deadline.expired()) return DeadlineExceeded("no answer");
  }
  int error = 0;
  socklen_t length = sizeof(error);
  ::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) return Unavailable(Status::FromErrno(error, "connect").ToString());
  return Status::Ok();
}

Result<Fd> ListenOn(const std::string& host, int port) {
  ARC_ASSIGN(const Resolved at, Resolve(host, std::to_string(port), AI_PASSIVE | AI_NUMERICSERV));
  Fd socket(::socket(at.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return Status::FromErrno(errno, "socket");
  const int one = port > 0 ? 1 : 0;  // connections of a predecessor may linger on a port given
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&at.address), at.length) != 0 ||
      ::listen(socket.get(), 256) != 0) {
    return Unavailable("cannot listen on " + host + ": " +
                       Status::FromErrno(errno, "bind").ToString());
  }
  return socket;
}

}  // namespace

Result<Fd> ListenTcp(const std::string& host, int first, int last, std::string* where) {
  Fd socket;
  for (int port = first; !socket.valid(); ++port) {
    auto bound = ListenOn(host, port);
    if (!bound.ok() && (bound.status().code() != Code::kUnavailable || port >= last)) {
      if (last <= first) return bound.status();
      return bound.status().WithContext("no port from " + std::to_string(first) + " to " +
                                        std::to_string(last));
    }
    if (bound.ok()) socket = *std::move(bound);
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    return Status::FromErrno(errno, "getsockname");
  }
  *where = ToString(bound, length);
  return socket;
}

Result<Fd> DialTcp(std::string_view where, Deadline deadline) {
  const std::size_t colon = where.rfind(':');
  if (colon == std::string_view::npos || where.size() > 128) {
    return InvalidArgument("a place for tcp is \"address:port\"");
  }
  std::string host(where.substr(0, colon));
  const std::string port(where.substr(colon + 1));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  ARC_ASSIGN(const Resolved to, Resolve(host, port, AI_NUMERICHOST | AI_NUMERICSERV));
  Fd socket(::socket(to.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return Status::FromErrno(errno, "socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&to.address), to.length) != 0) {
    Status status = errno == EINPROGRESS
                        ? WaitConnected(socket.get(), deadline)
                        : Unavailable(Status::FromErrno(errno, "connect").ToString());
    if (!status.ok()) return status.WithContext("connect to " + std::string(where));
  }
  ARC_TRY(SetNoDelay(socket.get()));
  return socket;
}

Status SetNoDelay(int socket) {
  const int one = 1;
  if (::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0) {
    return Status::FromErrno(errno, "TCP_NODELAY");
  }
  return Status::Ok();
}

std::string PeerOf(int socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof(address);
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) return "";
  return ToString(address, length);
}

}  // namespace arcflow::transport
