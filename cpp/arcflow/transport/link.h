// SPDX-License-Identifier: Apache-2.0
// Link: what a backend has to do for a session. Internal to this layer.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"
#include "arcflow/transport/gate.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport {

/// Payload on its way out: of a put, or of the answer to a get. Shared by session and link; the
/// link cuts it into pieces.
struct Outgoing {
  FrameHeader piece;  // type, op, key, total; offset is that of the first byte
  const std::byte* data = nullptr;
  std::shared_ptr<void> holder;      // keeps the gate
  Gate* gate = nullptr;              // hold it while reading data
  std::atomic<bool> aborted{false};  // the peer wants no more of it

  // The link's own; next and in_flight under its lock.
  std::uint64_t next = 0;         // first byte that is in no piece yet
  std::uint32_t in_flight = 0;    // pieces handed out and not finished
  std::atomic<bool> torn{false};  // a piece could not be read whole: must not be committed
};

/// Where a piece goes. Empty gate: nowhere, to be read and thrown away.
struct Place {
  std::shared_ptr<void> holder;
  Gate* gate = nullptr;  // hold it while writing; false means throw away from here on
  std::byte* to = nullptr;
};

/// Moves frames and payload of one session. Threads: any, none blocks. A link calls its session
/// (OnFrame, BeginPiece, EndPiece, OnSent, OnLinkDown) on transport threads, never inside the calls
/// below.
class Link {
 public:
  virtual ~Link() = default;
  /// Queues a frame whose inline bytes are `first` and `second` (copied); frames stay in order.
  virtual void SendFrame(const FrameHeader& header, std::string_view first,
                         std::string_view second) = 0;
  /// Sends the payload in pieces, then calls Session::OnSent. Not for links by reference.
  virtual void SendPayload(std::shared_ptr<Outgoing> outgoing) = 0;
  /// Whether the peer copies payload out of our memory by itself (kPutRef, kGetRef).
  virtual bool peer_reads_us() const { return false; }
  /// Bytes of frames that wait to be sent.
  virtual std::size_t queued_bytes() const = 0;
  /// Ends it, after a farewell if that needs no waiting. Idempotent.
  virtual void Shutdown(bool say_bye) = 0;
  virtual std::string detail() const = 0;
};

}  // namespace arcflow::transport
