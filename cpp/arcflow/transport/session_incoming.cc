// SPDX-License-Identifier: Apache-2.0
// Session, the peer's side: its operations on our regions and its answers to ours. Everything here
// is said by another process and checked.
#include <algorithm>
#include <cstring>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/transport/session.h"

namespace arcflow::transport {
namespace {

// A peer may have this many operations open on us; more is a breach, not load.
constexpr std::size_t kMaxOpen = 1U << 16U;

Status FromPeer(const FrameHeader& header, std::string_view message) {
  if (header.status == 0) return Status::Ok();
  return {static_cast<Code>(header.status),
          "the peer says: " + std::string(message.substr(0, kMaxErrorBytes))};
}

}  // namespace

Status Session::OnFrame(const FrameHeader& header, std::string_view body) {
  switch (header.type) {
    case FrameType::kPut:
      return OnPut(header, body);
    case FrameType::kPutCommit:
    case FrameType::kPutAbort:
      return OnPutEnd(header, body);
    case FrameType::kPutAck:
      return OnPutAck(header, body);
    case FrameType::kGet:
      return OnGet(header);
    case FrameType::kGetDone:
      return OnGetDone(header, body);
    case FrameType::kGetAbort:
      OnGetAbort(header);
      return Status::Ok();
    case FrameType::kMessage:
      OnMessage(header, body);
      return Status::Ok();
    case FrameType::kFlush:
      Answer(FrameType::kFlushAck, header.op, 0, Status::Ok());
      return Status::Ok();
    case FrameType::kFlushAck:
      OnFlushAck(header);
      return Status::Ok();
    case FrameType::kPing:
      Answer(FrameType::kPong, 0, 0, Status::Ok());
      return Status::Ok();
    case FrameType::kPong:
      return Status::Ok();
    case FrameType::kBye:
      return Unavailable("the peer closed the connection");
    case FrameType::kPutData:
    case FrameType::kPutRef:
    case FrameType::kGetData:
    case FrameType::kGetRef:
    case FrameType::kSlotFree:
    case FrameType::kReads:
      break;
  }
  return InvalidArgument("frame of type " + std::to_string(static_cast<int>(header.type)) +
                         " does not belong here");
}

void Session::Answer(FrameType type, std::uint64_t op, std::uint64_t total, const Status& status) {
  FrameHeader header;
  header.type = type;
  header.op = op;
  header.total = total;
  header.status = static_cast<std::uint8_t>(status.code());
  link_->SendFrame(header, status.message().substr(0, kMaxErrorBytes), {});
}

Status Session::Notify(Channel channel, std::string_view notice) {
  if (notice.empty()) return Status::Ok();
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(notice.data()),
                                         notice.size());
  if (core_->HookOf(channel).Call(shared_from_this(), bytes)) return Status::Ok();
  core_->counters.messages_dropped.fetch_add(1, std::memory_order_relaxed);
  return FailedPrecondition("nobody listens to channel " + std::to_string(channel));
}

void Session::OnMessage(const FrameHeader& header, std::string_view body) {
  count().messages_received.fetch_add(1, std::memory_order_relaxed);
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(body.data()),
                                         body.size());
  if (core_->HookOf(header.channel).Call(shared_from_this(), bytes)) return;
  if (core_->counters.messages_dropped.fetch_add(1, std::memory_order_relaxed) == 0) {
    Log(LogLevel::kWarning, "transport: dropped a message for channel " +
                                std::to_string(header.channel) + ", which has no handler");
  }
}

Status Session::OnPut(const FrameHeader& header, std::string_view body) {
  Status status;
  auto record = core_->regions->Check(header.key, header.offset, header.total, Access::kWrite);
  if (!record.ok()) {
    status = record.status();
    core_->counters.refused.fetch_add(1, std::memory_order_relaxed);
  } else {
    GatePass pass(&(*record)->gate);
    if (!pass) {
      status = Revoked();
    } else if (header.total > 0) {
      std::memcpy((*record)->data + header.offset, body.data(), header.total);
    }
  }
  if (status.ok()) {
    count().bytes_received.fetch_add(header.total, std::memory_order_relaxed);
    status = Notify(header.channel, body.substr(header.total));
  }
  Answer(FrameType::kPutAck, header.op, 0, status);
  return Status::Ok();
}

Place Session::BeginPiece(const FrameHeader& header) {
  const bool put = header.type == FrameType::kPutData || header.type == FrameType::kPutRef;
  return put ? BeginPutPiece(header) : BeginGetPiece(header);
}

Place Session::BeginPutPiece(const FrameHeader& header) {
  const std::uint64_t n = header.type == FrameType::kPutRef ? header.total : header.payload_bytes;
  auto record = core_->regions->Check(header.key, header.offset, n, Access::kWrite);
  std::lock_guard lock(mutex_);
  if (!status_.ok()) return {};
  if (incoming_.size() >= kMaxOpen && incoming_.count(header.op) == 0) return {};
  Incoming& incoming = incoming_[header.op];
  if (incoming.total == 0) {
    incoming.key = header.key;
    incoming.total = header.total;
  }
  Status why = record.status();
  if (why.ok() && (incoming.key != header.key || incoming.total != header.total)) {
    why = InvalidArgument("pieces of one put name different regions or lengths");
  }
  if (!why.ok()) {
    if (incoming.failure.ok()) {
      incoming.failure = why;
      core_->counters.refused.fetch_add(1, std::memory_order_relaxed);
    }
    return {};
  }
  Place place;
  place.gate = &(*record)->gate;
  place.to = (*record)->data + header.offset;
  place.holder = std::move(*record);
  return place;
}

Place Session::BeginGetPiece(const FrameHeader& header) {
  const std::shared_ptr<Op> op = FindOp(header.op);
  if (op == nullptr || op->kind != Op::Kind::kGet || op->total != header.total) return {};
  const std::uint64_t at = header.type == FrameType::kGetRef ? 0 : header.offset;
  Place place;  // DecodeHeader has checked that the piece lies in `total`
  place.gate = &op->gate;
  place.to = op->into + at;
  place.holder = op;
  return place;
}

void Session::EndPiece(const FrameHeader& header, const Status& placed) {
  if (header.type == FrameType::kGetData || header.type == FrameType::kGetRef) {
    const std::shared_ptr<Op> op = FindOp(header.op);
    if (op == nullptr || !placed.ok()) return;  // ended early, or about to be
    bool whole = false;
    {
      std::lock_guard lock(mutex_);
      op->received += header.type == FrameType::kGetRef ? header.total : header.payload_bytes;
      whole = op->answered && op->received >= op->total;
    }
    if (whole) End(op, Status::Ok());
    return;
  }
  std::unique_lock lock(mutex_);
  const auto it = incoming_.find(header.op);
  if (it == incoming_.end()) return;
  Incoming& incoming = it->second;
  incoming.received += header.type == FrameType::kPutRef ? header.total : header.payload_bytes;
  if (incoming.failure.ok()) incoming.failure = placed;
  if (!incoming.ended || incoming.received < incoming.expected) return;
  Incoming done = std::move(incoming);
  incoming_.erase(it);
  lock.unlock();
  FinishIncoming(header.op, std::move(done));
}

Status Session::OnPutEnd(const FrameHeader& header, std::string_view notice) {
  std::unique_lock lock(mutex_);
  if (incoming_.size() >= kMaxOpen && incoming_.count(header.op) == 0) {
    return InvalidArgument("the peer has too many puts open");
  }
  Incoming& incoming = incoming_[header.op];
  if (incoming.ended) return InvalidArgument("a put was committed twice");
  incoming.ended = true;
  incoming.aborted = header.type == FrameType::kPutAbort;
  // An abort says how many bytes its pieces had, so that late ones find what they belong to.
  incoming.expected = incoming.aborted ? header.offset : header.total;
  incoming.channel = header.channel;
  incoming.notice = notice;
  if (incoming.received < incoming.expected) return Status::Ok();
  Incoming done = std::move(incoming);
  incoming_.erase(header.op);
  lock.unlock();
  FinishIncoming(header.op, std::move(done));
  return Status::Ok();
}

void Session::FinishIncoming(std::uint64_t op, Incoming done) {
  Status status = done.aborted ? Cancelled("the put was called off") : done.failure;
  if (status.ok() && done.received != done.expected) {
    status = InvalidArgument("the pieces of the put are longer than the whole");
  }
  if (status.ok()) {
    count().bytes_received.fetch_add(done.received, std::memory_order_relaxed);
    status = Notify(done.channel, done.notice);
  }
  Answer(FrameType::kPutAck, op, 0, status);
}

Status Session::OnPutAck(const FrameHeader& header, std::string_view body) {
  const std::shared_ptr<Op> op = FindOp(header.op);
  if (op != nullptr && op->kind != Op::Kind::kPut) {
    return InvalidArgument("answer to a put that was none");
  }
  Settle(header.op, op);
  if (op != nullptr) End(op, FromPeer(header, body));
  return Status::Ok();
}

Status Session::OnGet(const FrameHeader& header) {
  auto record = core_->regions->Check(header.key, header.offset, header.total, Access::kRead);
  if (!record.ok()) {
    core_->counters.refused.fetch_add(1, std::memory_order_relaxed);
    Answer(FrameType::kGetDone, header.op, header.total, record.status());
    return Status::Ok();
  }
  RegionRecord& region = **record;
  const std::byte* from = region.data + header.offset;
  FrameHeader reply;
  reply.op = header.op;
  reply.total = header.total;
  if (header.total <= kSmallBytes) {
    GatePass pass(&region.gate);
    if (!pass) {
      Answer(FrameType::kGetDone, header.op, header.total, Revoked());
      return Status::Ok();
    }
    reply.type = FrameType::kGetDone;
    link_->SendFrame(reply, {reinterpret_cast<const char*>(from), header.total}, {});
    count().bytes_sent.fetch_add(header.total, std::memory_order_relaxed);
  } else if (link_->peer_reads_us()) {
    reply.type = FrameType::kGetRef;
    reply.ref = reinterpret_cast<std::uint64_t>(from);
    const Validity validity{reinterpret_cast<std::uint64_t>(region.word), region.word_value};
    link_->SendFrame(reply, {reinterpret_cast<const char*>(&validity), sizeof(validity)}, {});
    count().bytes_sent.fetch_add(header.total, std::memory_order_relaxed);
  } else {
    auto outgoing = std::make_shared<Outgoing>();
    outgoing->piece = reply;
    outgoing->piece.type = FrameType::kGetData;
    outgoing->data = from;
    outgoing->gate = &region.gate;
    outgoing->holder = std::move(*record);
    {
      std::lock_guard lock(mutex_);
      if (!status_.ok()) return Status::Ok();
      if (serving_.size() >= kMaxOpen || !serving_.emplace(header.op, outgoing).second) {
        return InvalidArgument("the peer has too many gets open, or one twice");
      }
    }
    link_->SendPayload(std::move(outgoing));
  }
  return Status::Ok();
}

Status Session::OnGetDone(const FrameHeader& header, std::string_view body) {
  const std::shared_ptr<Op> op = FindOp(header.op);
  if (op == nullptr) return Status::Ok();
  if (op->kind != Op::Kind::kGet) return InvalidArgument("answer to a get that was none");
  if (header.status != 0) {
    End(op, FromPeer(header, body));
    return Status::Ok();
  }
  if (op->total <= kSmallBytes) {
    if (body.size() != op->total) return InvalidArgument("answer to a get of the wrong length");
    {
      GatePass pass(&op->gate);
      if (!pass) return Status::Ok();
      if (!body.empty()) std::memcpy(op->into, body.data(), body.size());
    }
    End(op, Status::Ok());
    return Status::Ok();
  }
  bool whole = false;
  {
    std::lock_guard lock(mutex_);
    op->answered = true;
    whole = op->received >= op->total;
  }
  if (whole) End(op, Status::Ok());
  return Status::Ok();
}

void Session::OnGetAbort(const FrameHeader& header) {
  std::lock_guard lock(mutex_);
  const auto it = serving_.find(header.op);
  if (it != serving_.end()) it->second->aborted = true;
}

void Session::OnFlushAck(const FrameHeader& header) {
  const std::shared_ptr<Op> op = FindOp(header.op);
  if (op == nullptr || op->kind != Op::Kind::kFlush) return;
  std::shared_ptr<Op> flush;
  {
    std::lock_guard lock(mutex_);
    op->answered = true;
    flush = FlushedLocked();
  }
  if (flush != nullptr) End(flush, Status::Ok());
}

void Session::OnSent(const std::shared_ptr<Outgoing>& outgoing) {
  const FrameHeader& piece = outgoing->piece;
  if (piece.type == FrameType::kGetData) {
    {
      std::lock_guard lock(mutex_);
      serving_.erase(piece.op);
    }
    if (outgoing->torn) {
      Answer(FrameType::kGetDone, piece.op, piece.total, Revoked());
    } else if (!outgoing->aborted) {
      count().bytes_sent.fetch_add(piece.total, std::memory_order_relaxed);
      Answer(FrameType::kGetDone, piece.op, piece.total, Status::Ok());
    }
    return;
  }
  FrameHeader end = piece;
  end.payload_bytes = 0;
  const std::shared_ptr<Op> op = FindOp(piece.op);
  if (op == nullptr || outgoing->torn) {
    end.type = FrameType::kPutAbort;
    end.offset = outgoing->next;
    link_->SendFrame(end, {}, {});
  } else {
    end.type = FrameType::kPutCommit;
    link_->SendFrame(end, op->notice, {});
  }
}

}  // namespace arcflow::transport
