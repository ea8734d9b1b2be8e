// SPDX-License-Identifier: Apache-2.0
// RemoteServer: packets and chunks between a channel and the side server's socket.
#include "arcflow/control/remote_server.h"

#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "arcflow/base/log.h"
#include "arcflow/control/chunks.h"
#include "arcflow/control/feeder_packets.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/text.h"
#include "arcflow/feed/log.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::size_t kMaxTasks = 1024;
constexpr std::size_t kMaxRooms = 4;  // of a task; ours asks for up to three
constexpr std::uint64_t kMaxRoomBytes = std::uint64_t{1} << 40;

Status Pass(const Fd& socket, const json& packet, const std::vector<int>& fds = {}) {
  return net::SendPacket(socket.get(), packet, fds, Deadline::After(kAgentSends));
}

}  // namespace

Result<std::unique_ptr<RemoteServer>> RemoteServer::Listen(net::Loop& loop, Options options,
                                                           SideServer& server) {
  std::unique_ptr<RemoteServer> remote(new RemoteServer(loop, server, options.look_ahead_bytes));
  ARC_ASSIGN(remote->maker_, net::Loop::Create());
  ARC_TRY(remote->maker_->StartThread());
  net::ListenerOptions listen;
  listen.host = options.host;
  listen.channel = options.channel;
  listen.channel.raw_head_bytes = kChunkPlaceBytes;
  Status last;
  for (std::uint32_t port = options.first_port; port <= options.last_port; ++port) {
    listen.port = static_cast<std::uint16_t>(port);
    auto bound = net::Listener::Bind(loop, listen,
                                     [self = remote.get(), alive = std::weak_ptr(remote->alive_)](
                                         std::shared_ptr<net::Channel> channel) {
                                       if (!alive.expired())
                                         return self->OnAccepted(std::move(channel));
                                       channel->Close();
                                       return net::ChannelCallbacks{};
                                     });
    if (bound.ok()) {
      remote->listener_ = std::move(*bound);
      return remote;
    }
    last = bound.status();
  }
  return last.WithContext("no port for tasks of other executors");
}

RemoteServer::~RemoteServer() {
  listener_.reset();
  while (!tasks_.empty()) Drop(tasks_.begin()->first);
  maker_.reset();  // makes nothing any more for tasks that are gone
}

net::ChannelCallbacks RemoteServer::OnAccepted(std::shared_ptr<net::Channel> channel) {
  auto pair = net::PacketPair();
  if (!pair.ok() || tasks_.size() >= kMaxTasks) {
    channel->Close();
    return {};
  }
  const int id = next_id_++;
  Task& task = tasks_[id];
  task.channel = std::move(channel);
  task.socket = std::move(pair->first);
  auto watch = loop_.WatchReadable(task.socket.get(), [this, id] { return OnPackets(id); });
  if (watch.ok()) task.watch = *watch;
  server_.AddTask(std::move(pair->second));
  net::ChannelCallbacks callbacks;
  callbacks.on_message = [this, id, alive = std::weak_ptr(alive_)](json& message) {
    if (alive.expired() || !tasks_.contains(id)) return;
    Check(id, OnMessage(tasks_.at(id), message));
  };
  callbacks.on_raw_place = [this, id, alive = std::weak_ptr(alive_)](const std::string& head,
                                                                     std::size_t bytes) {
    if (alive.expired() || !tasks_.contains(id)) return net::RawPlace{};
    auto place = PlaceOf(tasks_.at(id), head, bytes);
    Check(id, place.status());
    return place.ok() ? *place : net::RawPlace{};
  };
  callbacks.on_closed = [this, id, alive = std::weak_ptr(alive_)](const Status&) {
    if (!alive.expired()) Drop(id);
  };
  return callbacks;
}

void RemoteServer::Check(int id, const Status& status) {
  if (status.ok()) return;
  Log(LogLevel::kWarning, "a remote feeding task was cut off: " + status.ToString());
  Drop(id);
}

/// The side server sees the end of the socket, and throws away what does not count.
void RemoteServer::Drop(int id) {
  const auto found = tasks_.find(id);
  if (found == tasks_.end()) return;
  if (found->second.watch != 0) loop_.Unwatch(found->second.watch);
  *found->second.gone = true;
  found->second.channel->Close();
  tasks_.erase(found);
  AskForOthers();
}

Status RemoteServer::OnMessage(Task& task, json& message) {
  const std::string op = message.value("op", "");
  if (op == "got") {
    std::uint64_t bytes = 0;
    Fields in(message, "got");
    in.Uint64("bytes", &bytes, task.under_way, Need::kRequired);
    ARC_TRY(in.status());
    task.under_way -= bytes;
    return Pump(task);
  }
  if (op == "publish") return Publish(task, message);
  if (op == "attach") {
    const auto schema = message.find("document");
    if (schema == message.end()) return InvalidArgument("attach comes without a schema");
    ARC_ASSIGN(const Fd document, DocumentToMemfd("arcflow-schema", *schema));
    message.erase("document");
    return Pass(task.socket, message, {document.get()});
  }
  if (op == "acquire") return OnAcquire(task, message);
  for (const char* known : {"seal", "claim", "block", "serve"}) {
    if (op != known) continue;
    // Room that is left over would belong to rows that are over.
    if (!task.rooms.empty() || !task.asked.empty() || !task.waiting.empty())
      return InvalidArgument(op + " while segments are under way");
    return Pass(task.socket, message);
  }
  return InvalidArgument("unknown message " + CleanText(op, 64));
}

/// Room for one segment a task is asked for at once; what a task asks for ahead has to wait while
/// others need the memory, because the service refuses what does not fit beside segments that are
/// being filled.
Status RemoteServer::OnAcquire(Task& task, json& message) {
  std::uint64_t bytes = 0;
  Fields in(message, "acquire");
  in.Uint64("bytes", &bytes, kMaxRoomBytes, Need::kRequired);
  ARC_TRY(in.status());
  if (task.rooms.size() + task.asked.size() + task.waiting.size() >= kMaxRooms)
    return InvalidArgument("room for too many segments at once");
  task.waiting.push_back(std::move(message));
  return Ask(task);
}

Status RemoteServer::Ask(Task& task) {
  while (!task.waiting.empty()) {
    const std::size_t bytes = task.waiting.front()["bytes"];
    const bool ahead = !task.rooms.empty() || !task.asked.empty();
    if (ahead && RoomBytes() + bytes > look_ahead_bytes_) break;
    ARC_TRY(Pass(task.socket, task.waiting.front()));
    task.waiting.pop_front();
    task.asked.push_back(bytes);
  }
  return Status::Ok();
}

std::size_t RemoteServer::RoomBytes() const {
  std::size_t sum = 0;
  for (const auto& [id, task] : tasks_) {
    for (const Room& room : task.rooms) sum += room.grant.size_bytes;
    for (const std::size_t bytes : task.asked) sum += bytes;
  }
  return sum;
}

/// There is more room than there was.
void RemoteServer::AskForOthers() {
  std::vector<int> ids;
  for (const auto& [id, task] : tasks_) {
    if (!task.waiting.empty()) ids.push_back(id);
  }
  for (const int id : ids) {
    if (const auto found = tasks_.find(id); found != tasks_.end()) Check(id, Ask(found->second));
  }
}

Result<net::RawPlace> RemoteServer::PlaceOf(Task& task, const std::string& head,
                                            std::size_t bytes) {
  if (task.rooms.empty() || !task.rooms.front().told)
    return InvalidArgument("rows without room for them");
  const Room& room = task.rooms.front();
  ARC_ASSIGN(const std::uint64_t at, PlaceOfChunk(head, bytes, room.grant.size_bytes));
  auto keep = task.memory.Keep(room.grant.buffer);
  if (keep == nullptr) return Internal("room for rows that has been given up");
  return net::RawPlace{room.base + at, std::move(keep)};
}

/// The rows are all here: the service may have them.
Status RemoteServer::Publish(Task& task, json& message) {
  if (task.rooms.empty() || !task.rooms.front().told)
    return InvalidArgument("rows without room for them");
  const Room& room = task.rooms.front();
  std::uint64_t rows = 0;
  Fields in(message, "publish");
  in.Uint64("rows", &rows, feed::FeedLog::kMaxRows, Need::kRequired);
  ARC_TRY(in.status());
  std::vector<int> fds;
  if (room.memfd.valid()) fds.push_back(room.memfd.get());
  message["buffer"] = room.grant.buffer;
  message["closed"] = true;
  ARC_TRY(Pass(task.socket, message, fds));
  task.rooms.pop_front();
  AskForOthers();
  return Status::Ok();
}

bool RemoteServer::OnPackets(int id) {
  for (;;) {
    const auto found = tasks_.find(id);
    if (found == tasks_.end()) return false;
    net::Message message;
    Status status;
    const Incoming incoming = ReceiveNow(found->second.socket.get(), &message, &status);
    if (incoming == Incoming::kNothing) return true;
    if (incoming == Incoming::kClosed) {
      found->second.watch = 0;  // this call ends it
      found->second.channel->Close();
      return false;
    }
    status = OnPacket(id, found->second, message);
    if (!status.ok()) {
      found->second.watch = 0;
      Check(id, status);
      return false;
    }
  }
}

Status RemoteServer::OnPacket(int id, Task& task, net::Message& message) {
  if (message.op == "segment") return OnGrant(id, task, *message.body);
  if (message.op == "refused" && !task.asked.empty()) task.asked.pop_front();
  auto answer = std::make_unique<Answer>();
  answer->packet = std::move(*message.body);
  if (!message.fds.empty()) {
    struct stat info {};
    if (::fstat(message.fds[0].get(), &info) != 0)
      return Status::FromErrno(errno, "the memory of an answer");
    answer->bytes = static_cast<std::uint64_t>(info.st_size);
    answer->document = std::move(message.fds[0]);
  }
  task.answers.push_back(std::move(answer));
  return Pump(task);
}

Status RemoteServer::OnGrant(int id, Task& task, const json& packet) {
  Room room;
  ARC_ASSIGN(room.grant, GrantFromJson(packet));
  room.feed = packet.value("feed", "");
  if (!task.asked.empty()) task.asked.pop_front();
  // Whose memory goes is not always who gets room for it.
  for (auto& [other, each] : tasks_) each.memory.Drop(room.grant.drop);
  if (room.grant.create) {
    maker_->Post([this, id, feed = room.feed, buffer = room.grant.buffer,
                  bytes = room.grant.size_bytes, gone = task.gone, alive = std::weak_ptr(alive_)] {
      if (*gone) return;
      auto made = std::make_shared<Result<feed::GrantedMemory::Fresh>>(
          feed::GrantedMemory::Make(feed, bytes));
      loop_.Post([this, id, buffer, made, alive] {
        if (!alive.expired()) OnMade(id, buffer, std::move(*made));
      });
    });
  } else {
    ARC_ASSIGN(room.base, task.memory.Find(room.grant.buffer, room.grant.size_bytes));
  }
  task.rooms.push_back(std::move(room));
  return TellRooms(task);
}

void RemoteServer::OnMade(int id, std::uint64_t buffer, Result<feed::GrantedMemory::Fresh> made) {
  const auto found = tasks_.find(id);
  if (found == tasks_.end()) return;
  Task& task = found->second;
  Status status = made.status();
  for (Room& room : task.rooms) {
    if (!status.ok() || room.grant.buffer != buffer) continue;
    room.base = task.memory.Adopt(room.feed, buffer, std::move(*made), &room.memfd);
    status = TellRooms(task);
    break;
  }
  Check(id, status);
}

/// In the order asked, so that the task knows which of its segments there is room for.
Status RemoteServer::TellRooms(Task& task) {
  for (Room& room : task.rooms) {
    if (room.base == nullptr) break;
    if (std::exchange(room.told, true)) continue;
    ARC_TRY(task.channel->Send(
        {{"op", "segment"}, {"feed", room.feed}, {"bytes", room.grant.size_bytes}}));
  }
  return Status::Ok();
}

/// Answers in order, their documents before them, as much as may be under way.
Status RemoteServer::Pump(Task& task) {
  while (!task.answers.empty()) {
    Answer& answer = *task.answers.front();
    while (answer.at < answer.bytes) {
      if (task.under_way >= kChunkWindowBytes) return Status::Ok();
      const auto n =
          static_cast<std::size_t>(std::min<std::uint64_t>(answer.bytes - answer.at, kChunkBytes));
      ARC_ASSIGN(net::SharedFrame frame, ChunkOf(answer.document, answer.at, n));
      ARC_TRY(task.channel->SendFrame(std::move(frame)));
      answer.at += n;
      task.under_way += n;
    }
    ARC_TRY(task.channel->Send(answer.packet));
    task.answers.pop_front();
  }
  return Status::Ok();
}

}  // namespace arcflow::control
