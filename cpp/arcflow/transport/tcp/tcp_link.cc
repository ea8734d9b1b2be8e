// SPDX-License-Identifier: Apache-2.0
// TcpLink: payload in pieces over several lanes.
#include "arcflow/transport/tcp/tcp_link.h"

#include <algorithm>
#include <utility>

namespace arcflow::transport::tcp {

TcpLink::TcpLink(std::weak_ptr<Session> session, std::vector<std::shared_ptr<Lane>> lanes,
                 std::string detail)
    : session_(std::move(session)), lanes_(std::move(lanes)), detail_(std::move(detail)) {}

Status TcpLink::Start() {
  for (const auto& lane : lanes_) ARC_TRY(lane->Start(weak_from_this()));
  return Status::Ok();
}

void TcpLink::SendFrame(const FrameHeader& header, std::string_view first,
                        std::string_view second) {
  lanes_.front()->Send(header, first, second);
}

void TcpLink::SendPayload(std::shared_ptr<Outgoing> outgoing) {
  const std::uint64_t pieces = outgoing->piece.total / kPieceBytes + 1;
  {
    std::lock_guard lock(mutex_);
    if (down_) return;
    outgoing_.push_back(std::move(outgoing));
  }
  const std::size_t lanes = std::min<std::uint64_t>(pieces, lanes_.size());
  // The last lanes first: the first one has the frames to carry.
  for (std::size_t i = 0; i < lanes; ++i) lanes_[lanes_.size() - 1 - i]->KickPieces();
}

void TcpLink::Shutdown(bool say_bye) {
  std::deque<std::shared_ptr<Outgoing>> dropped;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(down_, true)) return;
    dropped.swap(outgoing_);
  }
  if (say_bye) {
    FrameHeader bye;
    bye.type = FrameType::kBye;
    lanes_.front()->Send(bye, {}, {});
  }
  for (const auto& lane : lanes_) lane->Close();
}

Status TcpLink::OnLaneFrame(const FrameHeader& header, std::string_view body) {
  const auto session = session_.lock();
  return session == nullptr ? Status::Ok() : session->OnFrame(header, body);
}

void TcpLink::OnLaneBytes() {
  if (const auto session = session_.lock()) session->Heard();
}

void TcpLink::OnLaneDown(const Status& status) {
  if (const auto session = session_.lock()) session->OnLinkDown(status);
}

Place TcpLink::OnPieceBegin(const FrameHeader& header) {
  const auto session = session_.lock();
  return session == nullptr ? Place{} : session->BeginPiece(header);
}

void TcpLink::OnPieceEnd(const FrameHeader& header, bool placed) {
  if (const auto session = session_.lock()) {
    session->EndPiece(header, placed ? Status::Ok() : Session::Revoked());
  }
}

std::optional<LanePiece> TcpLink::NextPiece() {
  std::shared_ptr<Outgoing> over;  // given up before its last piece was handed out
  {
    std::lock_guard lock(mutex_);
    while (!outgoing_.empty()) {
      Outgoing& front = *outgoing_.front();
      if (front.gate->closed()) front.torn = true;
      if (!front.torn && !front.aborted) break;
      if (front.in_flight == 0) over = outgoing_.front();
      outgoing_.pop_front();
      if (over != nullptr) break;
    }
    if (over == nullptr && !outgoing_.empty()) {
      const auto& front = outgoing_.front();
      LanePiece piece;
      piece.outgoing = front;
      piece.header = front->piece;
      piece.header.offset += front->next;
      piece.header.payload_bytes = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(kPieceBytes, front->piece.total - front->next));
      piece.data = front->data + front->next;
      front->next += piece.header.payload_bytes;
      ++front->in_flight;
      if (front->next == front->piece.total) outgoing_.pop_front();
      return piece;
    }
  }
  if (over == nullptr) return std::nullopt;
  if (const auto session = session_.lock()) session->OnSent(over);
  return NextPiece();
}

void TcpLink::OnPieceSent(const LanePiece& piece) {
  Outgoing& outgoing = *piece.outgoing;
  {
    std::lock_guard lock(mutex_);
    --outgoing.in_flight;
    const bool all = outgoing.next == outgoing.piece.total || outgoing.torn || outgoing.aborted;
    if (outgoing.in_flight > 0 || !all) return;
    // Torn, but still waiting for its next piece: NextPiece() must not end it a second time.
    const auto it = std::find(outgoing_.begin(), outgoing_.end(), piece.outgoing);
    if (it != outgoing_.end()) outgoing_.erase(it);
  }
  if (const auto session = session_.lock()) session->OnSent(piece.outgoing);
}

}  // namespace arcflow::transport::tcp
