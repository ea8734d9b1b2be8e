// SPDX-License-Identifier: Apache-2.0
// Lane: frames into and out of a non-blocking socket; payload straight between socket and memory.
#include "arcflow/transport/lane.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace arcflow::transport {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{256} << 10;
constexpr std::size_t kReadsPerWake = 16;  // then other lanes of the thread have their turn
constexpr std::size_t kPiecesPerPump = 4;  // likewise
constexpr std::size_t kDiscardBytes = std::size_t{64} << 10;

/// Zeros, sent instead of payload whose memory has been given back.
const std::byte* Filler() {
  static const std::vector<std::byte> zeros(kMaxPieceBytes);
  return zeros.data();
}

}  // namespace

std::shared_ptr<Lane> Lane::Create(Fd socket, Reactor& reactor, bool pieces_in_stream) {
  return std::shared_ptr<Lane>(new Lane(std::move(socket), reactor, pieces_in_stream));
}

Lane::Lane(Fd socket, Reactor& reactor, bool pieces_in_stream)
    : reactor_(reactor), pieces_in_stream_(pieces_in_stream), socket_(std::move(socket)) {
  buffer_.resize(kBufferBytes);
}

Status Lane::Start(std::weak_ptr<LaneOwner> owner) {
  owner_ = std::move(owner);
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  if (::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return Status::FromErrno(errno, "fcntl");
  }
  // Watched on the reactor's thread, so that the first event finds watch_ set.
  const bool posted = reactor_.Post([self = shared_from_this()] {
    std::lock_guard io(self->io_mutex_);
    if (!self->socket_.valid()) return;
    auto watch = self->reactor_.Watch(self->socket_.get(), EPOLLIN,
                                      [self](std::uint32_t events) { self->OnReady(events); });
    if (!watch.ok()) {
      self->Down(watch.status());
      return;
    }
    self->watch_ = *watch;
    if (self->write_armed_) {
      self->reactor_.Modify(self->watch_, self->socket_.get(), EPOLLIN | EPOLLOUT);
    }
    self->Pump(true);
  });
  return posted ? Status::Ok() : Cancelled("the transport has been stopped");
}

void Lane::Send(const FrameHeader& header, std::string_view first, std::string_view second) {
  FrameHeader full = header;
  full.inline_bytes = static_cast<std::uint32_t>(first.size() + second.size());
  {
    std::lock_guard lock(queue_mutex_);
    if (closed_) return;
    const std::size_t at = queue_.size();
    queue_.resize(at + sizeof(full));
    EncodeHeader(full, reinterpret_cast<std::byte*>(queue_.data()) + at);
    queue_.append(first);
    queue_.append(second);
    queued_.fetch_add(sizeof(full) + full.inline_bytes, std::memory_order_relaxed);
  }
  // Sent by this very thread if nobody else is sending: saves a wake-up.
  if (pumping_ == std::this_thread::get_id()) return;  // called by our own Pump, which goes on
  std::unique_lock io(io_mutex_, std::try_to_lock);
  if (io.owns_lock()) {
    Pump(false);
  } else {
    PostPump();  // whoever holds it may have looked into the queue before
  }
}

void Lane::KickPieces() { PostPump(); }

void Lane::PostPump() {
  if (pump_posted_.exchange(true, std::memory_order_acq_rel)) return;
  reactor_.Post([self = shared_from_this()] {
    self->pump_posted_.store(false, std::memory_order_release);
    std::lock_guard io(self->io_mutex_);
    self->Pump(true);
  });
}

void Lane::Close() {
  {
    std::lock_guard lock(queue_mutex_);
    if (closed_.exchange(true)) return;
  }
  reactor_.Post([self = shared_from_this()] {
    std::optional<LanePiece> piece;  // released without a lock
    {
      std::lock_guard io(self->io_mutex_);
      if (self->watch_ != 0) self->reactor_.Unwatch(self->watch_, self->socket_.get());
      self->socket_.reset();
      piece = std::exchange(self->piece_, std::nullopt);
    }
    self->place_ = {};
  });
}

void Lane::Down(const Status& status) {
  failed_ = true;
  reactor_.Post([owner = owner_, status] {
    if (const auto link = owner.lock()) link->OnLaneDown(status);
  });
}

void Lane::OnReady(std::uint32_t events) {
  if (closed_) return;
  if ((events & EPOLLOUT) != 0) {
    std::lock_guard io(io_mutex_);
    Pump(true);
  }
  if ((events & ~std::uint32_t{EPOLLOUT}) != 0 && !Receive()) {
    std::lock_guard io(io_mutex_);  // a dead socket would wake us for ever
    if (watch_ != 0) reactor_.Unwatch(std::exchange(watch_, 0), socket_.get());
  }
}

void Lane::ArmWrite(bool on) {
  if (write_armed_ == on) return;
  write_armed_ = on;
  if (watch_ != 0) {
    reactor_.Modify(watch_, socket_.get(), on ? EPOLLIN | EPOLLOUT : std::uint32_t{EPOLLIN});
  }
}

void Lane::Pump(bool with_pieces) {
  if (!socket_.valid() || failed_) return;
  pumping_ = std::this_thread::get_id();
  PumpUntilLater(with_pieces);
  pumping_ = std::thread::id();
}

void Lane::PumpUntilLater(bool with_pieces) {
  for (std::size_t pieces = 0;;) {
    Sent sent = Sent::kAll;
    if (piece_.has_value()) {
      if (!with_pieces) return;  // the reactor's thread is about to go on with it
      if (pieces++ == kPiecesPerPump) {
        ArmWrite(true);
        return;
      }
      sent = SendPiece();
    } else {
      sent = SendFrames();
      if (sent == Sent::kAll) {
        if (with_pieces && pieces_in_stream_) {
          if (const auto owner = owner_.lock()) piece_ = owner->NextPiece();
        }
        if (!piece_.has_value()) {
          if (with_pieces) ArmWrite(false);
          return;
        }
        EncodeHeader(piece_->header, piece_header_.data());
        piece_at_ = 0;
      }
    }
    if (sent == Sent::kLater) ArmWrite(true);
    if (sent != Sent::kAll) return;
  }
}

Lane::Sent Lane::OnSendResult(ssize_t n, std::size_t* sent) {
  if (n >= 0) {
    *sent += static_cast<std::size_t>(n);
    return Sent::kAll;
  }
  if (errno == EINTR) return Sent::kAll;
  if (errno == EAGAIN || errno == EWOULDBLOCK) return Sent::kLater;
  Down(Unavailable("the peer is gone: " + Status::FromErrno(errno, "send").ToString()));
  return Sent::kFailed;
}

Lane::Sent Lane::SendFrames() {
  for (;;) {
    if (sending_at_ == sending_.size()) {
      sending_.clear();
      sending_at_ = 0;
      std::lock_guard lock(queue_mutex_);
      if (queue_.empty()) return Sent::kAll;
      sending_.swap(queue_);
    }
    const std::size_t before = sending_at_;
    const ssize_t n = ::send(socket_.get(), sending_.data() + sending_at_,
                             sending_.size() - sending_at_, MSG_NOSIGNAL);
    const Sent sent = OnSendResult(n, &sending_at_);
    queued_.fetch_sub(sending_at_ - before, std::memory_order_relaxed);
    if (sent != Sent::kAll) return sent;
  }
}

Lane::Sent Lane::SendPiece() {
  const std::size_t whole = sizeof(FrameHeader) + piece_->header.payload_bytes;
  while (piece_at_ < whole) {
    Outgoing& outgoing = *piece_->outgoing;
    GatePass pass(outgoing.torn ? nullptr : outgoing.gate);
    if (!pass) outgoing.torn = true;  // the stream needs its bytes, but these are not ours any more
    const std::byte* data = pass ? piece_->data : Filler();
    std::array<iovec, 2> parts{};
    std::size_t count = 0;
    if (piece_at_ < sizeof(FrameHeader)) {
      parts[count++] = {piece_header_.data() + piece_at_, sizeof(FrameHeader) - piece_at_};
      parts[count++] = {const_cast<std::byte*>(data), piece_->header.payload_bytes};
    } else {
      parts[count++] = {const_cast<std::byte*>(data) + piece_at_ - sizeof(FrameHeader),
                        whole - piece_at_};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const Sent sent = OnSendResult(::sendmsg(socket_.get(), &message, MSG_NOSIGNAL), &piece_at_);
    if (sent != Sent::kAll) return sent;
  }
  const LanePiece done = std::move(*piece_);
  piece_.reset();
  if (const auto owner = owner_.lock()) owner->OnPieceSent(done);
  return Sent::kAll;
}

bool Lane::Receive() {
  const auto owner = owner_.lock();
  if (owner == nullptr) return false;
  for (std::size_t i = 0; i < kReadsPerWake && !closed_; ++i) {
    bool more = true;
    if (in_payload_) {
      const int got = ReceivePayload(&more);
      if (got <= 0) return got == 0;
    } else {
      if (begin_ > 0) {
        std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
        end_ -= begin_;
        begin_ = 0;
      }
      const ssize_t n = ::recv(socket_.get(), buffer_.data() + end_, buffer_.size() - end_, 0);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
      if (n <= 0) {
        owner->OnLaneDown(Unavailable(n == 0 ? "the peer is gone: it closed the connection"
                                             : "the peer is gone: " +
                                                   Status::FromErrno(errno, "recv").ToString()));
        return false;
      }
      more = static_cast<std::size_t>(n) == buffer_.size() - end_;
      end_ += static_cast<std::size_t>(n);
    }
    owner->OnLaneBytes();
    if (const Status status = ParseBuffer(); !status.ok()) {
      owner->OnLaneDown(status.code() == Code::kUnavailable
                            ? status
                            : Unavailable("the peer broke the protocol: " + status.ToString()));
      return false;
    }
    if (!more) return true;
  }
  return true;
}

// Straight into its place while the gate lets us; otherwise into the buffer, to be dropped.
// -1: the end; 0: nothing there; 1: something came.
int Lane::ReceivePayload(bool* more) {
  std::array<iovec, 2> parts{};
  ssize_t n = 0;
  std::size_t wanted = 0;
  {
    GatePass pass(placed_ ? place_.gate : nullptr);
    placed_ = static_cast<bool>(pass);
    const std::size_t spare = buffer_.size() / 2;  // what follows the payload, in the same call
    wanted = placed_ ? payload_left_ : std::min(payload_left_, kDiscardBytes);
    parts[0] = {placed_ ? place_.to : buffer_.data() + spare, wanted};
    parts[1] = {buffer_.data(), wanted == payload_left_ ? spare : 0};
    n = ::readv(socket_.get(), parts.data(), 2);
  }
  const auto owner = owner_.lock();
  if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
  if (n <= 0) {
    if (owner != nullptr) {
      owner->OnLaneDown(Unavailable("the peer is gone in the middle of a transfer"));
    }
    return -1;
  }
  const std::size_t got = static_cast<std::size_t>(n);
  const std::size_t taken = std::min(got, wanted);
  payload_left_ -= taken;
  if (placed_) place_.to += taken;
  begin_ = 0;
  end_ = got - taken;
  *more = got == wanted + parts[1].iov_len;
  if (payload_left_ == 0) {
    in_payload_ = false;
    const Place done = std::exchange(place_, {});
    if (owner != nullptr) owner->OnPieceEnd(payload_header_, placed_);
  }
  return 1;
}

Status Lane::ParseBuffer() {
  const auto owner = owner_.lock();
  while (owner != nullptr && !in_payload_ && !closed_) {
    if (end_ - begin_ < sizeof(FrameHeader)) return Status::Ok();
    ARC_ASSIGN(const FrameHeader header, DecodeHeader({buffer_.data() + begin_, end_ - begin_}));
    const std::size_t length = sizeof(FrameHeader) + header.inline_bytes;
    if (end_ - begin_ < length) return Status::Ok();  // fits: inline bytes are bounded
    const std::string_view body(
        reinterpret_cast<const char*>(buffer_.data() + begin_ + sizeof(FrameHeader)),
        header.inline_bytes);
    begin_ += length;
    if (header.payload_bytes == 0 || !pieces_in_stream_) {
      ARC_TRY(owner->OnLaneFrame(header, body));
      continue;
    }
    payload_header_ = header;
    payload_left_ = header.payload_bytes;
    place_ = owner->OnPieceBegin(header);
    placed_ = place_.gate != nullptr;
    in_payload_ = true;
    ARC_TRY(TakePayloadFromBuffer());
  }
  return Status::Ok();
}

Status Lane::TakePayloadFromBuffer() {
  const std::size_t n = std::min(payload_left_, end_ - begin_);
  {
    GatePass pass(placed_ ? place_.gate : nullptr);
    placed_ = static_cast<bool>(pass);
    if (placed_ && n > 0) {
      std::memcpy(place_.to, buffer_.data() + begin_, n);
      place_.to += n;
    }
  }
  begin_ += n;
  payload_left_ -= n;
  if (payload_left_ > 0) return Status::Ok();
  in_payload_ = false;
  const Place done = std::exchange(place_, {});
  if (const auto owner = owner_.lock()) owner->OnPieceEnd(payload_header_, placed_);
  return Status::Ok();
}

}  // namespace arcflow::transport
