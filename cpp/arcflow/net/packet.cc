// SPDX-License-Identifier: Apache-2.0
// Packets over Unix SEQPACKET sockets: sendmsg and recvmsg that never block past a deadline nor
// leak a descriptor.
#include "arcflow/net/packet.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

namespace arcflow::net {
namespace {

/// Waits until `socket` has one of `events` (or an error or hang-up) or `cancel_fd` is readable.
Status WaitFor(int socket, short events, int cancel_fd, const Deadline& deadline) {
  for (;;) {
    std::array<pollfd, 2> fds{pollfd{socket, events, 0}, pollfd{cancel_fd, POLLIN, 0}};
    const int n = ::poll(fds.data(), fds.size(), deadline.poll_ms());  // a negative fd is ignored
    if (n < 0) {
      if (errno == EINTR) continue;
      return Status::FromErrno(errno, "poll");
    }
    if (fds[1].revents != 0) return Cancelled("wait for a packet was cancelled");
    if ((fds[0].revents & POLLNVAL) != 0) return InvalidArgument("not an open descriptor");
    if (fds[0].revents != 0) return Status::Ok();
    if (deadline.expired()) return DeadlineExceeded("no packet within the deadline");
  }
}

/// Takes ownership of every descriptor in the control data, so that none leaks whatever the packet
/// looks like.
std::vector<Fd> TakeFds(msghdr* message) {
  std::vector<Fd> fds;
  for (cmsghdr* c = CMSG_FIRSTHDR(message); c != nullptr; c = CMSG_NXTHDR(message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      fds.emplace_back(fd);
    }
  }
  return fds;
}

struct alignas(cmsghdr) FdControl {
  std::array<char, CMSG_SPACE(sizeof(int) * kMaxPacketFds)> bytes{};
};

/// One non-blocking recvmsg. Sets `*again` when nothing was there.
Result<std::optional<Packet>> TryReceive(int socket, bool* again) {
  *again = false;
  Packet packet;
  const auto buffer = std::make_unique_for_overwrite<char[]>(kMaxPacketBytes);
  FdControl control;
  iovec iov{buffer.get(), kMaxPacketBytes};
  msghdr message{};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = control.bytes.size();
  ssize_t n = 0;
  bool reset = false;
  do {
    n = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    // A peer that closed with packets of ours unread: the kernel says so once, before the packets
    // that the peer sent last, and then reports the end.
    reset = n < 0 && errno == ECONNRESET && !reset;
  } while (n < 0 && (errno == EINTR || reset));
  if (n < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      *again = true;
      return std::optional<Packet>();
    }
    return Status::FromErrno(errno, "receive packet");
  }
  packet.fds = TakeFds(&message);
  if ((message.msg_flags & MSG_TRUNC) != 0) return InvalidArgument("packet is over the size bound");
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    return InvalidArgument(
        "packet has more descriptors than the bound, or this process has none left");
  }
  // A packet is never empty, so zero bytes mean that the peer has closed its end.
  if (n == 0) return std::optional<Packet>();
  packet.body.assign(buffer.get(), static_cast<std::size_t>(n));
  return std::optional<Packet>(std::move(packet));
}

}  // namespace

Result<std::pair<Fd, Fd>> PacketPair() {
  int ends[2] = {-1, -1};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return Status::FromErrno(errno, "socketpair");
  }
  return std::pair<Fd, Fd>(Fd(ends[0]), Fd(ends[1]));
}

Status SendPacket(int socket, const nlohmann::json& message, const std::vector<int>& fds,
                  Deadline deadline) {
  // Text that is not UTF-8 (a user's log line, say) must not stop a packet.
  const std::string body = message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (body.size() > kMaxPacketBytes) {
    return InvalidArgument("packet of " + std::to_string(body.size()) +
                           " bytes is over the bound of " + std::to_string(kMaxPacketBytes));
  }
  if (fds.size() > kMaxPacketFds) return InvalidArgument("too many descriptors for one packet");
  FdControl control;
  iovec iov{const_cast<char*>(body.data()), body.size()};
  msghdr header{};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.bytes.data();
    header.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
  }
  for (;;) {
    if (::sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) return Status::Ok();
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return Status::FromErrno(errno, "send packet");
    ARC_TRY(WaitFor(socket, POLLOUT, -1, deadline));
  }
}

Result<std::optional<Packet>> ReceivePacket(int socket, int cancel_fd, Deadline deadline) {
  for (;;) {
    ARC_TRY(WaitFor(socket, POLLIN, cancel_fd, deadline));
    bool again = false;
    auto packet = TryReceive(socket, &again);
    if (!again) return packet;
  }
}

Result<std::optional<Message>> ReceiveMessage(int socket, int cancel_fd, Deadline deadline) {
  ARC_ASSIGN(std::optional<Packet> packet, ReceivePacket(socket, cancel_fd, deadline));
  if (!packet) return std::optional<Message>();
  Message message;
  message.fds = std::move(packet->fds);
  message.body = std::make_unique<nlohmann::json>(
      nlohmann::json::parse(packet->body, nullptr, /*allow_exceptions=*/false));
  if (!message.body->is_object()) return InvalidArgument("packet is not a JSON object");
  const auto op = message.body->find("op");
  if (op == message.body->end() || !op->is_string()) {
    return InvalidArgument("packet has no string \"op\"");
  }
  message.op = op->get<std::string>();
  return std::optional<Message>(std::move(message));
}

}  // namespace arcflow::net
