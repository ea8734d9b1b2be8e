// SPDX-License-Identifier: Apache-2.0
// Session, this side's operations: how they begin, how they end, and what ends them early.
#include "arcflow/transport/session.h"

#include <algorithm>
#include <utility>

namespace arcflow::transport {
namespace {

std::string_view Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

Session::Session(std::shared_ptr<Core> core, BackendKind kind, const NodeId& peer)
    : core_(std::move(core)), kind_(kind), peer_(peer) {}

Session::~Session() = default;

void Session::Start(std::shared_ptr<Link> link) {
  heard_ns_ = Nanoseconds();
  pinged_ns_ = Nanoseconds();
  link_ = std::move(link);
}

Status Session::status() const {
  std::lock_guard lock(mutex_);
  return status_;
}

std::string Session::detail() const { return link_->detail(); }

std::string Session::Describe(const Op& op) const {
  const std::string who =
      " node " + peer_.ToString().substr(0, 8) + " by " + std::string(backend());
  switch (op.kind) {
    case Op::Kind::kPut:
      return "put of " + std::to_string(op.total) + " bytes to" + who;
    case Op::Kind::kGet:
      return "get of " + std::to_string(op.total) + " bytes from" + who;
    case Op::Kind::kFlush:
      break;
  }
  return "flush to" + who;
}

Status Session::CheckRemote(const RemoteRegion& region, std::uint64_t offset, std::uint64_t n,
                            Access wanted) const {
  if (region.owner != peer_) {
    return InvalidArgument("the region belongs to node " + region.owner.ToString().substr(0, 8) +
                           ", not to this peer");
  }
  if (n > region.size_bytes || offset > region.size_bytes - n || n > kMaxTotalBytes) {
    return InvalidArgument(std::to_string(n) + " bytes at " + std::to_string(offset) +
                           " do not lie in the peer's region of " +
                           std::to_string(region.size_bytes) + " bytes");
  }
  if (wanted == Access::kRead ? !CanRead(region.access) : !CanWrite(region.access)) {
    return InvalidArgument(wanted == Access::kRead ? "the peer's region is not readable"
                                                   : "the peer's region is not writable");
  }
  return Status::Ok();
}

bool Session::Begin(const std::shared_ptr<Op>& op, const Status& refused) {
  Status why = refused;
  {
    std::lock_guard lock(mutex_);
    op->id = next_op_++;
    if (why.ok()) why = status_;
    if (why.ok()) ops_.emplace(op->id, op);
  }
  if (!why.ok()) {
    // Never inside the call; when the threads are gone (~Context) nobody is left to be told.
    core_->reactors.front()->Post(
        [done = std::move(op->done), why = why.WithContext(Describe(*op))] { done(why); });
    return false;
  }
  if (!op->deadline.infinite()) core_->reactors.front()->WantTicks(1);
  return true;
}

OpId Session::Put(std::span<const std::byte> from, const RemoteRegion& to,
                  std::uint64_t offset_bytes, const PutOptions& options, Done done) {
  auto op = std::make_shared<Op>();
  op->kind = Op::Kind::kPut;
  op->deadline = options.deadline;
  op->done = std::move(done);
  op->total = from.size();
  op->channel = options.channel;
  op->notice = options.notice;
  Status refused = CheckRemote(to, offset_bytes, from.size(), Access::kWrite);
  if (options.notice.size() > kMaxMessageBytes) {
    refused =
        InvalidArgument("a notice has at most " + std::to_string(kMaxMessageBytes) + " bytes");
  }
  if (!Begin(op, refused)) return op->id;

  FrameHeader header;
  header.op = op->id;
  header.key = to.key;
  header.offset = offset_bytes;
  header.total = from.size();
  header.channel = options.channel;
  if (from.size() <= kSmallBytes) {
    GatePass pass(&op->gate);  // false: ended already, by a deadline in the past or a dead peer
    if (!pass) {
      Settle(op->id, op);
      return op->id;
    }
    header.type = FrameType::kPut;
    link_->SendFrame(header, Text(from), op->notice);
  } else if (link_->peer_reads_us()) {
    GatePass pass(&op->gate);
    if (!pass) {
      Settle(op->id, op);
      return op->id;
    }
    ValidityTable::Word* word = core_->regions->words().Take();
    const Validity validity{reinterpret_cast<std::uint64_t>(word),
                            word->load(std::memory_order_relaxed)};
    {
      std::lock_guard lock(mutex_);
      op->word = word;  // given back by End, which waits for this pass
    }
    header.type = FrameType::kPutRef;
    header.ref = reinterpret_cast<std::uint64_t>(from.data());
    link_->SendFrame(header, {reinterpret_cast<const char*>(&validity), sizeof(validity)},
                     op->notice);
  } else {
    auto outgoing = std::make_shared<Outgoing>();
    header.type = FrameType::kPutData;
    outgoing->piece = header;
    outgoing->data = from.data();
    outgoing->holder = op;
    outgoing->gate = &op->gate;
    link_->SendPayload(std::move(outgoing));
  }
  return op->id;
}

OpId Session::Get(std::span<std::byte> into, const RemoteRegion& from, std::uint64_t offset_bytes,
                  Deadline deadline, Done done) {
  auto op = std::make_shared<Op>();
  op->kind = Op::Kind::kGet;
  op->deadline = deadline;
  op->done = std::move(done);
  op->into = into.data();
  op->total = into.size();
  if (!Begin(op, CheckRemote(from, offset_bytes, into.size(), Access::kRead))) return op->id;
  FrameHeader header;
  header.type = FrameType::kGet;
  header.op = op->id;
  header.key = from.key;
  header.offset = offset_bytes;
  header.total = into.size();
  link_->SendFrame(header, {}, {});
  return op->id;
}

OpId Session::Flush(Deadline deadline, Done done) {
  auto op = std::make_shared<Op>();
  op->kind = Op::Kind::kFlush;
  op->deadline = deadline;
  op->done = std::move(done);
  if (!Begin(op, Status::Ok())) return op->id;
  FrameHeader header;
  header.type = FrameType::kFlush;
  header.op = op->id;
  link_->SendFrame(header, {}, {});
  return op->id;
}

Status Session::Send(Channel channel, std::span<const std::byte> message) {
  if (message.size() > kMaxMessageBytes) {
    return InvalidArgument("a message has at most " + std::to_string(kMaxMessageBytes) +
                           " bytes, not " + std::to_string(message.size()));
  }
  ARC_TRY(status());
  if (link_->queued_bytes() + message.size() > core_->options.max_queued_bytes) {
    return ResourceExhausted("node " + peer_.ToString().substr(0, 8) + " takes no messages: " +
                             std::to_string(link_->queued_bytes()) + " bytes wait for it");
  }
  FrameHeader header;
  header.type = FrameType::kMessage;
  header.channel = channel;
  link_->SendFrame(header, Text(message), {});
  count().messages_sent.fetch_add(1, std::memory_order_relaxed);
  return Status::Ok();
}

std::shared_ptr<Session::Op> Session::FindOp(OpId id) {
  std::lock_guard lock(mutex_);
  const auto it = ops_.find(id);
  return it == ops_.end() ? nullptr : it->second;
}

void Session::SendAbort(const Op& op) {
  if (op.kind != Op::Kind::kGet) return;  // a put's pieces stop at the closed gate
  FrameHeader header;
  header.type = FrameType::kGetAbort;
  header.op = op.id;
  link_->SendFrame(header, {}, {});
}

void Session::End(const std::shared_ptr<Op>& op, const Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (op->ending) return;
    op->ending = true;
  }
  op->gate.Close();
  {
    std::lock_guard lock(mutex_);
    if (op->word != nullptr) ValidityTable::Revoke(op->word);
  }
  core_->regions->Drain(op->gate);
  if (op->word != nullptr) core_->regions->words().Give(op->word);
  std::shared_ptr<Op> flush;
  {
    std::lock_guard lock(mutex_);
    ops_.erase(op->id);
    if (op->kind == Op::Kind::kPut && !op->answered && status_.ok()) trailing_.insert(op->id);
    flush = FlushedLocked();
  }
  ended_.notify_all();
  if (!op->deadline.infinite()) core_->reactors.front()->WantTicks(-1);
  if (status.ok() && op->kind == Op::Kind::kPut) {
    count().puts.fetch_add(1, std::memory_order_relaxed);
    count().bytes_sent.fetch_add(op->total, std::memory_order_relaxed);
  } else if (status.ok() && op->kind == Op::Kind::kGet) {
    count().gets.fetch_add(1, std::memory_order_relaxed);
    count().bytes_received.fetch_add(op->total, std::memory_order_relaxed);
  }
  op->done(status.ok() ? status : status.WithContext(Describe(*op)));
  op->done = nullptr;  // what it captured need not live as long as a queued piece
  if (flush != nullptr) End(flush, Status::Ok());
}

std::shared_ptr<Session::Op> Session::FlushedLocked() const {
  if (ops_.empty()) return nullptr;
  const auto& first = ops_.begin()->second;
  const bool done = first->kind == Op::Kind::kFlush && first->answered && !first->ending &&
                    (trailing_.empty() || *trailing_.begin() > first->id);
  return done ? first : nullptr;
}

void Session::Settle(OpId id, const std::shared_ptr<Op>& op) {
  std::shared_ptr<Op> flush;
  {
    std::lock_guard lock(mutex_);
    if (op != nullptr) op->answered = true;
    trailing_.erase(id);
    flush = FlushedLocked();
  }
  if (flush != nullptr) End(flush, Status::Ok());
}

void Session::Cancel(OpId id) {
  const std::shared_ptr<Op> op = FindOp(id);
  if (op == nullptr) return;
  SendAbort(*op);
  End(op, Cancelled("cancelled by the caller"));
  // Another thread may be ending it; its wait for copies may need this thread (ucx).
  op->gate.Close();
  core_->regions->Drain(op->gate);
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return ops_.count(id) == 0; });
}

void Session::Close() { Fail(Cancelled("the endpoint was closed on this side"), true); }

void Session::Fail(const Status& status, bool say_bye) {
  std::vector<std::shared_ptr<Op>> ops;
  {
    std::lock_guard lock(mutex_);
    if (!status_.ok()) return;
    status_ = status;
    for (const auto& [id, op] : ops_) ops.push_back(op);
    incoming_.clear();
    for (const auto& [id, outgoing] : serving_) outgoing->aborted = true;
    serving_.clear();
  }
  if (status.code() == Code::kUnavailable) {
    core_->counters.peers_lost.fetch_add(1, std::memory_order_relaxed);
  }
  link_->Shutdown(say_bye);
  for (const auto& op : ops) End(op, status);
  const auto self = Self();
  if (core_->forget) core_->forget(self);
  core_->peer_down.Call(self, status);
}

void Session::Tick() {
  std::vector<std::shared_ptr<Op>> late;
  {
    std::lock_guard lock(mutex_);
    if (!status_.ok()) return;
    for (const auto& [id, op] : ops_) {
      if (!op->ending && op->deadline.expired()) late.push_back(op);
    }
  }
  for (const auto& op : late) {
    SendAbort(*op);
    End(op, DeadlineExceeded("the deadline passed"));
  }
  const std::int64_t now = Nanoseconds();
  const std::int64_t limit = core_->options.silence_limit.count();
  const std::int64_t pause = now - std::exchange(ticked_ns_, now);
  if (pause > std::max(limit / 4, 4 * std::chrono::nanoseconds(Reactor::kSlowTick).count())) {
    Heard();  // this process itself stood still: what the peer sent meanwhile is not read yet
  }
  const std::int64_t silent = now - heard_ns_.load(std::memory_order_relaxed);
  if (silent > limit) {
    Fail(Unavailable("node " + peer_.ToString().substr(0, 8) + " has been silent for " +
                     std::to_string(silent / 1'000'000) +
                     " ms: it is stopped, overloaded or cut off (ContextOptions::silence_limit)"),
         false);
  } else if (silent > limit / 4 && now - pinged_ns_.load(std::memory_order_relaxed) > limit / 4) {
    pinged_ns_.store(now, std::memory_order_relaxed);
    FrameHeader ping;
    ping.type = FrameType::kPing;
    link_->SendFrame(ping, {}, {});
  }
}

}  // namespace arcflow::transport
