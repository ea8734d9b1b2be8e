// SPDX-License-Identifier: Apache-2.0
// HandOver: rows from agent to agent, so that uneven ranks become even and ranks mix their rows.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/control/hand_messages.h"
#include "arcflow/feed/service.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/listener.h"
#include "arcflow/net/loop.h"

namespace arcflow::control {

/// One agent's part: who gives listens and tells so through the coordinator; who takes connects,
/// and asks for one piece after the other when it has room for it. A piece lies in the giver's log
/// until the taker has all of its rows, and counts where the plan says. docs/design/feed.md,
/// "Uneven ranks", has the picture. For a pass of exchanged rows ("Exchange of rows" there) every
/// rank takes from all, also from itself, and givers keep what they give. Threads: the loop's.
/// Never blocks, but for reading and writing one chunk of memory or a local file. Lifetime:
/// `service` must outlive it.
class HandOver {
 public:
  struct Options {
    std::string run_id;
    net::ChannelOptions channel;  // secret, encryption
    int rank = 0;
    int size = 1;
    std::string host;  // that the listener is bound to
    std::uint16_t first_port = 0;
    std::uint16_t last_port = 0;
    double connect_timeout_s = 30;
  };
  struct Callbacks {
    std::function<void(const nlohmann::json&)> to_coordinator;
    /// Where another rank's agents are reached; "" if there is no such rank.
    std::function<std::string(int rank)> host_of;
    /// Rows do not come from `rank`: it is gone (Unavailable, DeadlineExceeded), or what went wrong
    /// here or there. Called once; nothing more is taken then.
    std::function<void(int rank, const Status& why)> failed;
  };
  HandOver(net::Loop& loop, Options options, feed::FeedService& service, Callbacks callbacks);
  ~HandOver();

  /// The service's `balanced`.
  void OnBalanced(const std::string& feed);
  /// The service's `settled` and `dropped`.
  void OnSettled(const std::string& feed);
  void OnDropped(const std::string& feed);
  /// A packet of the service for a writer. False: it is the feeder's.
  bool Route(const nlohmann::json& packet);
  /// The coordinator's `hand`. InvalidArgument.
  Status OnCoordinator(const nlohmann::json& message);
  /// The run is ending: nothing is given or taken any more.
  void Close();

 private:
  // Giving: hand_give.cc.
  struct Taker {
    std::shared_ptr<net::Channel> channel;
    int rank = -1;  // until it says
    std::string feed;
    std::optional<feed::FeedService::Piece> piece;  // asked for
    bool sending = false;                           // there is room for it
    std::uint64_t at = 0;                           // of the piece's bytes
    std::uint64_t under_way = 0;                    // sent and not acknowledged
  };
  Status Listen();
  net::ChannelCallbacks OnAccepted(std::shared_ptr<net::Channel> channel);
  void OnTakerMessage(int id, const nlohmann::json& message);
  Status Serve(Taker& taker, const nlohmann::json& message);
  Status OnTake(Taker& taker, const nlohmann::json& message);
  Status SendChunks(Taker& taker);
  void EndPiece(Taker& taker);

  // Taking: hand_take.cc.
  struct Job {
    std::string feed;
    std::string offer;  // under which its giver says that it can be had
    feed::Move move;

    bool exchanged() const { return offer != feed; }
  };
  /// What comes just now.
  struct Incoming {
    std::uint64_t row = 0;  // asked for
    HandPiece piece;
    std::uint64_t buffer = 0;
    std::uint64_t bytes = 0;  // of that buffer
    Fd memory;
  };
  void Next();
  void Connect(int rank, const std::string& feed);
  /// A connection to a giver; another one may follow it.
  struct Source {
    std::uint64_t number = 0;
    std::shared_ptr<net::Channel> channel;
  };
  bool Current(int rank, std::uint64_t source) const;
  void OnSource(int rank, const nlohmann::json& message);
  Status OnPiece(const nlohmann::json& message);
  Status OnRoom(const nlohmann::json& packet);
  Status OnChunk(const std::string& body);
  Status OnSent();
  void Fail(int rank, const Status& why);
  void Send(net::Channel& channel, const nlohmann::json& message);

  net::Loop& loop_;
  const Options options_;
  feed::FeedService& service_;
  const Callbacks callbacks_;
  const std::shared_ptr<char> alive_ = std::make_shared<char>();  // callbacks of channels ask it
  bool closed_ = false;

  std::unique_ptr<net::Listener> listener_;
  int next_taker_ = 1;
  std::map<int, Taker> takers_;

  std::map<std::pair<int, std::string>, std::uint16_t> offers_;  // ports, by giver and feed
  std::uint64_t next_source_ = 1;
  std::map<int, Source> sources_;  // by giver
  std::deque<Job> jobs_;           // the first is under way
  std::optional<Incoming> incoming_;
  bool failed_ = false;
};

}  // namespace arcflow::control
