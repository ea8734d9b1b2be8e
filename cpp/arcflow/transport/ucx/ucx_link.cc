// SPDX-License-Identifier: Apache-2.0
// UcxLink: frames in order, pieces into place.
#include "arcflow/transport/ucx/ucx_link.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <utility>

namespace arcflow::transport::ucx {
namespace {

constexpr std::size_t kMaxEarly = 1U << 16U;

bool IsPiece(FrameType type) { return type == FrameType::kPutData || type == FrameType::kGetData; }

}  // namespace

UcxLink::UcxLink(std::weak_ptr<Session> session, std::shared_ptr<Lane> lane, Engine& engine,
                 const Token& own, const Token& theirs, std::string peer_address)
    : session_(std::move(session)),
      lane_(std::move(lane)),
      engine_(engine),
      own_(own),
      theirs_(theirs),
      peer_address_(std::move(peer_address)) {}

Status UcxLink::Connect(const std::string& worker_address) {
  std::promise<Status> done;
  const bool posted = engine_.Post([&] {
    auto peer = engine_.Connect(worker_address, own_, weak_from_this());
    if (peer.ok()) {
      peer_ = std::move(*peer);
      ways_ = engine_.Describe(peer_);
    }
    done.set_value(peer.status());
  });
  if (!posted) return Cancelled("the transport has been stopped");
  return done.get_future().get();
}

std::string UcxLink::detail() const { return ways_ + " to " + peer_address_; }

void UcxLink::SendFrame(const FrameHeader& header, std::string_view first,
                        std::string_view second) {
  if (down_) return;
  auto body = std::make_shared<std::string>(first);
  body->append(second);
  MessageHeader message;
  message.token = theirs_;
  message.frame = header;
  message.frame.inline_bytes = static_cast<std::uint32_t>(body->size());
  const std::size_t size = sizeof(message) + body->size();
  queued_.fetch_add(size, std::memory_order_relaxed);
  std::lock_guard lock(mutex_);  // numbered in the order of posting
  message.sequence = next_sent_++;
  engine_.Post([self = shared_from_this(), message, body, size] {
    self->engine_.Send(self->peer_, message, body->data(), body->size(), false, nullptr,
                       [self, body, size](ucs_status_t status) {
                         self->queued_.fetch_sub(size, std::memory_order_relaxed);
                         if (status != UCS_OK) {
                           self->OnBroken(Unavailable("the peer is gone: a message was not sent"));
                         }
                       });
  });
}

void UcxLink::SendPayload(std::shared_ptr<Outgoing> outgoing) {
  engine_.Post([self = shared_from_this(), outgoing = std::move(outgoing)] {
    if (self->down_) return;
    self->outgoing_.push_back(outgoing);
    self->PumpPieces();
  });
}

void UcxLink::Shutdown(bool say_bye) {
  if (down_.exchange(true)) return;
  if (say_bye) {
    FrameHeader bye;
    bye.type = FrameType::kBye;
    lane_->Send(bye, {}, {});
  }
  lane_->Close();
  engine_.Post([self = shared_from_this()] {
    self->outgoing_.clear();
    self->early_.clear();
    if (self->peer_ != nullptr) self->engine_.Close(self->peer_);
  });
}

void UcxLink::OnBroken(const Status& status) {
  if (const auto session = session_.lock()) session->OnLinkDown(status);
}

Status UcxLink::OnLaneFrame(const FrameHeader& header, std::string_view body) {
  const auto session = session_.lock();
  return session == nullptr || header.type != FrameType::kBye ? Status::Ok()
                                                              : session->OnFrame(header, body);
}

void UcxLink::OnArrival(Arrival arrival) {
  const auto* raw = reinterpret_cast<const std::byte*>(&arrival.header.frame);
  const auto header = DecodeHeader({raw, sizeof(FrameHeader)});
  const bool piece = header.ok() && IsPiece(header->type);
  const std::size_t expected =
      header.ok() ? (piece ? header->payload_bytes : header->inline_bytes) : 0;
  const bool fits = arrival.descriptor != nullptr ? piece : arrival.bytes.size() == expected;
  const auto session = session_.lock();
  if (!header.ok() || !fits || down_ || session == nullptr) {
    if (arrival.descriptor != nullptr) engine_.Release(arrival.descriptor);
    if (!down_) Break(header.ok() ? "a message of the wrong length" : header.status().ToString());
    return;
  }
  session->Heard();
  if (piece) {
    OnPiece(*header, std::move(arrival));
    return;
  }
  const std::uint64_t sequence = arrival.header.sequence;
  if (sequence < next_received_ || early_.size() >= kMaxEarly) {
    Break("a message out of sequence");
    return;
  }
  early_.emplace(sequence, std::move(arrival));
  if (!delivering_) OnFrames();
}

void UcxLink::OnFrames() {
  delivering_ = true;
  while (!down_) {
    const auto it = early_.find(next_received_);
    if (it == early_.end()) break;
    const Arrival next = std::move(it->second);
    early_.erase(it);
    ++next_received_;
    const auto session = session_.lock();
    if (session == nullptr) break;
    const Status status = session->OnFrame(next.header.frame, next.bytes);
    if (!status.ok()) {
      OnBroken(status.code() == Code::kUnavailable
                   ? status
                   : Unavailable("the peer broke the protocol: " + status.ToString()));
    }
  }
  delivering_ = false;
}

void UcxLink::OnPiece(const FrameHeader& header, Arrival arrival) {
  const auto session = session_.lock();
  Place place = session->BeginPiece(header);
  if (place.gate == nullptr || !place.gate->Enter()) {
    if (arrival.descriptor != nullptr) engine_.Release(arrival.descriptor);
    session->EndPiece(header, Session::Revoked());
    return;
  }
  if (arrival.descriptor == nullptr) {  // UCX preferred to send it along
    std::memcpy(place.to, arrival.bytes.data(), arrival.bytes.size());
    place.gate->Leave();
    session->EndPiece(header, Status::Ok());
    return;
  }
  engine_.Receive(peer_, arrival.descriptor, place.to, header.payload_bytes, place.gate,
                  [session, header, holder = place.holder](ucs_status_t status) {
                    session->EndPiece(header, status == UCS_OK
                                                  ? Status::Ok()
                                                  : Unavailable("the transfer broke off"));
                  });
}

void UcxLink::PumpPieces() {
  while (!outgoing_.empty() && in_flight_ < kPiecesInFlight) {
    const std::shared_ptr<Outgoing> front = outgoing_.front();
    if (front->gate->closed()) front->torn = true;
    if (front->torn || front->aborted) {
      outgoing_.pop_front();
      if (front->in_flight > 0) continue;  // its last piece tells
      if (const auto session = session_.lock()) session->OnSent(front);
      continue;
    }
    SendPiece(front);
    if (front->next == front->piece.total && !outgoing_.empty()) outgoing_.pop_front();
  }
}

void UcxLink::SendPiece(const std::shared_ptr<Outgoing>& outgoing) {
  if (!outgoing->gate->Enter()) {
    outgoing->torn = true;
    return;
  }
  const std::size_t n =
      std::min<std::uint64_t>(kPieceBytes, outgoing->piece.total - outgoing->next);
  MessageHeader message;
  message.token = theirs_;
  message.frame = outgoing->piece;
  message.frame.offset += outgoing->next;
  message.frame.payload_bytes = static_cast<std::uint32_t>(n);
  const std::byte* data = outgoing->data + outgoing->next;
  outgoing->next += n;
  ++outgoing->in_flight;
  ++in_flight_;
  engine_.Send(peer_, message, data, n, true, outgoing->gate,
               [self = shared_from_this(), outgoing](ucs_status_t status) {
                 self->OnPieceDone(outgoing, status);
               });
}

void UcxLink::OnPieceDone(const std::shared_ptr<Outgoing>& outgoing, ucs_status_t status) {
  --in_flight_;
  --outgoing->in_flight;
  if (down_) return;
  if (status != UCS_OK) {
    OnBroken(Unavailable("the peer is gone: a piece was not sent"));
    return;
  }
  const bool all = outgoing->next == outgoing->piece.total || outgoing->torn || outgoing->aborted;
  if (outgoing->in_flight == 0 && all) {
    const auto it = std::find(outgoing_.begin(), outgoing_.end(), outgoing);
    if (it != outgoing_.end()) outgoing_.erase(it);
    if (const auto session = session_.lock()) session->OnSent(outgoing);
  }
  PumpPieces();
}

}  // namespace arcflow::transport::ucx
