// SPDX-License-Identifier: Apache-2.0
// UcxLink: a session over UCX active messages. Internal to the backend.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "arcflow/transport/lane.h"
#include "arcflow/transport/link.h"
#include "arcflow/transport/session.h"
#include "arcflow/transport/ucx/engine.h"

namespace arcflow::transport::ucx {

/// Frames are eager messages, numbered because UCX may deliver large ones late; pieces are
/// rendezvous messages, received straight into place after every check. The TCP connection over
/// which both ends met stays as the sign of life: UCX notices a dead peer late or never.
/// Threads: any; UCX on the engine's thread. Lifetime: its session, its lane's reactor; the engine
/// outlives it.
class UcxLink final : public Link,
                      public LaneOwner,
                      public Receiver,
                      public std::enable_shared_from_this<UcxLink> {
 public:
  static constexpr std::size_t kPieceBytes = std::size_t{2} << 20;
  static constexpr std::uint32_t kPiecesInFlight = 4;

  /// `own`, `theirs`: tokens of the two links.
  UcxLink(std::weak_ptr<Session> session, std::shared_ptr<Lane> lane, Engine& engine,
          const Token& own, const Token& theirs, std::string peer_address);
  /// Makes the UCX endpoint. Blocks until the engine has done so.
  Status Connect(const std::string& worker_address);
  Status Start() { return lane_->Start(weak_from_this()); }

  void SendFrame(const FrameHeader& header, std::string_view first,
                 std::string_view second) override;
  void SendPayload(std::shared_ptr<Outgoing> outgoing) override;
  std::size_t queued_bytes() const override { return queued_.load(std::memory_order_relaxed); }
  void Shutdown(bool say_bye) override;
  std::string detail() const override;

  void OnArrival(Arrival arrival) override;
  void OnBroken(const Status& status) override;

  // The lane carries nothing but its end.
  Status OnLaneFrame(const FrameHeader& header, std::string_view body) override;
  void OnLaneBytes() override {}
  void OnLaneDown(const Status& status) override { OnBroken(status); }
  Place OnPieceBegin(const FrameHeader&) override { return {}; }
  void OnPieceEnd(const FrameHeader&, bool) override {}
  std::optional<LanePiece> NextPiece() override { return std::nullopt; }
  void OnPieceSent(const LanePiece&) override {}

 private:
  // Engine thread.
  void OnPiece(const FrameHeader& header, Arrival arrival);
  void OnFrames();
  void PumpPieces();
  void SendPiece(const std::shared_ptr<Outgoing>& outgoing);
  void OnPieceDone(const std::shared_ptr<Outgoing>& outgoing, ucs_status_t status);
  void Break(const std::string& why) {
    OnBroken(Unavailable("the peer broke the protocol: " + why));
  }

  const std::weak_ptr<Session> session_;
  const std::shared_ptr<Lane> lane_;
  Engine& engine_;
  const Token own_;
  const Token theirs_;
  const std::string peer_address_;
  std::string ways_;  // set by Connect
  std::atomic<std::size_t> queued_{0};
  std::atomic<bool> down_{false};

  std::mutex mutex_;  // order of frames from several threads
  std::uint64_t next_sent_ = 1;

  // Engine thread only.
  std::shared_ptr<Engine::Peer> peer_;
  std::deque<std::shared_ptr<Outgoing>> outgoing_;
  std::uint32_t in_flight_ = 0;
  std::uint64_t next_received_ = 1;
  std::map<std::uint64_t, Arrival> early_;
  bool delivering_ = false;
};

}  // namespace arcflow::transport::ucx
