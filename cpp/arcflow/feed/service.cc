// SPDX-License-Identifier: Apache-2.0
// FeedService: reader sessions, the order in which things happen, and what is told about it.
#include "arcflow/feed/service.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/base/mapping.h"
#include "arcflow/feed/service_impl.h"
#include "arcflow/net/packet.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxPasses = 256;

/// Rows that passes which reached their end did not use, of `rows` that they had together. Under
/// kDrop a pass may end before its reader, or anybody, has seen all rows, so what it told is too
/// little.
std::uint64_t DroppedOf(const PassStats& pass, std::uint64_t rows) {
  const std::uint64_t had = pass.used + pass.skipped;
  return std::max(pass.dropped, rows > had ? rows - had : 0);
}

json ToJson(const PassStats& pass, std::uint64_t rows) {
  return json{{"used", pass.used},
              {"padded", pass.padded},
              {"dropped", pass.complete ? DroppedOf(pass, rows) : pass.dropped},
              {"skipped", pass.skipped},
              {"steps", pass.steps},
              {"bytes", pass.bytes},
              {"wait_ns", pass.wait_ns},
              {"compute_ns", pass.compute_ns},
              {"duration_ns", pass.duration_ns},
              {"acquire_wait_ns", pass.acquire_wait_ns},
              {"peak_depth_bytes", pass.peak_depth_bytes},
              {"complete", pass.complete}};
}

/// `steps` of the sums counts the passes.
void Fold(const PassStats& pass, PassStats* whole, std::uint64_t* unfinished) {
  if (!pass.complete) {
    *unfinished += pass.used;
    return;
  }
  ++whole->steps;
  whole->used += pass.used;
  whole->padded += pass.padded;
  whole->dropped += pass.dropped;
  whole->skipped += pass.skipped;
}

}  // namespace

Result<Cache> CacheFromName(const std::string& name) {
  if (name == "auto") return Cache::kAuto;
  if (name == "memory") return Cache::kMemory;
  if (name == "disk") return Cache::kDisk;
  if (name == "none") return Cache::kNone;
  return InvalidArgument("cache '" + name + "' is none of auto, memory, disk, none");
}

FeedService::Impl::Impl(ServiceOptions options, Callbacks calls)
    : rank(options.rank),
      size(std::max(options.size, 1)),
      callbacks(std::move(calls)),
      feeds(MakeFeeds(options)),
      memory(options.feed_memory_bytes, options.segment_bytes, std::move(options.local_dirs),
             StatesOf(feeds)) {}

std::map<std::string, std::unique_ptr<FeedService::Impl::Feed>> FeedService::Impl::MakeFeeds(
    const ServiceOptions& options) {
  std::map<std::string, std::unique_ptr<Feed>> feeds;
  for (const auto& [name, feed_options] : options.feeds) {
    auto feed = std::make_unique<Feed>();
    feed->name = name;
    feed->cache = feed_options.cache;
    feed->schema = feed_options.schema;
    feed->balanced = feed_options.balance && feed_options.cache != Cache::kNone && options.size > 1;
    feed->exchange = feed_options.exchange && feed->balanced;
    feed->ranks.resize(static_cast<std::size_t>(std::max({options.size, options.rank + 1, 1})));
    feeds[name] = std::move(feed);
  }
  return feeds;
}

FeedMemory::Feeds FeedService::Impl::StatesOf(
    const std::map<std::string, std::unique_ptr<Feed>>& feeds) {
  FeedMemory::Feeds states;
  for (const auto& [name, feed] : feeds) states[name] = feed.get();
  return states;
}

Result<FeedService::Impl::Feed*> FeedService::Impl::FindFeed(const std::string& name) {
  const auto found = feeds.find(name);
  if (found != feeds.end()) return found->second.get();
  std::string known;
  for (const auto& [other, feed] : feeds) known += (known.empty() ? "'" : ", '") + other + "'";
  return NotFound("no feed '" + name + "'; the feeds of this run are " +
                  (known.empty() ? "none" : known));
}

Result<int> FeedService::Impl::AddReader(const std::string& name, Fd socket) {
  if (!socket.valid()) return InvalidArgument("a reader without a socket");
  const ReaderId id = next_reader++;
  auto reader = std::make_unique<ReaderSession>(id, std::move(socket), *this);
  const Result<Feed*> feed = FindToRead(name);
  if (!feed.ok()) {
    (void)reader->Send(
        ErrorPacket(feed.status()));  // the reader hears why before its socket closes
    return feed.status();
  }
  ARC_TRY(SendSchema(*reader, **feed));
  for (const std::uint64_t gone : std::exchange(kept_gone, {})) reader->ForgetOfOthers(gone);
  const int descriptor = reader->descriptor();
  sessions[id] = Session{std::move(reader), *feed};
  by_descriptor[descriptor] = id;
  return descriptor;
}

/// In the packet, or beside it in a memfd if it is too large for one.
Status FeedService::Impl::SendSchema(ReaderSession& reader, const Feed& feed) {
  constexpr std::size_t kMostInPacket = net::kMaxPacketBytes / 2;
  json packet{
      {"op", "schema"}, {"rank", rank}, {"size", size}, {"max_leases", memory.MaxLeases(feed)}};
  if (feed.cache == Cache::kNone) packet["read_once"] = true;
  if (feed.exchange) packet["exchange"] = true;
  json schema = feed.schema.ToJson();
  const std::string text = schema.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() <= kMostInPacket) {
    packet["schema"] = std::move(schema);
    return reader.Send(packet);
  }
  ARC_ASSIGN(const Fd memory_of_text,
             MemfdFromBytes("arcflow-schema", std::as_bytes(std::span(text))));
  return reader.Send(packet, {memory_of_text.get()});
}

bool FeedService::Impl::OnReaderReadable(int descriptor) {
  const auto found = by_descriptor.find(descriptor);
  if (found == by_descriptor.end()) return false;
  const auto session = sessions.find(found->second);
  const Status status = session->second.reader->OnReadable();
  if (!status.ok()) {
    Log(LogLevel::kWarning, "a reader of feed '" + session->second.feed->name +
                                "' broke the protocol: " + status.ToString());
  }
  Pump();
  if (session->second.reader->alive()) return true;
  LetGo(session->second);
  Feed& feed = *session->second.feed;
  RememberMapped(*session->second.reader);
  by_descriptor.erase(found);
  sessions.erase(session);
  if (feed.source != nullptr) {
    DropOldPasses(*feed.source);
  } else if (feed.removed) {
    Forget(feed);
  }
  return false;
}

Result<ReaderHost::GetAnswer> FeedService::Impl::Get(ReaderId reader, std::uint64_t row) {
  if (!failure.ok()) return failure;
  Feed& feed = *sessions.at(reader).feed;
  if (feed.balanced && row >= ReadableRows(feed)) {
    if (feed.plan && feed.log.rows() >= Target(feed)) return GetAnswer(EndAnswer{Target(feed)});
    return GetAnswer(Park{.for_rows = true});
  }
  const FeedLog::Found found = feed.log.Find(row);
  switch (found.where) {
    case FeedLog::Where::kBeyond:
      return GetAnswer(Park{.for_rows = true});
    case FeedLog::Where::kEnd:
      return GetAnswer(EndAnswer{feed.log.rows()});
    case FeedLog::Where::kDropped:
      return Dropped(feed, row);
    case FeedLog::Where::kHere:
      break;
  }
  feed.last_get = std::chrono::steady_clock::now();
  feed.stuck = false;
  Result<GetAnswer> answer = Lend(feed, reader, *found.segment);
  if (answer.ok() && feed.balanced) {
    if (auto* lent = std::get_if<SegmentAnswer>(&*answer)) Clamp(feed, &lent->segment);
  }
  return answer;
}

Result<ReaderHost::GetAnswer> FeedService::Impl::Lend(Feed& feed, ReaderId reader,
                                                      const Segment& segment) {
  if (memory.PrepareLease(feed, segment.number)) {
    feed.log.Lease(reader, segment.number, FeedLog::Holds::kSegment);
    return GetAnswer(SegmentAnswer{segment, memory.DescriptorOf(feed, segment), nullptr});
  }
  // An open segment while readers hold all the memory that they may. It closes as soon as the
  // writer goes on; if the writer waits too, a copy lets the reader go on.
  if (acquires.empty()) return GetAnswer(Park{.for_rows = false});
  Result<FeedMemory::Copy> copy = memory.CopyToDisk(segment);
  if (!copy.ok()) {
    feed.log.Lease(reader, segment.number, FeedLog::Holds::kSegment);
    return GetAnswer(SegmentAnswer{segment, memory.DescriptorOf(feed, segment), nullptr});
  }
  feed.log.Lease(reader, segment.number, FeedLog::Holds::kCopy);
  SegmentAnswer answer{segment, copy->file.get(), std::make_shared<Fd>(std::move(copy->file))};
  answer.segment.buffer = copy->id;
  return GetAnswer(std::move(answer));
}

Status FeedService::Impl::Dropped(const Feed& feed, std::uint64_t row) const {
  return FailedPrecondition(
      "row " + std::to_string(row) + " of feed '" + feed.name +
      "' was read before and its memory was used again, because cache='none' keeps rows "
      "for one pass only; use cache='auto' to read them several times");
}

Status FeedService::Impl::Release(ReaderId reader, std::uint64_t segment, std::uint64_t answers) {
  Feed& feed = *sessions.at(reader).feed;
  ARC_ASSIGN(const std::vector<std::uint64_t> orphans, feed.log.Release(reader, segment, answers));
  memory.Free(orphans);
  return Status::Ok();
}

Result<KnownSteps> FeedService::Impl::Plan(ReaderId reader, std::uint64_t batch,
                                           Remainder remainder) {
  if (!failure.ok()) return failure;
  Feed& feed = *sessions.at(reader).feed;
  feed.ranks[static_cast<std::size_t>(rank)] = Own(feed);
  return DecideSteps(feed.name, feed.balanced ? RanksForSteps(feed) : feed.ranks, rank, batch,
                     remainder);
}

void FeedService::Impl::AddPass(ReaderId reader, const PassStats& pass) {
  Feed& read = *sessions.at(reader).feed;
  Feed& feed = read.source != nullptr ? *read.source : read;
  ++feed.passes_count;
  feed.passes.push_back(pass);
  const std::uint64_t waited = AcquireWait(feed);
  feed.passes.back().acquire_wait_ns = waited - std::exchange(feed.acquire_wait_told_ns, waited);
  feed.passes.back().peak_depth_bytes =
      std::max(std::exchange(feed.peak_depth_bytes, 0), feed.log.depth_bytes());
  if (feed.passes.size() <= kMaxPasses) return;
  Fold(feed.passes.front(), &feed.older, &feed.older_unfinished);
  feed.passes.pop_front();
}

/// Gives back what a session that is over holds. Twice is once.
void FeedService::Impl::LetGo(Session& session) {
  if (session.released) return;
  session.released = true;
  memory.Free(session.feed->log.ReleaseAll(session.reader->id()));
  Pump();
}

void FeedService::Impl::PumpSessions() {
  for (auto& [id, session] : sessions) {
    if (!session.reader->alive()) continue;
    session.reader->Pump();
    session.feed->log.Passed(session.reader->passed_row());
  }
}

void FeedService::Impl::Pump() {
  const std::size_t waiting = acquires.size();
  PumpSessions();
  PumpAcquires();
  // A reader parked on an open segment may get a copy now that a writer waits.
  if (acquires.size() > 0 && waiting > 0) PumpSessions();
  TellOfGone();
}

/// Readers hear which memory is destroyed; of what ended sessions knew, all, whatever their feed.
void FeedService::Impl::TellOfGone() {
  for (const std::uint64_t id : memory.TakeGone()) {
    const bool kept = kept_mapped.erase(id) > 0;
    for (auto& [reader, session] : sessions) {
      if (kept) {
        session.reader->ForgetOfOthers(id);
      } else {
        session.reader->Forget(id);
      }
    }
    if (kept && sessions.empty()) kept_gone.push_back(id);
  }
}

void FeedService::Impl::RememberMapped(const ReaderSession& reader) {
  kept_mapped.insert(reader.known().begin(), reader.known().end());
  kept_gone.insert(kept_gone.end(), reader.untold().begin(), reader.untold().end());
}

void FeedService::Impl::Flush() {
  if (flushing) return;  // the outer call goes on with what this one added
  flushing = true;
  const auto tell_one = [](std::set<std::string>* news, const auto& call) {
    if (news->empty()) return false;
    const std::string feed = *news->begin();
    news->erase(news->begin());
    if (call) call(feed);
    return true;
  };
  for (;;) {
    if (!to_feeder.empty()) {
      const json packet = std::move(to_feeder.front());
      to_feeder.pop_front();
      if (callbacks.send_to_feeder) callbacks.send_to_feeder(packet);
      continue;
    }
    if (tell_one(&changed, callbacks.rows_changed)) continue;
    if (tell_one(&dropped, callbacks.dropped)) continue;
    if (tell_one(&planned, callbacks.balanced)) continue;
    if (!tell_one(&settled, callbacks.settled)) break;
  }
  flushing = false;
}

/// With what the feeder waits just now.
std::uint64_t FeedService::Impl::AcquireWait(const Feed& feed) const {
  std::uint64_t wait_ns = feed.acquire_wait_ns;
  const auto now = std::chrono::steady_clock::now();
  for (const ParkedAcquire& one : acquires) {
    if (one.feed != &feed) continue;
    wait_ns += static_cast<std::uint64_t>(std::chrono::nanoseconds(now - one.since).count());
  }
  return wait_ns;
}

/// Not at every publish: the depth is counted segment by segment.
void FeedService::Impl::SampleDepth(Feed& feed, std::chrono::steady_clock::time_point now) {
  constexpr std::chrono::milliseconds kInterval{20};
  if (now - feed.depth_sampled < kInterval) return;
  feed.depth_sampled = now;
  feed.peak_depth_bytes = std::max(feed.peak_depth_bytes, feed.log.depth_bytes());
}

json FeedService::Impl::Levels(const Feed& feed) const {
  const RankRows own = Own(feed);
  return json{{"rows", own.rows},
              {"bytes", feed.log.total_bytes()},
              {"ended", own.ended},
              {"spilled_bytes", feed.spilled_bytes},
              {"depth_bytes", feed.log.depth_bytes()},
              {"acquire_wait_ns", AcquireWait(feed)}};
}

json FeedService::Impl::FeedStats(const Feed& feed) const {
  json passes = json::array();
  const std::uint64_t rows = feed.plan ? Target(feed) : feed.log.rows();
  for (const PassStats& pass : feed.passes) passes.push_back(ToJson(pass, rows));
  json stats = Levels(feed);
  stats["rows"] = rows;
  stats["given"] = feed.plan && feed.spooled_rows > rows ? feed.spooled_rows - rows : 0;
  stats["taken"] = feed.plan && feed.spooled_rows < rows ? rows - feed.spooled_rows : 0;
  stats["segments"] = feed.log.segments();
  stats["spilled_segments"] = feed.log.segments_in_file();
  stats["leased_bytes"] = feed.log.leased_bytes();
  stats["passes"] = std::move(passes);
  stats["passes_count"] = feed.passes_count;
  stats["older"] = {{"used", feed.older.used},
                    {"padded", feed.older.padded},
                    {"dropped", DroppedOf(feed.older, feed.older.steps * rows)},
                    {"skipped", feed.older.skipped},
                    {"unfinished", feed.older_unfinished}};
  return stats;
}

json FeedService::Impl::Stats() const {
  json stats{{"buffers_bytes", memory.store().used_bytes()},
             {"peak_buffers_bytes", memory.store().peak_bytes()},
             {"budget_bytes", memory.store().budget_bytes()},
             {"spilled_bytes", 0},
             {"feeds", json::object()}};
  std::uint64_t spilled = 0;
  for (const auto& [name, feed] : feeds) {
    spilled += feed->spilled_bytes;
    if (feed->source == nullptr) stats["feeds"][name] = FeedStats(*feed);
  }
  stats["spilled_bytes"] = spilled;
  return stats;
}

FeedService::FeedService(ServiceOptions options, Callbacks callbacks)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(callbacks))) {}

FeedService::~FeedService() = default;

Status FeedService::OnFeederPacket(const json& body, std::vector<Fd> fds) {
  const Status status = impl_->OnFeederPacket(body, std::move(fds));
  impl_->Pump();
  impl_->Flush();
  return status;
}

Result<int> FeedService::AddReader(const std::string& feed, Fd socket) {
  Result<int> descriptor = impl_->AddReader(feed, std::move(socket));
  impl_->Flush();
  return descriptor;
}

bool FeedService::OnReaderReadable(int descriptor) {
  const bool more = impl_->OnReaderReadable(descriptor);
  impl_->Flush();
  return more;
}

void FeedService::SetRanks(const std::string& feed, const std::vector<RankRows>& ranks) {
  const Result<Impl::Feed*> found = impl_->FindFeed(feed);
  if (!found.ok()) return;
  std::vector<RankRows>& known = (*found)->ranks;
  std::copy_n(ranks.begin(), std::min(ranks.size(), known.size()), known.begin());
  impl_->PlanIfAllEnded(**found);
  impl_->Pump();
  impl_->Flush();
}

RankRows FeedService::Local(const std::string& feed) const {
  const Result<Impl::Feed*> found = impl_->FindFeed(feed);
  if (!found.ok()) return {};
  return impl_->Own(**found);
}

json FeedService::Levels(const std::string& feed) const {
  const Result<Impl::Feed*> found = impl_->FindFeed(feed);
  return found.ok() ? impl_->Levels(**found) : json::object();
}

void FeedService::OnTick(std::chrono::steady_clock::time_point now) {
  impl_->OnTick(now);
  impl_->Flush();
}

bool FeedService::WaitsForRows() const {
  return std::any_of(impl_->sessions.begin(), impl_->sessions.end(),
                     [](const auto& entry) { return entry.second.reader->waits_for_feeder(); });
}

void FeedService::RefuseMore() {
  if (impl_->refusal.ok()) impl_->refusal = Cancelled("the node wants no more rows");
  impl_->Pump();
  impl_->Flush();
}

void FeedService::Fail(const Status& why) {
  if (why.ok() || !impl_->failure.ok()) return;
  impl_->failure = why;
  if (impl_->refusal.ok()) impl_->refusal = why;
  impl_->Pump();
  impl_->Flush();
}

json FeedService::Stats() const { return impl_->Stats(); }

}  // namespace arcflow::feed
