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

}  // namespace

net::ChannelOptions RemoteChannelOptions(const std::string& secret, bool encrypt) {
  net::ChannelOptions options = ControlChannelOptions(secret, encrypt);
  options.max_raw_bytes = net::kMaxRawBytes;
  options.read_bytes = kChunkReadBytes;
  return options;
}

/// Threads: everything under the mutex, but for `document`, which is the loop's.
struct RemoteLink::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<net::Message> inbox;
  std::uint64_t under_way = 0;
  bool ready = false;
  bool closed = false;
  Status why;
  std::string document;  // of the packet that comes next

  void OnMessage(net::Channel& channel, json& message);
  Status OnChunk(net::Channel& channel, const std::string& body);
};

void RemoteLink::Shared::OnMessage(net::Channel& channel, json& message) {
  const std::string op = message.value("op", "");
  Status wrong;
  {
    const std::lock_guard lock(mutex);
    if (op == "got") {
      under_way -= std::min(under_way, message.value("bytes", std::uint64_t{0}));
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

/// The agent says that it has room; the rows are written here.
Result<feed::SegmentSource::Grant> RemoteLink::Acquire(const std::string& feed,
                                                       std::size_t min_bytes, Deadline deadline) {
  if (!asked_) {
    ARC_TRY(Send({{"op", "acquire"}, {"feed", feed}, {"bytes", min_bytes}}, {}));
    asked_ = true;
  }
  ARC_ASSIGN(const net::Message message, Next(deadline));
  asked_ = false;
  if (message.op == "refused") return RefusalFromJson(*message.body);
  if (message.op != "segment")
    return InvalidArgument("the agent answered " + message.op + " to acquire");
  Grant grant;
  grant.size_bytes = min_bytes;  // what will be sent, however large our buffer is
  if (buffer_ == 0 || !memory().Find(buffer_, min_bytes).ok()) {
    if (buffer_ != 0) grant.drop.push_back(buffer_);
    ++buffer_;
    grant.create = true;
  }
  grant.buffer = buffer_;
  return grant;
}

Status RemoteLink::Publish(const std::string& feed, const Grant& grant, std::size_t rows,
                           bool closed, int fd) {
  (void)fd;  // this process maps it already
  if (!closed) return Status::Ok();
  ARC_ASSIGN(std::byte* const base, memory().Find(grant.buffer, grant.size_bytes));
  for (std::size_t at = 0; rows > 0 && at < grant.size_bytes;) {
    const std::size_t n = std::min(grant.size_bytes - at, kChunkBytes);
    {
      std::unique_lock lock(shared_->mutex);
      shared_->changed.wait(
          lock, [&] { return shared_->under_way < kChunkWindowBytes || shared_->closed; });
      if (shared_->closed) return shared_->why;
      shared_->under_way += n;
    }
    ARC_TRY(channel_->SendFrame(ChunkOf(at, std::span(base + at, n))));
    at += n;
  }
  return Send({{"op", "publish"}, {"feed", feed}, {"rows", rows}}, {});
}

}  // namespace arcflow::control
