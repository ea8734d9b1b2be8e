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

std::uint16_t& PortOf(sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                       : reinterpret_cast<sockaddr_in&>(address).sin_port;
}

Result<HeldPort> BindTo(const addrinfo& address, std::uint16_t port) {
  HeldPort held;
  held.socket = Fd(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!held.socket.valid()) return Status::FromErrno(errno, "socket");
  sockaddr_storage bound{};
  std::memcpy(&bound, address.ai_addr, address.ai_addrlen);
  PortOf(bound) = htons(port);
  if (::bind(held.socket.get(), reinterpret_cast<const sockaddr*>(&bound), address.ai_addrlen) != 0)
    return Status::FromErrno(errno, "bind");
  // Only now: before, another agent of this host that holds the port would not have been in the
  // way.
  const int one = 1;
  if (::setsockopt(held.socket.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) != 0) {
    return Status::FromErrno(errno, "SO_REUSEPORT");
  }
  socklen_t size = sizeof bound;
  if (::getsockname(held.socket.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) {
    return Status::FromErrno(errno, "getsockname");
  }
  held.port = ntohs(PortOf(bound));
  return held;
}

/// The first free port of the range; ResourceExhausted when all are taken.
Result<HeldPort> BindInRange(const addrinfo& address, std::uint16_t first, std::uint16_t last) {
  for (int port = first; port <= last; ++port) {
    auto held = BindTo(address, static_cast<std::uint16_t>(port));
    if (held.ok() || held.status().code() != Code::kAlreadyExists) return held;
  }
  return ResourceExhausted("all ports from " + std::to_string(first) + " to " +
                           std::to_string(last) + " are taken: choose a wider range");
}

}  // namespace

Result<HeldPort> HeldPort::Reserve(const std::string& host, std::uint16_t first,
                                   std::uint16_t last) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* list = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), "0", &hints, &list); error != 0) {
    return Unavailable("cannot resolve the address of this node, " + host + ": " +
                       ::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
  Status refused = Unavailable("no address");
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    auto held = first == 0 ? BindTo(*entry, 0) : BindInRange(*entry, first, last);
    if (held.ok()) return held;
    if (held.status().code() == Code::kResourceExhausted)
      return held.status().WithContext("the node's port on " + host);
    refused = held.status();
  }
  return Unavailable("cannot bind a port on " + host +
                     ", the address told to other nodes: " + refused.ToString());
}

}  // namespace arcflow::control
