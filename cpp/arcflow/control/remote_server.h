// SPDX-License-Identifier: Apache-2.0
// RemoteServer: where the agent of a node that lives on takes rows of tasks of other executors.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/control/side_server.h"
#include "arcflow/feed/granted_memory.h"
#include "arcflow/feed/writer.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/listener.h"
#include "arcflow/net/loop.h"
#include "arcflow/net/packet.h"

namespace arcflow::control {

/// Speaks to a SideServer for each task that has connected by TCP, as the task would by its socket:
/// passes packets on; the chunks that come before them are read into the memory that was granted.
/// So staging, claims and inference know nothing of it, and memory stays bounded as for others.
/// A task may ask for room for its next segment while it sends one: new memory is made meanwhile,
/// on a thread of its own, because that takes longer than the rows take to arrive.
/// Threads: the loop's. Never blocks. Lifetime: `server` must outlive it.
class RemoteServer {
 public:
  struct Options {
    net::ChannelOptions channel;  // RemoteChannelOptions
    std::string host;             // that is bound
    std::uint16_t first_port = 0;
    std::uint16_t last_port = 0;
    /// All tasks together may have this much room beyond one segment each: room that waits for its
    /// rows is room that another task cannot have.
    std::size_t look_ahead_bytes = 0;
  };
  /// Errors: those of net::Listener::Bind, of the last port tried.
  static Result<std::unique_ptr<RemoteServer>> Listen(net::Loop& loop, Options options,
                                                      SideServer& server);
  ~RemoteServer();

  std::uint16_t port() const { return listener_->port(); }

 private:
  /// A packet for the task, and what has to come before it.
  struct Answer {
    nlohmann::json packet;
    Fd document;  // may be none
    std::uint64_t at = 0;
    std::uint64_t bytes = 0;
  };
  /// For a segment that comes, or will come.
  struct Room {
    feed::SegmentSource::Grant grant;
    std::string feed;
    std::byte* base = nullptr;  // null: being made
    Fd memfd;                   // of new memory
    bool told = false;          // the task knows, and may send
  };
  struct Task {
    std::shared_ptr<net::Channel> channel;
    Fd socket;  // our end of its pair
    net::Loop::WatchId watch = 0;
    feed::GrantedMemory memory;
    std::deque<Room> rooms;              // in the order asked; the first is being filled
    std::deque<std::size_t> asked;       // bytes of segments for which there is no answer yet
    std::deque<nlohmann::json> waiting;  // what the task asks for ahead, and may not have yet
    const std::shared_ptr<std::atomic<bool>> gone = std::make_shared<std::atomic<bool>>(false);
    std::deque<std::unique_ptr<Answer>> answers;
    std::uint64_t under_way = 0;
  };

  RemoteServer(net::Loop& loop, SideServer& server, std::size_t look_ahead_bytes)
      : loop_(loop), server_(server), look_ahead_bytes_(look_ahead_bytes) {}
  net::ChannelCallbacks OnAccepted(std::shared_ptr<net::Channel> channel);
  Status OnMessage(Task& task, nlohmann::json& message);
  Result<net::RawPlace> PlaceOf(Task& task, const std::string& head, std::size_t bytes);
  Status Publish(Task& task, nlohmann::json& message);
  Status OnAcquire(Task& task, nlohmann::json& message);
  Status Ask(Task& task);
  void AskForOthers();
  std::size_t RoomBytes() const;
  bool OnPackets(int id);
  Status OnPacket(int id, Task& task, net::Message& message);
  Status OnGrant(int id, Task& task, const nlohmann::json& packet);
  void OnMade(int id, std::uint64_t buffer, Result<feed::GrantedMemory::Fresh> made);
  Status TellRooms(Task& task);
  Status Pump(Task& task);
  void Check(int id, const Status& status);
  void Drop(int id);

  net::Loop& loop_;
  SideServer& server_;
  const std::size_t look_ahead_bytes_;
  std::unique_ptr<net::Listener> listener_;
  int next_id_ = 1;
  std::map<int, Task> tasks_;
  std::unique_ptr<net::Loop> maker_;                              // makes memory
  const std::shared_ptr<char> alive_ = std::make_shared<char>();  // callbacks of channels ask it
};

}  // namespace arcflow::control
