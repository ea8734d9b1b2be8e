// SPDX-License-Identifier: Apache-2.0
// FeedService's feeder side: acquire, publish, end.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/feed/service_fields.h"
#include "arcflow/feed/service_impl.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFeedName = 256;
constexpr std::size_t kMaxParkedAcquires = 1024;
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 50;
constexpr std::uint64_t kMaxId = std::uint64_t{1} << 62;

}  // namespace

Status FeedService::Impl::OnFeederPacket(const json& body, std::vector<Fd> fds) {
  ARC_ASSIGN(const std::string op, TextField(body, "op", kMaxFeedName));
  if (op != "acquire" && op != "publish" && op != "end") {
    return InvalidArgument("unknown packet '" + op + "' for the feed service");
  }
  ARC_ASSIGN(const std::string name, TextField(body, "feed", kMaxFeedName));
  Result<Feed*> feed = FindFeed(name);
  if (!feed.ok()) return InvalidArgument(std::string(feed.status().message()));
  if (op == "publish") return OnPublish(body, **feed, std::move(fds));
  if (!fds.empty()) return InvalidArgument("packet '" + op + "' carries descriptors");
  return op == "acquire" ? OnAcquire(body, **feed) : OnEnd(**feed);
}

Status FeedService::Impl::OnAcquire(const json& body, Feed& feed) {
  ARC_ASSIGN(const std::uint64_t bytes, UintField(body, "bytes", kMaxBytes));
  if (bytes == 0) return InvalidArgument("packet 'acquire': field 'bytes' is 0");
  if (feed.log.ended() || feed.spooled)
    return InvalidArgument("acquire for feed '" + feed.name + "' after its end");
  if (acquires.size() >= kMaxParkedAcquires)
    return InvalidArgument("too many unanswered 'acquire' packets");
  acquires.push_back(
      {&feed, static_cast<std::size_t>(bytes), std::chrono::steady_clock::now(), false});
  return Status::Ok();
}

Status FeedService::Impl::OnPublish(const json& body, Feed& feed, std::vector<Fd> fds) {
  ARC_ASSIGN(const std::uint64_t id, UintField(body, "buffer", kMaxId));
  ARC_ASSIGN(const std::uint64_t rows, UintField(body, "rows", FeedLog::kMaxRows));
  ARC_ASSIGN(const bool closed, BoolField(body, "closed"));
  if (feed.spooled) return InvalidArgument("publish after the end of the feed");
  const BufferStore::Buffer* buffer = memory.store().Find(id);
  if (buffer == nullptr || buffer->feed != feed.name ||
      buffer->state != BufferStore::Buffer::State::kGranted) {
    return InvalidArgument("publish of buffer " + std::to_string(id) +
                           ", which is not granted to feed '" + feed.name + "'");
  }
  ARC_TRY(TakeMemory(id, /*needed=*/rows > 0, std::move(fds)));
  ARC_ASSIGN(const FeedLog::Published done, feed.log.Publish(id, buffer->bytes, rows, closed));
  if (done.unused) memory.Free({id});
  if (done.grew) changed.insert(feed.name);
  if (done.grew) SampleDepth(feed, std::chrono::steady_clock::now());
  if (!done.closed || !done.number) return Status::Ok();
  memory.OnClosed(*feed.log.Get(*done.number));
  if (feed.cache == Cache::kDisk) {
    PumpSessions();  // readers that wait get the rows while they are in memory
    memory.Settle(feed, *done.number);
  }
  return Status::Ok();
}

/// The descriptor that comes with the first publish of a created buffer, and with no other.
Status FeedService::Impl::TakeMemory(std::uint64_t buffer, bool needed, std::vector<Fd> fds) {
  if (fds.size() > 1) return InvalidArgument("packet 'publish' carries several descriptors");
  if (!fds.empty()) return memory.store().Adopt(buffer, std::move(fds.front()));
  if (needed && !memory.store().Find(buffer)->memfd.valid()) {
    return InvalidArgument("the first publish of buffer " + std::to_string(buffer) +
                           " comes without its memory");
  }
  return Status::Ok();
}

Status FeedService::Impl::OnEnd(Feed& feed) {
  if (feed.log.ended()) return Status::Ok();
  if (feed.spooled) return Status::Ok();
  const auto waits = [&](const ParkedAcquire& a) { return a.feed == &feed; };
  if (std::any_of(acquires.begin(), acquires.end(), waits)) {
    return InvalidArgument("end of feed '" + feed.name + "' while it asks for memory");
  }
  changed.insert(feed.name);
  if (feed.balanced) return OnSpooled(feed);
  if (const auto last = feed.log.End()) {
    memory.OnClosed(*feed.log.Get(*last));
    if (feed.cache == Cache::kDisk) {
      PumpSessions();
      memory.Settle(feed, *last);
    }
  }
  memory.OnEnded(feed);
  return Status::Ok();
}

/// In the order asked: the feeder takes answers in that order.
void FeedService::Impl::PumpAcquires() {
  while (!acquires.empty() && AnswerAcquire(acquires.front())) {
    const ParkedAcquire& done = acquires.front();
    const auto waited = std::chrono::steady_clock::now() - done.since;
    done.feed->acquire_wait_ns += static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(waited).count());
    acquires.pop_front();
  }
}

/// The feeder brings the rows of all feeds, so while it waits for room, readers may wait for rows
/// behind those that take the room. If nobody reads these meanwhile, no room will come.
void FeedService::Impl::OnTick(std::chrono::steady_clock::time_point now) {
  if (acquires.empty() || now - acquires.front().since < kStuckAfter) return;
  for (const auto& [name, feed] : feeds) {
    if (now - feed->last_get >= kStuckAfter && OthersWaitForFeeder(*feed)) feed->stuck = true;
  }
  Pump();
}

bool FeedService::Impl::OthersWaitForFeeder(const Feed& feed) const {
  return std::any_of(sessions.begin(), sessions.end(), [&](const auto& entry) {
    return entry.second.feed != &feed && entry.second.reader->waits_for_feeder();
  });
}

/// False: parked.
bool FeedService::Impl::AnswerAcquire(const ParkedAcquire& request) {
  Feed& feed = *request.feed;
  Status refused = refusal.ok() ? feed.refusal : refusal;
  // A node that has ended reads no more, but others take these rows for their passes.
  if (request.handed && feed.exchange && failure.ok()) refused = Status::Ok();
  std::optional<BufferStore::Grant> grant;
  if (refused.ok()) {
    Result<std::optional<BufferStore::Grant>> result = memory.Acquire(feed, request.bytes);
    refused = result.status();
    if (result.ok()) grant = std::move(*result);
  }
  if (!refused.ok()) {
    json packet{{"op", "refused"},
                {"feed", feed.name},
                {"code", CodeName(refused.code())},
                {"message", refused.message()}};
    if (request.handed) packet["handed"] = true;
    to_feeder.push_back(std::move(packet));
    return true;
  }
  if (!grant) return false;
  json packet{{"op", "segment"},
              {"feed", feed.name},
              {"buffer", grant->buffer},
              {"bytes", grant->bytes},
              {"create", grant->create}};
  if (request.handed) packet["handed"] = true;
  if (!grant->drop.empty()) packet["drop"] = grant->drop;
  to_feeder.push_back(std::move(packet));
  return true;
}

}  // namespace arcflow::feed
