// SPDX-License-Identifier: Apache-2.0
// Channel: handshake, then frames both ways until it closes; every step runs on the loop thread.
#include "arcflow/net/channel.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "arcflow/net/channel_impl.h"

namespace arcflow::net {
namespace {

using asio::ip::tcp;

constexpr std::size_t kSealBytes = std::size_t{16} * 1024;
constexpr int kMaxRefusals = 3;
constexpr int kReadsAtOnce = 16;              // of one channel, before others get their turn
constexpr std::size_t kBeginningBytes = 512;  // of a frame: length, kind, head of a raw one
constexpr std::string_view kTlsLabel = "arcflow control tls 1";
constexpr int kKeepIdleSeconds = 15;
constexpr int kKeepIntervalSeconds = 5;
constexpr int kKeepProbes = 3;

std::string NameOf(const tcp::endpoint& endpoint) {
  const auto address = endpoint.address();
  const std::string port = std::to_string(endpoint.port());
  return address.is_v6() ? "[" + address.to_string() + "]:" + port
                         : address.to_string() + ":" + port;
}

// Failures are ignored: the options help, but a connection works without them.
void SetTcpOptions(int socket, const ChannelOptions& options) {
  const auto set = [socket](int level, int name, int value) {
    ::setsockopt(socket, level, name, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleSeconds);
  set(IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalSeconds);
  set(IPPROTO_TCP, TCP_KEEPCNT, kKeepProbes);
  const auto limit = std::min<std::int64_t>(options.unacknowledged_timeout.count(), INT_MAX);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(limit));
}

}  // namespace

void ChannelImpl::StartServer(Fd socket, Accepted accepted,
                              std::function<void(const Status&)> refused) {
  server_ = true;
  accepted_ = std::move(accepted);
  refused_ = std::move(refused);
  auto handle = std::make_shared<Fd>(std::move(socket));  // std::function wants copies
  port_.Post([self = shared_from_this(), handle] {
    self->loop_.Register(self);
    if (self->state_ == State::kClosed) return;
    sockaddr_storage local{};
    socklen_t length = sizeof(local);
    if (::getsockname(handle->get(), reinterpret_cast<sockaddr*>(&local), &length) != 0) {
      self->Finish(Status::FromErrno(errno, "accepted socket"));
      return;
    }
    std::error_code error;
    self->socket_.emplace(self->context_);
    self->socket_->assign(local.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), handle->get(),
                          error);
    if (error) {
      self->Finish(Status::FromErrno(error.value(), "accepted socket"));
      return;
    }
    handle->release();
    self->BeginHandshake(Handshake::Server(self->options_.secret));
  });
}

void ChannelImpl::Arm(Deadline deadline, const char* what) {
  timer_->expires_at(deadline.at());  // cancels what was armed
  if (deadline.infinite()) return;
  timer_->async_wait([self = shared_from_this(), what](const std::error_code& error) {
    // Armed anew while this completion was queued: the new expiry lies ahead.
    if (error || self->state_ == State::kClosed) return;
    if (self->timer_->expiry() > Deadline::Clock::now()) return;
    if (self->drain_requested_) {
      self->Finish(Status::Ok());
    } else {
      const std::string who = self->peer_.empty() ? self->target() : self->peer_;
      const std::string last =
          self->last_failure_.ok() ? "" : "; last " + self->last_failure_.ToString();
      self->Finish(DeadlineExceeded(what + who + " took too long" + last));
    }
  });
}

void ChannelImpl::BeginHandshake(Result<Handshake> handshake) {
  std::error_code error;
  const tcp::endpoint local = socket_->local_endpoint(error);
  if (!error) local_host_ = local.address().to_string();
  const tcp::endpoint remote = socket_->remote_endpoint(error);
  if (error) {  // reset by the peer already
    RetryOrFinish(Unavailable("the peer went away at once: " + error.message()));
    return;
  }
  peer_ = NameOf(remote);
  if (!handshake.ok()) {
    Finish(handshake.status());
    return;
  }
  SetTcpOptions(socket_->native_handle(), options_);
  state_ = State::kHandshake;
  handshake_.emplace(std::move(*handshake));
  const Deadline own = Deadline::After(options_.handshake_timeout);
  Arm(own.at() < deadline_.at() ? own : deadline_, "handshake with ");
  handshake_output_ = handshake_->TakeOutput();
  read_bytes_ = handshake_->wanted();
  socket_->non_blocking(true, error);
  Flush();
  Read();
}

void ChannelImpl::Read() {
  socket_->async_wait(tcp::socket::wait_read, [self = shared_from_this(),
                                               attempt = attempt_](const std::error_code& error) {
    if (self->IsCurrent(attempt)) self->OnReadable(error);
  });
}

/// Reads into a buffer that all channels of a thread share: of a thousand, each with one of its
/// own, every message would meet memory that no cache holds. What has a place goes there instead.
void ChannelImpl::OnReadable(std::error_code error) {
  thread_local std::vector<std::byte> scratch;
  const unsigned attempt = attempt_;
  for (int reads = 0; reads < kReadsAtOnce && !error; ++reads) {
    const bool straight = raw_place_.at != nullptr && !tls_ && state_ == State::kOpen;
    const std::size_t left = straight ? decoder_.raw_left() : 0;
    // After what has a place, only the next frame's beginning, which says where its rest goes.
    const std::size_t wanted = straight ? std::min(read_bytes_, kBeginningBytes) : read_bytes_;
    if (scratch.size() < wanted) scratch.resize(wanted);
    const std::array<asio::mutable_buffer, 2> parts{asio::buffer(raw_place_.at, left),
                                                    asio::buffer(scratch.data(), wanted)};
    const std::size_t bytes = socket_->read_some(parts, error);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      error.clear();
      break;
    }
    if (error) break;
    const std::size_t placed = std::min(bytes, left);
    OnRead({scratch.data(), bytes - placed}, placed);
    if (!IsCurrent(attempt) || state_ == State::kClosed || state_ == State::kConnecting) return;
    if (bytes < left + wanted) break;
  }
  if (error) {
    OnEndOfStream(error);
  } else {
    Read();
  }
}

/// `placed` bytes lie where they belong; `got` came after them.
void ChannelImpl::OnRead(std::span<const std::byte> got, std::size_t placed) {
  if (placed > 0) {
    decoder_.SkipRaw(placed);
    raw_place_.at += placed;
  }
  // While draining, what still comes is read and dropped: a close with unread bytes would make the
  // kernel reset the connection and could destroy what the peer has not read yet.
  if (state_ == State::kHandshake) {
    OnHandshakeBytes(got);
  } else if (tls_) {
    OnTlsBytes(got);
  } else if (state_ == State::kOpen) {
    OnFrameBytes(got);
  }
}

void ChannelImpl::OnEndOfStream(const std::error_code& error) {
  if (state_ == State::kDraining) {
    Finish(Status::Ok());
    return;
  }
  const std::string who = peer_;
  const std::string how =
      error == asio::error::eof ? " closed the connection" : ": " + error.message();
  if (state_ == State::kTls) {
    Finish(Unauthenticated(who + how + " during the TLS handshake"));
    return;
  }
  if (state_ == State::kHandshake) {
    // Once it has our proof a server hangs up because the proof is wrong, or because strangers
    // crowd it.
    if (!server_ && handshake_->proof_sent() && (!retry_refused_ || ++refusals_ >= kMaxRefusals)) {
      Finish(Unauthenticated(who + how + " when it had our proof: is it of another run?"));
    } else {
      RetryOrFinish(Unavailable(who + how + " during the handshake"));
    }
    return;
  }
  Finish(Unavailable(who + how + (decoder_.at_boundary() ? "" : " in the middle of a message")));
}

void ChannelImpl::OnHandshakeBytes(std::span<const std::byte> bytes) {
  const auto used = handshake_->Feed(bytes);
  if (!used.ok()) {
    Finish(used.status().WithContext(peer_));
    return;
  }
  handshake_output_.append(handshake_->TakeOutput());
  Flush();
  if (handshake_->done()) {
    OnHandshakeDone();
  } else {
    read_bytes_ = handshake_->wanted();  // never reads into the first frame
  }
}

void ChannelImpl::OnHandshakeDone() {
  read_bytes_ = options_.read_bytes;
  if (options_.encrypt) {
    BeginTls();
  } else {
    OnReady();
  }
}

// The secret is proved; from here on nobody on the way can read or change anything.
void ChannelImpl::BeginTls() {
  auto key = handshake_->DeriveKey(kTlsLabel);
  auto session = key.ok() ? (server_ ? TlsSession::Server(*key) : TlsSession::Client(*key))
                          : Result<TlsSession>(key.status());
  if (!session.ok()) {
    Finish(session.status().WithContext(peer_));
    return;
  }
  tls_.emplace(std::move(*session));
  state_ = State::kTls;  // the handshake's timer goes on
  handshake_output_.append(tls_->TakeOutput());
  Flush();
}

void ChannelImpl::OnTlsBytes(std::span<const std::byte> bytes) {
  std::string plain;
  const Status fed = tls_->Feed(bytes, &plain);
  handshake_output_.append(tls_->TakeOutput());  // an alert, when it failed
  Flush();
  if (!fed.ok()) {
    if (state_ != State::kDraining) Finish(fed.WithContext(peer_));
    return;
  }
  if (state_ == State::kTls && tls_->done()) OnReady();
  if (state_ == State::kOpen && !plain.empty()) OnFrameBytes(std::as_bytes(std::span(plain)));
}

void ChannelImpl::OnReady() {
  Arm(drain_requested_ ? Deadline::After(options_.linger) : Deadline::Infinite(), "");
  handshake_.reset();
  state_ = State::kOpen;
  if (server_) {
    callbacks_ = accepted_(shared_from_this());
    accepted_ = nullptr;
    refused_ = nullptr;
  } else if (callbacks_.on_ready && !closing_) {
    callbacks_.on_ready();
  }
  if (drain_requested_) {
    Drain();
  } else {
    Flush();
  }
}

void ChannelImpl::OnFrameBytes(std::span<const std::byte> bytes) {
  decoder_.Feed(bytes);
  while (!closing_) {
    if (raw_place_.at != nullptr) {
      raw_place_.at += decoder_.TakeRaw(raw_place_.at);
      if (decoder_.raw_left() > 0) return;
      raw_place_ = {};
    }
    auto body = decoder_.Next();
    if (!body.ok()) {
      Finish(body.status().WithContext(peer_));
      return;
    }
    if (!body->has_value()) return;
    if (decoder_.raw() && options_.raw_head_bytes > 0) {
      if (!TakePlace(**body)) return;
      continue;
    }
    if (decoder_.raw()) {
      if (callbacks_.on_raw) callbacks_.on_raw(**body);
      continue;
    }
    nlohmann::json message;
    if (Status parsed = ParseFrame(**body, &message); !parsed.ok()) {
      Finish(parsed.WithContext(peer_));
      return;
    }
    if (callbacks_.on_message) callbacks_.on_message(message);
  }
}

/// Asks where the bytes that follow a head belong; false when the channel closes instead.
bool ChannelImpl::TakePlace(const std::string& head) {
  if (decoder_.raw_left() == 0) return true;
  if (callbacks_.on_raw_place) raw_place_ = callbacks_.on_raw_place(head, decoder_.raw_left());
  if (raw_place_.at != nullptr) return true;
  if (!closing_) Finish(InvalidArgument("bytes without a place for them").WithContext(peer_));
  return false;
}

Status ChannelImpl::Send(const nlohmann::json& message) {
  ARC_ASSIGN(std::string frame, EncodeFrame(message, options_.max_frame_bytes));
  return SendFrame(std::make_shared<const std::string>(std::move(frame)));
}

Status ChannelImpl::SendFrame(SharedFrame frame) {
  const std::size_t bytes = frame->size();
  return Queue(Outgoing{std::move(frame)}, bytes);
}

Status ChannelImpl::SendRaw(std::string head, std::span<const std::byte> bytes,
                            std::shared_ptr<const void> keep) {
  const std::size_t own = head.size();
  return Queue(
      Outgoing{std::make_shared<const std::string>(std::move(head)), bytes, std::move(keep)}, own);
}

/// `counts`: bytes that the bound of the queue is for.
Status ChannelImpl::Queue(Outgoing outgoing, std::size_t counts) {
  {
    std::lock_guard lock(mutex_);
    if (!sendable_) return Unavailable("the channel is closed");
    if (queued_bytes_ + counts > options_.max_queued_bytes) {
      return ResourceExhausted("the peer reads too slowly: " + std::to_string(queued_bytes_) +
                               " bytes are queued");
    }
    queued_bytes_ += counts;
    outbox_.push_back(std::move(outgoing));
    if (outbox_.size() > 1) return Status::Ok();  // whoever queued the first has posted already
  }
  port_.Post([self = shared_from_this()] { self->Flush(); });
  return Status::Ok();
}

std::size_t ChannelImpl::queued_bytes() const {
  std::lock_guard lock(mutex_);
  return queued_bytes_;
}

void ChannelImpl::Flush() {
  if (write_pending_ || !socket_ || state_ == State::kConnecting) return;
  if (!writing_ && !TakeFrame()) return;
  write_pending_ = true;
  const std::string_view first = writing_->Piece(written_, writing_->size());
  const std::string_view second =
      written_ < writing_->frame->size()
          ? writing_->Piece(writing_->frame->size(), writing_->body.size())
          : std::string_view();
  const std::array<asio::const_buffer, 2> parts{asio::buffer(first), asio::buffer(second)};
  socket_->async_write_some(parts, [self = shared_from_this(), attempt = attempt_](
                                       const std::error_code& error, std::size_t bytes) {
    if (self->IsCurrent(attempt)) self->OnWritten(error, bytes);
  });
}

/// Puts what is to be written next into writing_; false when there is nothing, or it failed.
bool ChannelImpl::TakeFrame() {
  written_ = 0;
  writing_counts_ = 0;
  if (!handshake_output_.empty()) {
    writing_ = Outgoing{std::make_shared<const std::string>(std::exchange(handshake_output_, {}))};
    return true;
  }
  if (state_ == State::kHandshake || state_ == State::kTls) return false;
  if (!sealing_) {
    std::lock_guard lock(mutex_);
    if (outbox_.empty()) return false;
    Outgoing next = std::move(outbox_.front());
    outbox_.pop_front();
    if (!tls_) {
      writing_counts_ = next.frame->size();
      writing_ = std::move(next);
      return true;
    }
    sealing_ = std::move(next);
    sealed_ = 0;
  }
  return SealNext();
}

/// Encrypts the next piece of a frame: a thousand channels that send one large frame together must
/// not hold a thousand encrypted copies of all of it.
bool ChannelImpl::SealNext() {
  const std::string_view piece = sealing_->Piece(sealed_, kSealBytes);
  auto sealed = tls_->Encrypt(piece);
  if (!sealed.ok()) {
    Finish(sealed.status().WithContext(peer_));
    return false;
  }
  sealed_ += piece.size();
  if (sealed_ == sealing_->size()) {
    writing_counts_ = sealing_->frame->size();
    sealing_.reset();
  }
  writing_ = Outgoing{std::make_shared<const std::string>(std::move(*sealed))};
  return true;
}

void ChannelImpl::OnWritten(const std::error_code& error, std::size_t bytes) {
  write_pending_ = false;
  if (error) {
    // The read side may hold the peer's last words; it reports the end after them.
    if (state_ != State::kDraining) return;
    Finish(Status::Ok());
    return;
  }
  written_ += bytes;
  if (written_ == writing_->size()) {
    writing_.reset();
    std::lock_guard lock(mutex_);
    queued_bytes_ -= writing_counts_;
  }
  Flush();
  if (state_ == State::kDraining && !write_pending_) Drain();
}

void ChannelImpl::Close() {
  {
    std::lock_guard lock(mutex_);
    sendable_ = false;
  }
  if (closing_.exchange(true)) return;
  port_.Post([self = shared_from_this()] {
    if (self->state_ == State::kClosed) return;
    self->drain_requested_ = true;
    if (self->state_ == State::kOpen) {
      self->Arm(Deadline::After(self->options_.linger), "");
      self->Drain();
    } else if (self->queued_bytes() == 0) {
      self->Finish(Status::Ok());
    } else {
      self->Arm(Deadline::After(self->options_.linger), "");  // the handshake first
    }
  });
}

void ChannelImpl::Drain() {
  state_ = State::kDraining;
  Flush();
  if (write_pending_ || shut_down_) return;
  shut_down_ = true;
  std::error_code error;
  socket_->shutdown(tcp::socket::shutdown_send, error);
  if (error) Finish(Status::Ok());  // else the peer's end of stream finishes, or the timer
}

void ChannelImpl::Abort(Status why) {
  {
    std::lock_guard lock(mutex_);
    sendable_ = false;
  }
  closing_ = true;
  port_.Post([self = shared_from_this(), why = std::move(why)] { self->Finish(why); });
}

void ChannelImpl::Finish(const Status& why) {
  if (state_ == State::kClosed) return;
  state_ = State::kClosed;
  closing_ = true;
  port_.Detach();
  std::deque<Outgoing> unsent;  // memory of others is let go without the mutex
  {
    std::lock_guard lock(mutex_);
    sendable_ = false;
    unsent.swap(outbox_);
    queued_bytes_ = 0;
  }
  socket_.reset();
  resolver_.reset();
  timer_.reset();
  retry_timer_.reset();
  handshake_.reset();
  tls_.reset();
  // Dropped when this returns, so callbacks may own the channel; pending operations own it until
  // they have completed.
  const auto callbacks = std::exchange(callbacks_, {});
  const auto accepted = std::exchange(accepted_, nullptr);
  const auto refused = std::exchange(refused_, nullptr);
  if (refused) refused(why);
  if (callbacks.on_closed) callbacks.on_closed(why);
}

std::shared_ptr<Channel> Channel::Connect(Loop& loop, const std::string& host, std::uint16_t port,
                                          ChannelOptions options, ChannelCallbacks callbacks,
                                          Deadline deadline, bool retry_refused) {
  auto channel = std::make_shared<ChannelImpl>(loop, std::move(options));
  channel->StartClient(host, port, std::move(callbacks), deadline, retry_refused);
  return channel;
}

std::shared_ptr<Channel> Channel::Accept(Loop& loop, Fd socket, ChannelOptions options,
                                         Accepted accepted,
                                         std::function<void(const Status&)> refused) {
  auto channel = std::make_shared<ChannelImpl>(loop, std::move(options));
  channel->StartServer(std::move(socket), std::move(accepted), std::move(refused));
  return channel;
}

}  // namespace arcflow::net
