// SPDX-License-Identifier: Apache-2.0
// Endpoint: one connected peer; put, get, flush and small messages, each with a deadline.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/transport/region.h"

namespace arcflow::transport {

/// Called once with the outcome, on a thread of the transport, never inside the call that started
/// the operation and never under a lock of ours (a Cancel() may run it inside itself). Must not
/// block and must not throw: it holds up every peer of that thread. It may start operations,
/// deregister regions and cancel other operations.
using Done = std::function<void(Status)>;

/// Names an operation of one endpoint, for Cancel(); never 0, never used twice.
using OpId = std::uint64_t;

/// Selects the handler at the peer (Context::Handle).
using Channel = std::uint16_t;

/// Largest message of Send() and largest notice of a Put.
inline constexpr std::size_t kMaxMessageBytes = std::size_t{32} << 10;

struct PutOptions {
  Deadline deadline = Deadline::Infinite();
  /// Non-empty: given to the peer's handler of `channel` once all bytes are in its region, and only
  /// then. Saves a message and the wait for the Put's end.
  std::string_view notice;
  Channel channel = 0;
};

/// A peer as seen from here. Both sides of a connection have one and may use it alike.
///
/// Operations are asynchronous and unordered among each other; any number may be outstanding. Only
/// messages (Send) keep their order among themselves. What must come after a Put's bytes goes into
/// its notice, or follows its `done`.
///
/// Memory rule: `from` and `into` belong to the transport until `done` is called or Cancel()
/// returned; from then on it neither reads nor writes them. A Put that did not end with OK may have
/// written all of its bytes, some or none, and, at the peer, goes on to do so for a while: until a
/// Flush() that is started afterwards has ended. But if its notice is delivered, the bytes are
/// whole and what they were before `done`.
///
/// Errors given to `done`: InvalidArgument (larger than the region, region of another node, wrong
/// access; before anything is sent), NotFound (the peer has no such region any more, or never had),
/// FailedPrecondition (no handler for the notice's channel), DeadlineExceeded, Cancelled (by
/// Cancel() or Close()), Unavailable (the peer died, was cut off, or is silent; within a second of
/// its death). After Unavailable the endpoint is of no more use: Connect() anew.
///
/// Threads: all calls from any thread; none blocks unless it says so. Lifetime: the context holds
/// it too; it must not be used after Context's destructor, which ends every operation.
class Endpoint : public std::enable_shared_from_this<Endpoint> {
 public:
  virtual ~Endpoint() = default;

  /// Writes `from` into the peer's region at `offset_bytes`. `done(OK)`: the bytes are in place.
  /// Zero bytes are allowed and deliver the notice.
  virtual OpId Put(std::span<const std::byte> from, const RemoteRegion& to,
                   std::uint64_t offset_bytes, const PutOptions& options, Done done) = 0;
  /// Reads from the peer's region at `offset_bytes` into `into`.
  virtual OpId Get(std::span<std::byte> into, const RemoteRegion& from, std::uint64_t offset_bytes,
                   Deadline deadline, Done done) = 0;
  /// `done(OK)` when every operation started before on this endpoint has ended (well or not), none
  /// of them will touch the peer's memory any more (cancelled ones included), and every message
  /// sent before has been handed to its handler.
  virtual OpId Flush(Deadline deadline, Done done) = 0;
  /// Sends a message; the bytes are copied. OK means queued: Flush() or an answer tells more.
  /// Errors: InvalidArgument over kMaxMessageBytes, ResourceExhausted when
  /// ContextOptions::max_queued_bytes wait, Unavailable.
  virtual Status Send(Channel channel, std::span<const std::byte> message) = 0;

  /// Ends an operation early; blocks until its memory is the caller's again. `done` has been or
  /// will be called exactly once: with Cancelled, or with the outcome if that came first. No-op for
  /// one that has ended. Cost: waits for one running copy, never for the peer (ucx: see Region).
  virtual void Cancel(OpId op) = 0;
  /// Ends the connection; every operation gets Cancelled, inside this call. The peer sees
  /// Unavailable. Idempotent.
  virtual void Close() = 0;

  /// OK while the connection is up, else why it is not.
  virtual Status status() const = 0;
  /// "shm", "rdma", "tcp", "ucx".
  virtual std::string_view backend() const = 0;
  /// How the backend moves bytes to this peer, for people: "process_vm_readv", "shared segment",
  /// "4 connections to 10.0.0.2:4711", "rc_verbs on mlx5_0:1".
  virtual std::string detail() const = 0;
  virtual const NodeId& peer() const = 0;

  /// The same, blocking until the end. FailedPrecondition on a thread of the transport.
  Status PutAndWait(std::span<const std::byte> from, const RemoteRegion& to,
                    std::uint64_t offset_bytes, const PutOptions& options);
  Status GetAndWait(std::span<std::byte> into, const RemoteRegion& from, std::uint64_t offset_bytes,
                    Deadline deadline);
  Status FlushAndWait(Deadline deadline);
};

}  // namespace arcflow::transport
