// SPDX-License-Identifier: Apache-2.0
// TcpLink: a session over several TCP connections. Internal to the backend.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/transport/lane.h"
#include "arcflow/transport/link.h"
#include "arcflow/transport/session.h"

namespace arcflow::transport::tcp {

/// Frames go over the first lane; pieces over whichever has room, so that a slow one gets fewer.
/// Threads: any. Lifetime: its session and, while they run, its lanes' reactors.
class TcpLink final : public Link, public LaneOwner, public std::enable_shared_from_this<TcpLink> {
 public:
  static constexpr std::size_t kPieceBytes = std::size_t{512} << 10;

  TcpLink(std::weak_ptr<Session> session, std::vector<std::shared_ptr<Lane>> lanes,
          std::string detail);
  Status Start();

  void SendFrame(const FrameHeader& header, std::string_view first,
                 std::string_view second) override;
  void SendPayload(std::shared_ptr<Outgoing> outgoing) override;
  std::size_t queued_bytes() const override { return lanes_.front()->queued_bytes(); }
  void Shutdown(bool say_bye) override;
  std::string detail() const override { return detail_; }

  Status OnLaneFrame(const FrameHeader& header, std::string_view body) override;
  void OnLaneBytes() override;
  void OnLaneDown(const Status& status) override;
  Place OnPieceBegin(const FrameHeader& header) override;
  void OnPieceEnd(const FrameHeader& header, bool placed) override;
  std::optional<LanePiece> NextPiece() override;
  void OnPieceSent(const LanePiece& piece) override;

 private:
  const std::weak_ptr<Session> session_;
  const std::vector<std::shared_ptr<Lane>> lanes_;
  const std::string detail_;
  std::mutex mutex_;
  bool down_ = false;
  std::deque<std::shared_ptr<Outgoing>> outgoing_;  // not all handed out, oldest first
};

}  // namespace arcflow::transport::tcp
