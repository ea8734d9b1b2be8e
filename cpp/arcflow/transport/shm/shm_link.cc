// SPDX-License-Identifier: Apache-2.0
// ShmLink: copies out of the peer in slices; slots where that is not allowed.
#include "arcflow/transport/shm/shm_link.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "arcflow/base/stream_copy.h"

namespace arcflow::transport::shm {
namespace {

constexpr std::size_t kSliceBytes = std::size_t{4} << 20;  // the longest a gate is held
constexpr int kSlicesPerTurn = 2;                          // then frames have their turn
constexpr std::size_t kMaxPulls = 1U << 16U;

}  // namespace

ShmLink::ShmLink(std::weak_ptr<Session> session, std::shared_ptr<Lane> lane, Reactor& reactor,
                 ShmPeer peer)
    : session_(std::move(session)),
      lane_(std::move(lane)),
      reactor_(reactor),
      peer_(std::move(peer)),
      crew_(CopyCrew::Shared()) {
  for (std::size_t i = kSlots; i-- > 0;) free_.push_back(static_cast<std::uint16_t>(i));
}

Status ShmLink::Start() {
  if (peer_.we_read) {
    FrameHeader reads;
    reads.type = FrameType::kReads;
    lane_->Send(reads, {}, {});
  }
  return lane_->Start(weak_from_this());
}

std::string ShmLink::detail() const {
  return std::string(peer_reads_us() ? "process_vm_readv" : "shared segment") + ", process " +
         std::to_string(peer_.memory.pid());
}

void ShmLink::SendFrame(const FrameHeader& header, std::string_view first,
                        std::string_view second) {
  lane_->Send(header, first, second);
}

void ShmLink::SendPayload(std::shared_ptr<Outgoing> outgoing) {
  {
    std::lock_guard lock(mutex_);
    if (down_) return;
    outgoing_.push_back(std::move(outgoing));
  }
  reactor_.Post([self = shared_from_this()] { self->FillSlots(); });
}

void ShmLink::Shutdown(bool say_bye) {
  std::deque<std::shared_ptr<Outgoing>> dropped;
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(down_, true)) return;
    dropped.swap(outgoing_);
  }
  if (say_bye) {
    FrameHeader bye;
    bye.type = FrameType::kBye;
    lane_->Send(bye, {}, {});
  }
  lane_->Close();
  reactor_.Post([self = shared_from_this()] { self->pulls_.clear(); });
}

void ShmLink::OnLaneBytes() {
  if (const auto session = session_.lock()) session->Heard();
}

void ShmLink::OnLaneDown(const Status& status) {
  if (const auto session = session_.lock()) session->OnLinkDown(status);
}

Status ShmLink::OnLaneFrame(const FrameHeader& header, std::string_view body) {
  switch (header.type) {
    case FrameType::kReads:
      peer_reads_us_.store(true, std::memory_order_release);
      return Status::Ok();
    case FrameType::kPutRef:
    case FrameType::kGetRef:
      return OnRef(header, body);
    case FrameType::kPutData:
    case FrameType::kGetData:
      return OnSlot(header);
    case FrameType::kSlotFree:
      return OnSlotFree(header);
    default:
      break;
  }
  const auto session = session_.lock();
  return session == nullptr ? Status::Ok() : session->OnFrame(header, body);
}

Status ShmLink::OnRef(const FrameHeader& header, std::string_view body) {
  if (!peer_.we_read) return InvalidArgument("payload by reference, though we cannot read it");
  if (header.total == 0) return InvalidArgument("payload by reference of no bytes");
  if (pulls_.size() >= kMaxPulls) return InvalidArgument("the peer has too many puts open");
  const auto session = session_.lock();
  if (session == nullptr) return Status::Ok();
  Pull pull;
  pull.header = header;
  std::string_view notice;
  pull.validity = SplitValidity(body, &notice);
  pull.notice = notice;
  pull.place = session->BeginPiece(header);
  pulls_.push_back(std::move(pull));
  if (!pulling_) RunPulls();
  return Status::Ok();
}

void ShmLink::RunPulls() {
  pulling_ = true;
  for (int i = 0; i < kSlicesPerTurn && !pulls_.empty(); ++i) {
    const std::optional<Status> status = PullSlice(&pulls_.front());
    if (!status.has_value()) continue;
    const Pull done = std::move(pulls_.front());
    pulls_.pop_front();
    EndPull(done, *status);
  }
  pulling_ = !pulls_.empty();
  if (pulling_) reactor_.Post([self = shared_from_this()] { self->RunPulls(); });
}

Status ShmLink::Copy(const Pull& pull, std::size_t n) const {
  const std::uint64_t from = pull.header.ref + pull.done;
  std::byte* const to = pull.place.to + pull.done;
  return crew_->Copy(n, [&](std::size_t offset, std::size_t bytes) {
    return peer_.memory.Read(from + offset, to + offset, bytes);
  });
}

std::optional<Status> ShmLink::PullSlice(Pull* pull) {
  const std::size_t n = std::min<std::uint64_t>(kSliceBytes, pull->header.total - pull->done);
  Status status;
  {
    GatePass pass(pull->place.gate);
    if (!pass) return Session::Revoked();
    status = Copy(*pull, n);
  }
  if (!status.ok()) return status;
  // What was copied counts only if the peer had not given that memory back by now: the word is
  // cleared before it does. acquire: the word must not be read before the bytes.
  std::atomic_thread_fence(std::memory_order_acquire);
  std::uint64_t word = 0;
  status =
      peer_.memory.Read(pull->validity.address, reinterpret_cast<std::byte*>(&word), sizeof(word));
  if (!status.ok()) return status;
  if (word != pull->validity.value || word == 0) {
    return NotFound("the source was given back meanwhile");
  }
  if (!peer_.memory.alive()) return Unavailable("the peer's process is gone");
  pull->done += n;
  if (pull->done == pull->header.total) return Status::Ok();
  return std::nullopt;
}

void ShmLink::EndPull(const Pull& pull, const Status& status) {
  const auto session = session_.lock();
  if (session == nullptr) return;
  FrameHeader end = pull.header;
  if (end.type == FrameType::kPutRef) {
    session->EndPiece(pull.header, status);
    end.type = FrameType::kPutCommit;
    const Status said = session->OnFrame(end, pull.notice);
    if (!said.ok()) session->OnLinkDown(said);
    return;
  }
  session->EndPiece(pull.header, status);
  end.type = FrameType::kGetDone;
  end.status = static_cast<std::uint8_t>(status.code());
  const Status said = session->OnFrame(end, status.message());
  if (!said.ok()) session->OnLinkDown(said);
}

Status ShmLink::OnSlot(const FrameHeader& header) {
  if (header.ref >= kSlots || header.payload_bytes > kSlotBytes) {
    return InvalidArgument("piece in slot " + std::to_string(header.ref) + " of " +
                           std::to_string(header.payload_bytes) + " bytes");
  }
  const auto session = session_.lock();
  if (session == nullptr) return Status::Ok();
  const Place place = session->BeginPiece(header);
  bool placed = false;
  {
    GatePass pass(place.gate);
    placed = static_cast<bool>(pass);
    if (placed) {
      StreamCopy(place.to, peer_.theirs.data() + header.ref * kSlotBytes, header.payload_bytes);
    }
  }
  session->EndPiece(header, placed ? Status::Ok() : Session::Revoked());
  FrameHeader free;
  free.type = FrameType::kSlotFree;
  free.ref = header.ref;
  lane_->Send(free, {}, {});
  return Status::Ok();
}

Status ShmLink::OnSlotFree(const FrameHeader& header) {
  if (header.ref >= kSlots || !lent_[header.ref]) {
    return InvalidArgument("slot " + std::to_string(header.ref) + " was not lent");
  }
  lent_[header.ref] = false;
  free_.push_back(static_cast<std::uint16_t>(header.ref));
  FillSlots();
  return Status::Ok();
}

void ShmLink::FillSlots() {
  while (!free_.empty()) {
    std::shared_ptr<Outgoing> front;
    {
      std::lock_guard lock(mutex_);
      if (outgoing_.empty()) return;
      front = outgoing_.front();
    }
    if (FillSlot(front)) continue;
    {
      std::lock_guard lock(mutex_);
      if (!outgoing_.empty() && outgoing_.front() == front) outgoing_.pop_front();
    }
    if (const auto session = session_.lock()) session->OnSent(front);
  }
}

// False when it was the last piece, or there will be no more.
bool ShmLink::FillSlot(const std::shared_ptr<Outgoing>& outgoing) {
  FrameHeader header = outgoing->piece;
  const std::size_t n = std::min<std::uint64_t>(kSlotBytes, outgoing->piece.total - outgoing->next);
  const std::uint16_t slot = free_.back();
  {
    GatePass pass(outgoing->aborted ? nullptr : outgoing->gate);
    if (!pass) {
      outgoing->torn = true;
      return false;
    }
    StreamCopy(peer_.ours.data() + slot * kSlotBytes, outgoing->data + outgoing->next, n);
  }
  free_.pop_back();
  lent_[slot] = true;
  header.offset += outgoing->next;
  header.payload_bytes = static_cast<std::uint32_t>(n);
  header.ref = slot;
  outgoing->next += n;
  lane_->Send(header, {}, {});
  return outgoing->next < outgoing->piece.total;
}

}  // namespace arcflow::transport::shm
