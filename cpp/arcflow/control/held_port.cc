// SPDX-License-Identifier: Apache-2.0
// Binds a port without listening.
#include "arcflow/control/held_port.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace arcflow::control {
namespace {

Result<HeldPort> BindTo(const addrinfo& address) {
  HeldPort held;
  held.socket = Fd(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!held.socket.valid()) return Status::FromErrno(errno, "socket");
  const int one = 1;
  if (::setsockopt(held.socket.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) != 0) {
    return Status::FromErrno(errno, "SO_REUSEPORT");
  }
  if (::bind(held.socket.get(), address.ai_addr, address.ai_addrlen) != 0)
    return Status::FromErrno(errno, "bind");
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(held.socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    return Status::FromErrno(errno, "getsockname");
  }
  held.port =
      ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                                        : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
  return held;
}

}  // namespace

Result<HeldPort> HeldPort::Reserve(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), "0", &hints, &list); error != 0) {
    return Unavailable("cannot resolve the address of this node, " + host + ": " +
                       ::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
  Status last = Unavailable("no address");
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    auto held = BindTo(*entry);
    if (held.ok()) return held;
    last = held.status();
  }
  return Unavailable("cannot bind a port on " + host +
                     ", the address told to other nodes: " + last.ToString());
}

}  // namespace arcflow::control
