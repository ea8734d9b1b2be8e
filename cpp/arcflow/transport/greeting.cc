// SPDX-License-Identifier: Apache-2.0
// Greeting: blocking for the side that connects, step by step for the side that accepts.
#include "arcflow/transport/greeting.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace arcflow::transport {
namespace {

constexpr std::size_t kMaxFds = 2;

/// One recvmsg; -1 with errno as recv.
ssize_t ReceiveSome(int socket, char* to, std::size_t n, std::vector<Fd>* fds, int flags) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxFds * sizeof(int))> control{};
  iovec part{to, n};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  if (got < 0) return got;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      Fd owned(fd);
      if (fds != nullptr && fds->size() < kMaxFds) fds->push_back(std::move(owned));
    }
  }
  return got;
}

Status WaitFor(int socket, short events, Deadline deadline) {
  pollfd p{socket, events, 0};
  const int n = ::poll(&p, 1, deadline.poll_ms());
  if (n < 0 && errno != EINTR) return Status::FromErrno(errno, "poll");
  if (n == 0 && deadline.expired()) return DeadlineExceeded("the peer does not answer");
  return Status::Ok();
}

}  // namespace

Status SendBytes(int socket, std::string_view bytes, int pass_fd, Deadline deadline) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  while (!bytes.empty()) {
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (pass_fd >= 0) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(c), &pass_fd, sizeof(int));
    }
    const ssize_t n = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      bytes.remove_prefix(static_cast<std::size_t>(n));
      pass_fd = -1;
    } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      ARC_TRY(WaitFor(socket, POLLOUT, deadline));
    } else if (n < 0 && errno != EINTR) {
      return Unavailable("the peer is gone: " + Status::FromErrno(errno, "send").ToString());
    }
  }
  return Status::Ok();
}

Result<std::string> ReceiveBytes(int socket, std::size_t n, std::vector<Fd>* fds,
                                 Deadline deadline) {
  std::string out(n, '\0');
  std::size_t done = 0;
  while (done < n) {
    const ssize_t got = ReceiveSome(socket, out.data() + done, n - done, fds, MSG_DONTWAIT);
    if (got > 0) {
      done += static_cast<std::size_t>(got);
    } else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      ARC_TRY(WaitFor(socket, POLLIN, deadline));
    } else if (got == 0) {
      return Unavailable("the peer closed the connection");
    } else if (errno != EINTR) {
      return Unavailable("the peer is gone: " + Status::FromErrno(errno, "recv").ToString());
    }
  }
  return out;
}

Result<Hello> GreetAsClient(int socket, const std::string& secret, const Hello& mine, int pass_fd,
                            std::vector<Fd>* fds, Deadline deadline) {
  ARC_ASSIGN(auto handshake, net::Handshake::Client(secret));
  while (!handshake.done()) {
    const bool proof_sent = handshake.proof_sent();
    auto bytes = ReceiveBytes(socket, handshake.wanted(), nullptr, deadline);
    if (!bytes.ok()) {
      if (proof_sent && bytes.status().code() == Code::kUnavailable) {
        return Unauthenticated(
            "the peer refused our proof: it belongs to a run with another "
            "secret");
      }
      return bytes.status();
    }
    ARC_TRY(handshake.Feed({reinterpret_cast<const std::byte*>(bytes->data()), bytes->size()})
                .status());
    ARC_TRY(SendBytes(socket, handshake.TakeOutput(), -1, deadline));
  }
  ARC_TRY(SendBytes(socket, mine.Serialize(), pass_fd, deadline));
  ARC_ASSIGN(const std::string length, ReceiveBytes(socket, 4, fds, deadline));
  ARC_ASSIGN(const std::size_t n, Hello::ParseLength(std::span<const std::byte, 4>(
                                      reinterpret_cast<const std::byte*>(length.data()), 4)));
  ARC_ASSIGN(const std::string body, ReceiveBytes(socket, n, fds, deadline));
  return Hello::Parse(body);
}

struct Acceptor::Pending {
  Pending(Fd s, net::Handshake h) : socket(std::move(s)), handshake(std::move(h)) {}
  Fd socket;
  net::Handshake handshake;
  std::string hello;  // length and body, as far as they have come
  std::vector<Fd> fds;
  Reactor::Id watch = 0;
  std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
};

Acceptor::Acceptor(Fd listener, std::shared_ptr<Core> core, Reactor& reactor, Accepted accepted)
    : listener_(std::move(listener)),
      core_(std::move(core)),
      reactor_(reactor),
      accepted_(std::move(accepted)) {}

Result<std::shared_ptr<Acceptor>> Acceptor::Start(Fd listener, std::shared_ptr<Core> core,
                                                  Reactor& reactor, Accepted accepted) {
  std::shared_ptr<Acceptor> self(
      new Acceptor(std::move(listener), std::move(core), reactor, std::move(accepted)));
  const int flags = ::fcntl(self->listener_.get(), F_GETFL);
  ::fcntl(self->listener_.get(), F_SETFL, flags | O_NONBLOCK);
  reactor.Post([self] {
    auto watch = self->reactor_.Watch(self->listener_.get(), EPOLLIN,
                                      [self](std::uint32_t) { self->OnListener(); });
    if (watch.ok()) self->watch_ = *watch;
  });
  return self;
}

void Acceptor::Close() {
  reactor_.Post([self = shared_from_this()] {
    self->closed_ = true;
    if (self->watch_ != 0) self->reactor_.Unwatch(self->watch_, self->listener_.get());
    self->listener_.reset();
    while (!self->pending_.empty()) self->Drop(self->pending_.begin()->first);
    self->accepted_ = nullptr;
  });
}

void Acceptor::Tick() {
  reactor_.Post([self = shared_from_this()] {
    const auto before = std::chrono::steady_clock::now() - self->core_->options.handshake_timeout;
    std::vector<std::uint64_t> late;
    for (const auto& [id, pending] : self->pending_) {
      if (pending->since < before) late.push_back(id);
    }
    for (const std::uint64_t id : late) {
      self->core_->counters.rejected.fetch_add(1, std::memory_order_relaxed);
      self->Drop(id);
    }
  });
}

void Acceptor::OnListener() {
  if (closed_) return;
  Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) return;
  auto handshake = net::Handshake::Server(core_->options.secret);
  if (pending_.size() >= kMaxPending || !handshake.ok()) {
    core_->counters.rejected.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  const std::uint64_t id = next_++;
  const int fd = socket.get();
  auto pending = std::make_unique<Pending>(std::move(socket), std::move(*handshake));
  const std::string hello = pending->handshake.TakeOutput();
  if (!SendBytes(fd, hello, -1, Deadline::After(std::chrono::nanoseconds(0))).ok()) return;
  auto watch = reactor_.Watch(
      fd, EPOLLIN, [self = shared_from_this(), id](std::uint32_t) { self->OnPending(id); });
  if (!watch.ok()) return;
  pending->watch = *watch;
  pending_.emplace(id, std::move(pending));
}

void Acceptor::Drop(std::uint64_t id) {
  const auto it = pending_.find(id);
  if (it == pending_.end()) return;
  reactor_.Unwatch(it->second->watch, it->second->socket.get());
  pending_.erase(it);
}

void Acceptor::OnPending(std::uint64_t id) {
  const auto it = pending_.find(id);
  if (it == pending_.end() || closed_) return;
  Pending& pending = *it->second;
  const Result<bool> whole = Advance(&pending);
  if (whole.ok() && !*whole) return;
  Result<Hello> hello = whole.ok() ? Hello::Parse(std::string_view(pending.hello).substr(4))
                                   : Result<Hello>(whole.status());
  Guest guest;
  guest.fds = std::move(pending.fds);
  reactor_.Unwatch(pending.watch, pending.socket.get());
  guest.socket = std::move(pending.socket);
  pending_.erase(it);
  if (!hello.ok()) {
    core_->counters.rejected.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  guest.hello = std::move(*hello);
  core_->counters.connections.fetch_add(1, std::memory_order_relaxed);
  accepted_(std::move(guest));
}

// Never asks the socket for a byte past the greeting: what follows belongs to the backend.
Result<bool> Acceptor::Advance(Pending* pending) {
  for (;;) {
    std::size_t wanted = 4 - std::min<std::size_t>(pending->hello.size(), 4);
    const bool greeting = !pending->handshake.done();
    if (greeting) {
      wanted = pending->handshake.wanted();
    } else if (wanted == 0) {
      ARC_ASSIGN(const std::size_t n,
                 Hello::ParseLength(std::span<const std::byte, 4>(
                     reinterpret_cast<const std::byte*>(pending->hello.data()), 4)));
      if (pending->hello.size() == 4 + n) return true;
      wanted = 4 + n - pending->hello.size();
    }
    std::array<char, 4096> bytes;
    const ssize_t n = ReceiveSome(pending->socket.get(), bytes.data(),
                                  std::min(wanted, bytes.size()), &pending->fds, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return false;
    if (n <= 0) return Unavailable("the stranger left");
    const auto got = static_cast<std::size_t>(n);
    if (!greeting) {
      pending->hello.append(bytes.data(), got);
      continue;
    }
    ARC_TRY(
        pending->handshake.Feed({reinterpret_cast<const std::byte*>(bytes.data()), got}).status());
    const std::string out = pending->handshake.TakeOutput();
    ARC_TRY(
        SendBytes(pending->socket.get(), out, -1, Deadline::After(std::chrono::nanoseconds(0))));
  }
}

}  // namespace arcflow::transport
