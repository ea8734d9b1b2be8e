// SPDX-License-Identifier: Apache-2.0
// SideLink: connecting, proving the secret, asking for memory.
#include "arcflow/control/side_link.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "arcflow/control/feeder_packets.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/side_server.h"
#include "arcflow/net/handshake.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

Status WaitReadable(int socket, Deadline deadline) {
  for (;;) {
    pollfd entry{socket, POLLIN, 0};
    const auto left = deadline.at() - Deadline::Clock::now();
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(left).count();
    const int n = ::poll(&entry, 1, static_cast<int>(std::clamp<long long>(ms, 0, 60'000)));
    if (n > 0) return Status::Ok();
    if (n < 0 && errno != EINTR) return Status::FromErrno(errno, "poll");
    if (Deadline::Clock::now() >= deadline.at())
      return DeadlineExceeded("the agent did not answer");
  }
}

Status Prove(int socket, const std::string& secret, Deadline deadline) {
  ARC_ASSIGN(net::Handshake handshake, net::Handshake::Client(secret));
  while (!handshake.done()) {
    ARC_TRY(WaitReadable(socket, deadline));
    std::array<std::byte, 256> bytes;
    const ssize_t n = ::recv(socket, bytes.data(), bytes.size(), 0);
    if (n <= 0) return Unauthenticated("the agent knows another secret, or has no room for a task");
    const std::size_t got = static_cast<std::size_t>(n);
    ARC_ASSIGN(const std::size_t used, handshake.Feed(std::span(bytes).first(got)));
    if (used != got) return Unauthenticated("more than a handshake");
    const std::string out = handshake.TakeOutput();
    if (!out.empty() && ::send(socket, out.data(), out.size(), MSG_NOSIGNAL) < 0)
      return Status::FromErrno(errno, "handshake");
  }
  return Status::Ok();
}

}  // namespace

std::string SideAddress(const std::string& run_id, std::int64_t jvm_pid, int rank) {
  return "arcflow/" + run_id + "/" + std::to_string(jvm_pid) + "/" + std::to_string(rank);
}

Status AbstractAddress(const std::string& name, sockaddr_un* address, socklen_t* length) {
  *address = sockaddr_un{};
  address->sun_family = AF_UNIX;
  if (name.empty() || name.size() + 1 > sizeof address->sun_path)
    return InvalidArgument("the name of a socket has 1 to 107 bytes, not " +
                           std::to_string(name.size()));
  std::memcpy(address->sun_path + 1, name.data(), name.size());
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return Status::Ok();
}

Result<std::unique_ptr<SideLink>> SideLink::Connect(const std::string& name,
                                                    const std::string& secret, Deadline deadline) {
  sockaddr_un address{};
  socklen_t length = 0;
  ARC_TRY(AbstractAddress(name, &address, &length));
  Fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return Status::FromErrno(errno, "socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
    if (errno == ECONNREFUSED || errno == ENOENT) return NotFound("no agent listens at @" + name);
    return Status::FromErrno(errno, "connecting to @" + name);
  }
  ARC_TRY(Prove(socket.get(), secret, deadline));
  return std::unique_ptr<SideLink>(new SideLink(std::move(socket)));
}

Result<feed::SegmentSource::Grant> SideLink::Acquire(const std::string& feed, std::size_t min_bytes,
                                                     Deadline deadline) {
  if (!asked_) {
    ARC_TRY(Send({{"op", "acquire"}, {"feed", feed}, {"bytes", min_bytes}}, {}));
    asked_ = true;
  }
  ARC_ASSIGN(std::optional<net::Message> message, ReceiveLastWords(socket_.get(), deadline));
  if (!message) return Unavailable("the agent is gone");
  asked_ = false;
  if (message->op == "segment") return GrantFromJson(*message->body);
  if (message->op == "refused") return RefusalFromJson(*message->body);
  return InvalidArgument("the agent answered " + message->op + " to acquire");
}

Status SideLink::Publish(const std::string& feed, const Grant& grant, std::size_t rows, bool closed,
                         int fd) {
  std::vector<int> fds;
  if (fd >= 0) fds.push_back(fd);
  return Send({{"op", "publish"},
               {"feed", feed},
               {"buffer", grant.buffer},
               {"rows", rows},
               {"closed", closed}},
              fds);
}

Status SideLink::Send(const json& packet, const std::vector<int>& fds) {
  return net::SendPacket(socket_.get(), packet, fds, Deadline::After(kPeerSends));
}

Result<std::optional<net::Message>> SideLink::Receive(Deadline deadline) {
  auto message = ReceiveLastWords(socket_.get(), deadline);
  if (!message.ok()) {
    if (message.status().code() == Code::kDeadlineExceeded) return std::optional<net::Message>();
    return message.status();
  }
  if (!*message) return Unavailable("the agent is gone");
  return std::move(message).value();
}

}  // namespace arcflow::control
