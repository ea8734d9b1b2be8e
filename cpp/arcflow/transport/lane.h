// SPDX-License-Identifier: Apache-2.0
// Lane: one stream socket that carries frames and, for some links, payload. Internal to this layer.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/transport/link.h"
#include "arcflow/transport/reactor.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport {

/// A piece of payload that a lane is to send.
struct LanePiece {
  std::shared_ptr<Outgoing> outgoing;
  FrameHeader header;
  const std::byte* data = nullptr;
};

/// What a lane asks of the link it belongs to. All on the lane's reactor thread.
class LaneOwner {
 public:
  virtual ~LaneOwner() = default;
  virtual Status OnLaneFrame(const FrameHeader& header, std::string_view body) = 0;
  virtual void OnLaneBytes() = 0;  // the peer is alive
  virtual void OnLaneDown(const Status& status) = 0;
  // Only for lanes whose pieces are in the stream.
  virtual Place OnPieceBegin(const FrameHeader& header) = 0;
  virtual void OnPieceEnd(const FrameHeader& header, bool placed) = 0;
  virtual std::optional<LanePiece> NextPiece() = 0;
  virtual void OnPieceSent(const LanePiece& piece) = 0;
};

/// Threads: Send, KickPieces, Close from any; none waits for the peer. Lifetime: its reactor keeps
/// it until Close(); the owner is held weakly.
class Lane : public std::enable_shared_from_this<Lane> {
 public:
  /// `pieces_in_stream`: payload follows the header of a piece (tcp).
  static std::shared_ptr<Lane> Create(Fd socket, Reactor& reactor, bool pieces_in_stream);
  /// Starts to read. The socket becomes non-blocking.
  Status Start(std::weak_ptr<LaneOwner> owner);

  void Send(const FrameHeader& header, std::string_view first, std::string_view second);
  /// There is something for NextPiece().
  void KickPieces();
  void Close();
  std::size_t queued_bytes() const { return queued_.load(std::memory_order_relaxed); }

 private:
  enum class Sent : std::uint8_t { kAll, kLater, kFailed };

  Lane(Fd socket, Reactor& reactor, bool pieces_in_stream);
  void OnReady(std::uint32_t events);
  void PostPump();
  /// Sends what there is. Requires io_mutex_. Pieces only on the reactor's thread.
  void Pump(bool with_pieces);
  void PumpUntilLater(bool with_pieces);
  Sent SendFrames();
  Sent SendPiece();
  Sent OnSendResult(ssize_t n, std::size_t* sent);
  void ArmWrite(bool on);
  void Down(const Status& status);
  // Receiving; reactor thread only.
  bool Receive();
  int ReceivePayload(bool* more);
  Status ParseBuffer();
  Status TakePayloadFromBuffer();

  Reactor& reactor_;
  const bool pieces_in_stream_;
  std::weak_ptr<LaneOwner> owner_;
  Reactor::Id watch_ = 0;

  std::mutex queue_mutex_;
  std::string queue_;  // encoded frames
  std::atomic<std::size_t> queued_{0};
  std::atomic<bool> pump_posted_{false};
  std::atomic<bool> closed_{false};
  std::atomic<std::thread::id> pumping_{};

  std::mutex io_mutex_;  // sending, and the descriptor's life
  Fd socket_;
  std::string sending_;
  std::size_t sending_at_ = 0;
  std::optional<LanePiece> piece_;
  std::array<std::byte, sizeof(FrameHeader)> piece_header_;
  std::size_t piece_at_ = 0;  // of header and payload together
  bool write_armed_ = false;
  bool failed_ = false;

  std::vector<std::byte> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool in_payload_ = false;
  FrameHeader payload_header_;
  Place place_;
  std::size_t payload_left_ = 0;
  bool placed_ = false;
};

}  // namespace arcflow::transport
