// SPDX-License-Identifier: Apache-2.0
// Listener: accepts without leaking descriptors to children and bounds what strangers can hold.
#include "arcflow/net/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <asio/ip/tcp.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/steady_timer.hpp>
#include <atomic>
#include <cerrno>
#include <list>
#include <optional>
#include <system_error>
#include <utility>

#include "arcflow/net/failure_gate.h"
#include "arcflow/net/handshake.h"
#include "arcflow/net/loop_port.h"

namespace arcflow::net {
namespace {

constexpr auto kNoDescriptorPause = std::chrono::milliseconds(100);

struct Bound {
  Fd socket;
  std::string host;
  std::uint16_t port = 0;
};

Result<Bound> DescribeLocal(Fd socket) {
  sockaddr_storage local{};
  socklen_t length = sizeof(local);
  auto* address = reinterpret_cast<sockaddr*>(&local);
  if (::getsockname(socket.get(), address, &length) != 0) {
    return Status::FromErrno(errno, "getsockname");
  }
  char host[NI_MAXHOST];
  char service[NI_MAXSERV];
  if (::getnameinfo(address, length, host, sizeof(host), service, sizeof(service),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return Internal("getnameinfo failed for a bound address");
  }
  Bound bound;
  bound.socket = std::move(socket);
  bound.host = host;
  bound.port = static_cast<std::uint16_t>(std::stoi(service));
  return bound;
}

Result<Bound> BindOne(const addrinfo& info, const std::string& what) {
  Fd socket(::socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return Status::FromErrno(errno, what);
  const int yes = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (::bind(socket.get(), info.ai_addr, info.ai_addrlen) != 0)
    return Status::FromErrno(errno, what);
  if (::listen(socket.get(), SOMAXCONN) != 0) return Status::FromErrno(errno, what);
  return DescribeLocal(std::move(socket));
}

Result<Bound> BindTo(const std::string& host, std::uint16_t port) {
  if (host.empty())
    return InvalidArgument("listener needs an address; all interfaces is no default");
  const std::string what = "listen on " + host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* infos = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &infos);
  if (error != 0) return InvalidArgument(what + ": " + ::gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(infos, &::freeaddrinfo);
  Result<Bound> bound = InvalidArgument(what + ": the name has no address");
  for (const addrinfo* info = infos; info != nullptr && !bound.ok(); info = info->ai_next) {
    bound = BindOne(*info, what);
  }
  return bound;
}

/// The bytes of a peer's address, without its port.
std::string AddressOf(const sockaddr_storage& from) {
  if (from.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(from);
    return std::string(reinterpret_cast<const char*>(&v4.sin_addr), sizeof v4.sin_addr);
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(from);
  return std::string(reinterpret_cast<const char*>(&v6.sin6_addr), sizeof v6.sin6_addr);
}

}  // namespace

struct Listener::Impl : LoopService, std::enable_shared_from_this<Listener::Impl> {
  Impl(Loop& the_loop, ListenerOptions the_options, Accepted the_accepted)
      : port(the_loop.context()),
        loop(the_loop),
        options(std::move(the_options)),
        accepted(std::move(the_accepted)) {}

  Status Start(Fd listening);
  void Wait();
  void AcceptAll();
  void Admit(Fd socket, const std::string& address);
  std::optional<std::string> Forget(const Channel* channel);
  void End();
  void OnLoopEnd() override { End(); }

  LoopPort port;
  Loop& loop;  // only before End()
  const ListenerOptions options;
  std::string bound_host;
  std::uint16_t bound_port = 0;
  std::atomic<std::uint64_t> rejected{0};

  // Loop thread only.
  Accepted accepted;
  std::optional<asio::posix::stream_descriptor> socket;
  std::optional<asio::steady_timer> pause;
  struct Stranger {
    std::shared_ptr<Channel> channel;
    std::string address;
  };
  std::list<Stranger> strangers;  // in their handshake, oldest first
  FailureGate gate{FailureGate::Clock::now()};
};

Status Listener::Impl::Start(Fd listening) {
  socket.emplace(loop.context());
  pause.emplace(loop.context());
  std::error_code error;
  socket->assign(listening.get(), error);
  if (error) return Status::FromErrno(error.value(), "watch listening socket");
  listening.release();
  port.Post([self = shared_from_this()] {
    self->loop.Register(self);  // ends the listener when the loop is ending
    if (self->socket) self->Wait();
  });
  return Status::Ok();
}

void Listener::Impl::Wait() {
  socket->async_wait(asio::posix::stream_descriptor::wait_read,
                     [self = shared_from_this()](const std::error_code& error) {
                       if (!error && self->socket) self->AcceptAll();
                     });
}

void Listener::Impl::AcceptAll() {
  while (socket) {
    sockaddr_storage from{};
    socklen_t size = sizeof from;
    Fd peer(::accept4(socket->native_handle(), reinterpret_cast<sockaddr*>(&from), &size,
                      SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (peer.valid()) {
      Admit(std::move(peer), AddressOf(from));
      continue;
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      pause->expires_after(kNoDescriptorPause);  // the backlog waits until descriptors are free
      pause->async_wait([self = shared_from_this()](const std::error_code& error) {
        if (!error && self->socket) self->AcceptAll();
      });
      return;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) break;
    // Anything else concerns the one connection that was to be accepted: accept(2), "Error
    // handling".
  }
  if (socket) Wait();
}

void Listener::Impl::Admit(Fd peer, const std::string& address) {
  const auto now = FailureGate::Clock::now();
  if (!gate.Admits(address, now)) {  // closed unseen
    ++rejected;
    return;
  }
  // An honest peer needs one round trip, so the oldest is the likeliest to be a stranger.
  if (strangers.size() >= options.max_unauthenticated && !strangers.empty()) {
    strangers.front().channel->Abort(ResourceExhausted("too many connections that prove nothing"));
    gate.Failed(strangers.front().address, now);
    strangers.pop_front();
    ++rejected;
  }
  auto self = shared_from_this();
  auto channel = std::make_shared<std::weak_ptr<Channel>>();
  strangers.push_back({Channel::Accept(
                           loop, std::move(peer), options.channel,
                           [self](std::shared_ptr<Channel> proved) {
                             self->Forget(proved.get());
                             if (self->accepted) return self->accepted(std::move(proved));
                             proved->Abort(Cancelled("the listener is closed"));
                             return ChannelCallbacks{};
                           },
                           [self, channel](const Status&) {
                             // Not in the list any more: evicted, and counted then.
                             const auto refused = channel->lock();
                             const auto from = refused ? self->Forget(refused.get()) : std::nullopt;
                             if (!from) return;
                             self->gate.Failed(*from, FailureGate::Clock::now());
                             ++self->rejected;
                           }),
                       address});
  *channel = strangers.back().channel;
}

/// Its address; none when it was no stranger any more.
std::optional<std::string> Listener::Impl::Forget(const Channel* channel) {
  const auto it = std::find_if(strangers.begin(), strangers.end(), [channel](const auto& each) {
    return each.channel.get() == channel;
  });
  if (it == strangers.end()) return std::nullopt;
  std::string address = std::move(it->address);
  strangers.erase(it);
  return address;
}

void Listener::Impl::End() {
  if (!socket) return;
  port.Detach();
  socket.reset();
  pause.reset();
  accepted = nullptr;
  for (auto& stranger : std::exchange(strangers, {})) {
    stranger.channel->Abort(Cancelled("the listener is closed"));
  }
}

Listener::Listener(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Listener::~Listener() { Close(); }

Result<std::unique_ptr<Listener>> Listener::Bind(Loop& loop, ListenerOptions options,
                                                 Accepted accepted) {
  ARC_TRY(Handshake::Server(options.channel.secret)
              .status());  // a short secret fails here, not per peer
  ARC_ASSIGN(Bound bound, BindTo(options.host, options.port));
  auto impl = std::make_shared<Impl>(loop, std::move(options), std::move(accepted));
  impl->bound_host = std::move(bound.host);
  impl->bound_port = bound.port;
  ARC_TRY(impl->Start(std::move(bound.socket)));
  return std::unique_ptr<Listener>(new Listener(std::move(impl)));
}

void Listener::Close() {
  impl_->port.Post([impl = impl_] { impl->End(); });
}

std::uint16_t Listener::port() const { return impl_->bound_port; }

const std::string& Listener::host() const { return impl_->bound_host; }

std::uint64_t Listener::rejected() const { return impl_->rejected; }

}  // namespace arcflow::net
