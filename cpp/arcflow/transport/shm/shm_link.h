// SPDX-License-Identifier: Apache-2.0
// ShmLink: a session between two processes of one host. Internal to the backend.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/transport/lane.h"
#include "arcflow/transport/link.h"
#include "arcflow/transport/session.h"
#include "arcflow/transport/shm/copy_crew.h"
#include "arcflow/transport/shm/peer_memory.h"

namespace arcflow::transport::shm {

inline constexpr std::size_t kSlots = 64;
inline constexpr std::size_t kSlotBytes = std::size_t{256} << 10;
inline constexpr std::size_t kSlotAreaBytes = kSlots * kSlotBytes;

/// What the two ends found out about each other while they met.
struct ShmPeer {
  PeerMemory memory;
  bool we_read = false;  // the proof succeeded
  Mapping ours;          // slots that we fill
  Mapping theirs;        // read-only
};

/// Frames over a Unix socket; payload is copied out of the peer, or goes through slots.
/// Threads: any; copies on the reactor's thread, and on the crew's while that one waits. Lifetime:
/// its session, its lane's reactor.
class ShmLink final : public Link, public LaneOwner, public std::enable_shared_from_this<ShmLink> {
 public:
  ShmLink(std::weak_ptr<Session> session, std::shared_ptr<Lane> lane, Reactor& reactor,
          ShmPeer peer);
  /// Tells the peer whether we can read it and starts the lane.
  Status Start();

  void SendFrame(const FrameHeader& header, std::string_view first,
                 std::string_view second) override;
  void SendPayload(std::shared_ptr<Outgoing> outgoing) override;
  bool peer_reads_us() const override { return peer_reads_us_.load(std::memory_order_acquire); }
  std::size_t queued_bytes() const override { return lane_->queued_bytes(); }
  void Shutdown(bool say_bye) override;
  std::string detail() const override;

  Status OnLaneFrame(const FrameHeader& header, std::string_view body) override;
  void OnLaneBytes() override;
  void OnLaneDown(const Status& status) override;
  Place OnPieceBegin(const FrameHeader&) override { return {}; }
  void OnPieceEnd(const FrameHeader&, bool) override {}
  std::optional<LanePiece> NextPiece() override { return std::nullopt; }
  void OnPieceSent(const LanePiece&) override {}

 private:
  /// A copy out of the peer that is under way.
  struct Pull {
    FrameHeader header;
    Validity validity;
    std::string notice;
    Place place;
    std::uint64_t done = 0;
  };
  Status OnRef(const FrameHeader& header, std::string_view body);
  Status OnSlot(const FrameHeader& header);
  Status OnSlotFree(const FrameHeader& header);
  // Reactor thread.
  void RunPulls();
  Status Copy(const Pull& pull, std::size_t n) const;
  /// One slice of it; nullopt when there is more.
  std::optional<Status> PullSlice(Pull* pull);
  void EndPull(const Pull& pull, const Status& status);
  void FillSlots();
  bool FillSlot(const std::shared_ptr<Outgoing>& outgoing);

  const std::weak_ptr<Session> session_;
  const std::shared_ptr<Lane> lane_;
  Reactor& reactor_;
  const ShmPeer peer_;
  const std::shared_ptr<CopyCrew> crew_;
  std::atomic<bool> peer_reads_us_{false};

  std::mutex mutex_;
  bool down_ = false;
  std::deque<std::shared_ptr<Outgoing>> outgoing_;

  // Reactor thread only.
  std::deque<Pull> pulls_;
  bool pulling_ = false;
  std::vector<std::uint16_t> free_;
  std::array<bool, kSlots> lent_{};
};

}  // namespace arcflow::transport::shm
