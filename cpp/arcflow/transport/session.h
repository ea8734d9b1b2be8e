// SPDX-License-Identifier: Apache-2.0
// Session: the protocol between two contexts, the same over every backend. Internal to this layer.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "arcflow/transport/core.h"
#include "arcflow/transport/endpoint.h"
#include "arcflow/transport/link.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport {

/// An endpoint: keeps the operations of this side, checks and answers those of the peer.
/// Threads: any. No lock is held while the link, a callback or a gate is waited for.
/// Lifetime: shared by the context, the user and, weakly, its link.
class Session final : public Endpoint {
 public:
  Session(std::shared_ptr<Core> core, BackendKind kind, const NodeId& peer);
  ~Session() override;
  /// Gives it its link; frames may come from now on.
  void Start(std::shared_ptr<Link> link);
  std::shared_ptr<Session> Self() { return std::static_pointer_cast<Session>(shared_from_this()); }

  // Endpoint
  OpId Put(std::span<const std::byte> from, const RemoteRegion& to, std::uint64_t offset_bytes,
           const PutOptions& options, Done done) override;
  OpId Get(std::span<std::byte> into, const RemoteRegion& from, std::uint64_t offset_bytes,
           Deadline deadline, Done done) override;
  OpId Flush(Deadline deadline, Done done) override;
  Status Send(Channel channel, std::span<const std::byte> message) override;
  void Cancel(OpId op) override;
  void Close() override;
  Status status() const override;
  std::string_view backend() const override { return BackendKindName(kind_); }
  std::string detail() const override;
  const NodeId& peer() const override { return peer_; }

  // For the link.
  /// A whole frame other than a piece. An error is a breach of the protocol: the link is to call
  /// OnLinkDown with it.
  Status OnFrame(const FrameHeader& header, std::string_view body);
  /// Where a piece goes (also kPutRef and kGetRef, as one piece of `total` bytes), after every
  /// check. Each call is followed by one of EndPiece with the same header.
  Place BeginPiece(const FrameHeader& header);
  /// `placed`: OK when every byte went where BeginPiece said, else why not.
  void EndPiece(const FrameHeader& header, const Status& placed);
  /// For a piece whose gate was closed on the way.
  static Status Revoked() { return NotFound("the region was deregistered meanwhile"); }
  void OnSent(const std::shared_ptr<Outgoing>& outgoing);
  void OnLinkDown(const Status& status) { Fail(status, false); }
  /// Something came from the peer.
  void Heard() { heard_ns_.store(Nanoseconds(), std::memory_order_relaxed); }

  // For the context: deadlines and pings.
  void Tick();

 private:
  struct Op;
  struct Incoming;  // a peer's put that is not whole yet

  static std::int64_t Nanoseconds() {
    return std::chrono::steady_clock::now().time_since_epoch().count();
  }
  Status CheckRemote(const RemoteRegion& region, std::uint64_t offset, std::uint64_t n,
                     Access wanted) const;
  /// Enters it into ops_, or hands `done` the reason why not.
  bool Begin(const std::shared_ptr<Op>& op, const Status& refused);
  void End(const std::shared_ptr<Op>& op, const Status& status);
  /// Nothing of this put will reach the peer's memory any more. `op`: while it is in ops_.
  void Settle(OpId id, const std::shared_ptr<Op>& op);
  /// The flush that has nothing left to wait for, if any.
  std::shared_ptr<Op> FlushedLocked() const;
  void SendAbort(const Op& op);
  std::shared_ptr<Op> FindOp(OpId id);
  std::string Describe(const Op& op) const;
  void Fail(const Status& status, bool say_bye);

  // Incoming: session_incoming.cc
  Status OnPut(const FrameHeader& header, std::string_view body);
  Status OnPutEnd(const FrameHeader& header, std::string_view notice);
  Status OnPutAck(const FrameHeader& header, std::string_view body);
  Status OnGet(const FrameHeader& header);
  Status OnGetDone(const FrameHeader& header, std::string_view body);
  void OnGetAbort(const FrameHeader& header);
  void OnMessage(const FrameHeader& header, std::string_view body);
  void OnFlushAck(const FrameHeader& header);
  Place BeginPutPiece(const FrameHeader& header);
  Place BeginGetPiece(const FrameHeader& header);
  /// Ends a put of the peer that has all its bytes and its commit.
  void FinishIncoming(std::uint64_t op, Incoming done);
  void Answer(FrameType type, std::uint64_t op, std::uint64_t total, const Status& status);
  /// Gives a notice to its handler; FailedPrecondition without one.
  Status Notify(Channel channel, std::string_view notice);
  BackendCounters& count() { return core_->counters.of(kind_); }

  const std::shared_ptr<Core> core_;
  const BackendKind kind_;
  const NodeId peer_;
  std::shared_ptr<Link> link_;
  std::atomic<std::int64_t> heard_ns_{0};
  std::atomic<std::int64_t> pinged_ns_{0};
  std::int64_t ticked_ns_ = 0;  // the reactor's thread only

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  Status status_;
  OpId next_op_ = 1;
  std::map<OpId, std::shared_ptr<Op>> ops_;
  std::set<OpId> trailing_;  // puts that ended here before the peer's answer came
  std::unordered_map<std::uint64_t, Incoming> incoming_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Outgoing>> serving_;  // gets of the peer
};

struct Session::Op {
  enum class Kind : std::uint8_t { kPut, kGet, kFlush };
  Kind kind = Kind::kPut;
  OpId id = 0;
  Deadline deadline = Deadline::Infinite();
  Done done;
  Gate gate;  // of `from` or `into`
  std::byte* into = nullptr;
  std::uint64_t total = 0;
  Channel channel = 0;
  std::string notice;
  ValidityTable::Word* word = nullptr;
  // Under the session's lock.
  std::uint64_t received = 0;  // get: bytes placed
  bool answered = false;       // get: all have been sent; put, flush: the peer has answered
  bool ending = false;
};

struct Session::Incoming {
  std::uint64_t key = 0;
  std::uint64_t total = 0;
  std::uint64_t received = 0;  // placed or thrown away
  std::uint64_t expected = 0;  // once `ended`
  bool ended = false;          // commit or abort has come
  bool aborted = false;
  Status failure;  // why pieces were thrown away
  Channel channel = 0;
  std::string notice;
};

}  // namespace arcflow::transport
