// SPDX-License-Identifier: Apache-2.0
// Channel, client side: resolving, connecting, and trying again while nobody listens yet.
#include <sys/socket.h>

#include <cerrno>

#include "arcflow/net/channel_impl.h"

namespace arcflow::net {

using asio::ip::tcp;

namespace {

constexpr auto kRetryPause = std::chrono::milliseconds(100);

}  // namespace

void ChannelImpl::StartClient(std::string host, std::uint16_t port, ChannelCallbacks callbacks,
                              Deadline deadline, bool retry_refused) {
  host_ = std::move(host);
  port_number_ = port;
  callbacks_ = std::move(callbacks);
  deadline_ = deadline;
  retry_refused_ = retry_refused;
  port_.Post([self = shared_from_this()] {
    self->loop_.Register(self);  // finishes the channel when the loop is ending
    if (self->state_ == State::kClosed) return;
    self->Arm(self->deadline_, "connecting to ");
    self->Resolve();
  });
}

void ChannelImpl::Resolve() {
  std::error_code error;
  const auto address = asio::ip::make_address(host_, error);
  if (!error) {
    endpoints_.emplace_back(address, port_number_);
    ConnectNext();
    return;
  }
  resolver_.emplace(context_);
  // Weak: a name server that does not answer must not keep the channel.
  resolver_->async_resolve(
      host_, std::to_string(port_number_),
      [weak = weak_from_this()](const std::error_code& failure, const auto& results) {
        if (auto self = weak.lock()) self->OnResolved(failure, results);
      });
}

void ChannelImpl::OnResolved(const std::error_code& error,
                             const tcp::resolver::results_type& results) {
  if (state_ == State::kClosed) return;
  if (error) {
    Finish(NotFound("host " + host_ + " does not resolve: " + error.message()));
    return;
  }
  for (const auto& entry : results) endpoints_.push_back(entry.endpoint());
  ConnectNext();
}

// Made here, not by asio, so that no child process inherits it.
std::error_code ChannelImpl::OpenSocket(const tcp::endpoint& endpoint) {
  Fd fd(::socket(endpoint.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  std::error_code error;
  if (!fd.valid()) return std::error_code(errno, std::system_category());
  socket_.emplace(context_);
  socket_->assign(endpoint.protocol(), fd.get(), error);
  if (!error) fd.release();
  return error;
}

void ChannelImpl::ConnectNext() {
  const tcp::endpoint endpoint = endpoints_[next_endpoint_++];
  if (const std::error_code error = OpenSocket(endpoint)) {
    OnConnect(error);
    return;
  }
  socket_->async_connect(
      endpoint, [self = shared_from_this(), attempt = attempt_](const std::error_code& failure) {
        if (self->IsCurrent(attempt)) self->OnConnect(failure);
      });
}

void ChannelImpl::OnConnect(const std::error_code& error) {
  std::error_code failure = error;
  tcp::endpoint local;
  tcp::endpoint remote;
  if (!failure) local = socket_->local_endpoint(failure);
  if (!failure) remote = socket_->remote_endpoint(failure);
  // A port of the ephemeral range that nobody listens on can connect to itself.
  if (!failure && local == remote) failure = std::error_code(ECONNREFUSED, std::system_category());
  if (!failure) {
    BeginHandshake(Handshake::Client(options_.secret));
    return;
  }
  DropSocket();
  if (next_endpoint_ < endpoints_.size()) {
    ConnectNext();
    return;
  }
  RetryOrFinish(Status::FromErrno(failure.value(), "connect to " + target()));
}

// Completions of the socket's operations that are on their way belong to an attempt that is over.
void ChannelImpl::DropSocket() {
  ++attempt_;
  socket_.reset();
  writing_.reset();
  sealing_.reset();
  written_ = 0;
  write_pending_ = false;
  handshake_output_.clear();
}

void ChannelImpl::RetryOrFinish(const Status& why) {
  // Who closed meanwhile does not wait for a server that never comes.
  if (server_ || !retry_refused_ || drain_requested_ || why.code() != Code::kUnavailable) {
    Finish(why);
    return;
  }
  DropSocket();
  state_ = State::kConnecting;
  handshake_.reset();
  peer_.clear();
  last_failure_ = why;
  next_endpoint_ = 0;
  Arm(deadline_, "connecting to ");
  retry_timer_->expires_after(kRetryPause);
  retry_timer_->async_wait([self = shared_from_this()](const std::error_code& error) {
    if (!error && self->state_ == State::kConnecting) self->ConnectNext();
  });
}

}  // namespace arcflow::net
