// SPDX-License-Identifier: Apache-2.0
// RemoteLink: packets and chunks from and to a channel, for a thread that waits.
#include "arcflow/control/remote_link.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <utility>

#include "arcflow/base/mapping.h"
#include "arcflow/control/chunks.h"
#include "arcflow/control/coordinator_state.h"
#include "arcflow/control/feeder_packets.h"
#include "arcflow/control/packets.h"
#include "arcflow/net/frame.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::size_t kMaxInbox = 1024;
constexpr std::size_t kBuffers = 3;  // one is filled, others wait for room or are on their way

}  // namespace

net::ChannelOptions RemoteChannelOptions(const std::string& secret, bool encrypt) {
  net::ChannelOptions options = ControlChannelOptions(secret, encrypt);
  options.max_raw_bytes = net::kMaxRawBytes;
  options.read_bytes = kChunkReadBytes;
  return options;
}

/// Threads: everything under the mutex, but for `document`, which is the loop's. No row is sent
/// under it, because a channel may let memory go inside that call.
struct RemoteLink::Shared : std::enable_shared_from_this<RemoteLink::Shared> {
  /// A full one, in the order in which they go.
  struct Segment {
    std::string feed;
    std::uint64_t buffer = 0;
    std::span<const std::byte> bytes;
    std::shared_ptr<void> mapping;  // of them; whoever filled it may drop it now
    std::size_t rows = 0;
  };

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<net::Message> inbox;
  std::deque<Segment> segments;  // full, and not sent; the agent has been asked for room for each
  int unsent = 0;                // of them, and the one that is being handed to the channel
  std::set<std::uint64_t> busy;  // buffers that are filled, wait, or are being sent
  std::vector<std::uint64_t> free;
  bool ready = false;
  bool closed = false;
  Status why;
  Status refused;        // no room for a segment: neither it nor a later one was sent
  std::string document;  // of the packet that comes next

  void OnMessage(net::Channel& channel, json& message);
  Status OnChunk(net::Channel& channel, const std::string& body);
  Status OnRoom(net::Channel& channel);
  void Free(std::uint64_t buffer);

  // Require the mutex.
  Status Trouble() const { return closed ? why : refused; }
};

void RemoteLink::Shared::OnMessage(net::Channel& channel, json& message) {
  const std::string op = message.value("op", "");
  Status wrong;
  if (op == "segment") {
    wrong = OnRoom(channel);
  } else {
    const std::lock_guard lock(mutex);
    if (op == "refused" && unsent > 0) {
      refused = RefusalFromJson(message);
    } else if (inbox.size() >= kMaxInbox) {
      wrong = InvalidArgument("the agent says more than it was asked");
    } else {
      net::Message packet;
      packet.op = op;
      if (!document.empty()) {
        auto memory = BytesToMemfd("arcflow-answer", std::exchange(document, {}));
        wrong = memory.status();
        if (memory.ok()) packet.fds.push_back(std::move(*memory));
      }
      packet.body = std::make_unique<json>(std::move(message));
      inbox.push_back(std::move(packet));
    }
  }
  changed.notify_all();
  if (!wrong.ok()) channel.Abort(wrong);
}

/// Sends the segment that waited; its buffer is free when its last byte has gone.
Status RemoteLink::Shared::OnRoom(net::Channel& channel) {
  Segment segment;
  {
    const std::lock_guard lock(mutex);
    if (segments.empty()) return InvalidArgument("the agent grants what it was not asked for");
    if (!refused.ok()) return Status::Ok();  // an earlier one was
    segment = std::move(segments.front());
    segments.pop_front();
  }
  {
    const std::shared_ptr<const void> keep(
        segment.bytes.data(), [self = shared_from_this(), buffer = segment.buffer,
                               mapping = segment.mapping](const void*) { self->Free(buffer); });
    for (std::size_t at = 0; at < segment.bytes.size();) {
      const std::size_t n = std::min(segment.bytes.size() - at, kChunkBytes);
      ARC_TRY(channel.SendRaw(ChunkHead(at, n), segment.bytes.subspan(at, n), keep));
      at += n;
    }
  }
  ARC_TRY(channel.Send({{"op", "publish"}, {"feed", segment.feed}, {"rows", segment.rows}}));
  const std::lock_guard lock(mutex);
  --unsent;
  return Status::Ok();
}

void RemoteLink::Shared::Free(std::uint64_t buffer) {
  const std::lock_guard lock(mutex);
  busy.erase(buffer);
  free.push_back(buffer);
  changed.notify_all();
}

/// Chunks of a document come in order.
Status RemoteLink::Shared::OnChunk(net::Channel& channel, const std::string& body) {
  ARC_ASSIGN(const Chunk chunk, ReadChunk(body, kMaxResultBytes));
  if (chunk.at != document.size()) return InvalidArgument("an answer that comes out of order");
  document.append(chunk.bytes);
  return channel.Send({{"op", "got"}, {"bytes", chunk.bytes.size()}});
}

RemoteLink::RemoteLink(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

RemoteLink::~RemoteLink() {
  if (channel_) channel_->Close();
  // Lets what is queued go out; the channel's own linger bounds it.
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait_for(lock, std::chrono::seconds(3), [&] { return shared_->closed; });
}

Result<std::unique_ptr<RemoteLink>> RemoteLink::Connect(const std::string& host, std::uint16_t port,
                                                        net::ChannelOptions options,
                                                        Deadline deadline) {
  auto shared = std::make_shared<Shared>();
  std::unique_ptr<RemoteLink> link(new RemoteLink(shared));
  ARC_ASSIGN(link->loop_, net::Loop::Create());
  ARC_TRY(link->loop_->StartThread());
  // The channel is known to its callbacks once Connect has returned; none comes inside that call.
  auto channel = std::make_shared<std::weak_ptr<net::Channel>>();
  net::ChannelCallbacks callbacks;
  callbacks.on_ready = [shared] {
    const std::lock_guard lock(shared->mutex);
    shared->ready = true;
    shared->changed.notify_all();
  };
  callbacks.on_message = [shared, channel](json& message) {
    if (const auto alive = channel->lock()) shared->OnMessage(*alive, message);
  };
  callbacks.on_raw = [shared, channel](std::string& body) {
    const auto alive = channel->lock();
    if (!alive) return;
    if (const Status status = shared->OnChunk(*alive, body); !status.ok()) alive->Abort(status);
  };
  callbacks.on_closed = [shared](const Status& why) {
    const std::lock_guard lock(shared->mutex);
    shared->closed = true;
    shared->why = why.ok() ? Unavailable("the connection was closed") : why;
    shared->changed.notify_all();
  };
  std::shared_ptr<net::Channel> connected = net::Channel::Connect(
      *link->loop_, host, port, std::move(options), std::move(callbacks), deadline);
  link->loop_->Post([channel, connected] { *channel = connected; });
  link->channel_ = std::move(connected);
  std::unique_lock lock(shared->mutex);
  shared->changed.wait(lock, [&] { return shared->ready || shared->closed; });
  if (!shared->ready) return shared->why;
  return link;
}

Status RemoteLink::Send(const json& packet, const std::vector<int>& fds) {
  {
    std::unique_lock lock(shared_->mutex);
    shared_->changed.wait(lock, [&] { return shared_->unsent == 0 || !shared_->Trouble().ok(); });
    ARC_TRY(shared_->Trouble());
  }
  if (fds.empty()) return channel_->Send(packet);
  json whole = packet;  // a schema is small, and travels inside
  const Fd copy(::dup(fds[0]));
  json document;
  ARC_TRY(DocumentFromMemfd(copy, &document));
  whole["document"] = std::move(document);
  return channel_->Send(whole);
}

Result<net::Message> RemoteLink::Next(Deadline deadline) {
  std::unique_lock lock(shared_->mutex);
  const auto there = [&] { return !shared_->inbox.empty() || shared_->closed; };
  if (!shared_->changed.wait_until(lock, deadline.at(), there))
    return DeadlineExceeded("the agent did not answer");
  if (shared_->inbox.empty()) return shared_->why;
  net::Message message = std::move(shared_->inbox.front());
  shared_->inbox.pop_front();
  return message;
}

Result<std::optional<net::Message>> RemoteLink::Receive(Deadline deadline) {
  Result<net::Message> message = Next(deadline);
  if (message.status().code() == Code::kDeadlineExceeded) return std::optional<net::Message>();
  ARC_TRY(message.status());
  return std::optional<net::Message>(std::move(*message));
}

/// A buffer that is neither filled nor on its way; agents are asked for room when it is full.
Result<feed::SegmentSource::Grant> RemoteLink::Acquire(const std::string& feed,
                                                       std::size_t min_bytes, Deadline deadline) {
  (void)feed;
  Grant grant;
  grant.size_bytes = min_bytes;  // what will be sent, however large our buffer is
  {
    std::unique_lock lock(shared_->mutex);
    const auto some = [&] { return shared_->busy.size() < kBuffers || !shared_->Trouble().ok(); };
    if (!shared_->changed.wait_until(lock, deadline.at(), some))
      return DeadlineExceeded("the agent has no room for more rows");
    ARC_TRY(shared_->Trouble());
    for (const std::uint64_t buffer : std::exchange(shared_->free, {})) {
      if (grant.buffer == 0 && memory().Find(buffer, min_bytes).ok()) {
        grant.buffer = buffer;
      } else if (grant.buffer != 0) {
        shared_->free.push_back(buffer);
      } else {
        grant.drop.push_back(buffer);  // too small, or of a feed that is over
      }
    }
    if (grant.buffer == 0) {
      grant.buffer = ++last_buffer_;
      grant.create = true;
    }
    shared_->busy.insert(grant.buffer);
  }
  return grant;
}

Status RemoteLink::Publish(const std::string& feed, const Grant& grant, std::size_t rows,
                           bool closed, int fd) {
  (void)fd;  // this process maps it already
  if (!closed) return Status::Ok();
  ARC_ASSIGN(std::byte* const base, memory().Find(grant.buffer, grant.size_bytes));
  if (rows == 0) {
    shared_->Free(grant.buffer);
    return Status::Ok();
  }
  const std::lock_guard lock(shared_->mutex);
  ARC_TRY(shared_->Trouble());
  shared_->segments.push_back(
      {feed, grant.buffer, std::span(base, grant.size_bytes), memory().Keep(grant.buffer), rows});
  ++shared_->unsent;
  return channel_->Send({{"op", "acquire"}, {"feed", feed}, {"bytes", grant.size_bytes}});
}

}  // namespace arcflow::control
