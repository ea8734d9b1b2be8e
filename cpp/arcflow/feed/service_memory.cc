// SPDX-License-Identifier: Apache-2.0
// FeedMemory: grants, reclaiming by cache mode, and the reserve that keeps leases from starving a
// writer.
#include "arcflow/feed/service_memory.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "arcflow/base/log.h"
#include "arcflow/feed/spill.h"

namespace arcflow::feed {
namespace {

std::string Bytes(std::size_t n) { return std::to_string(n) + " bytes"; }

bool MayMove(const FeedState& feed) {
  return feed.cache == Cache::kAuto || feed.cache == Cache::kDisk;
}

}  // namespace

FeedMemory::FeedMemory(std::size_t budget_bytes, std::size_t segment_bytes,
                       std::vector<std::string> dirs, Feeds feeds)
    : store_(budget_bytes),
      dirs_(std::move(dirs)),
      feeds_(std::move(feeds)),
      unit_(BufferStore::RoundUp(segment_bytes)) {}

Result<std::optional<BufferStore::Grant>> FeedMemory::Acquire(FeedState& feed, std::size_t bytes) {
  bytes = BufferStore::RoundUp(bytes);
  if (bytes > store_.budget_bytes()) {
    return ResourceExhausted("a segment of " + Bytes(bytes) + " for feed '" + feed.name +
                             "' is over the whole budget feed_memory=" +
                             Bytes(store_.budget_bytes()) + "; raise feed_memory");
  }
  if (feed.cache == Cache::kMemory) {
    ARC_TRY(CheckFitsInMemory(feed, bytes));
  } else {
    unit_ = std::max(unit_, bytes);
  }
  for (;;) {
    std::optional<BufferStore::Grant> grant = store_.TryGrant(feed.name, bytes);
    if (grant) return grant;
    ARC_ASSIGN(const bool freed, Reclaim(feed));
    if (!freed) break;
  }
  ARC_TRY(WhyNever(feed, bytes));
  return std::optional<BufferStore::Grant>();
}

/// Frees some memory of the feed that holds most, so that feeds that take turns come to equal
/// shares; of this feed among equals, whose writer can use it as it is.
Result<bool> FeedMemory::Reclaim(FeedState& feed) {
  std::vector<FeedState*> victims{&feed};
  for (const auto& [name, other] : feeds_) {
    if (other != &feed) victims.push_back(other);
  }
  std::stable_sort(victims.begin(), victims.end(), [&](const FeedState* a, const FeedState* b) {
    return store_.busy_bytes(a->name) > store_.busy_bytes(b->name);
  });
  for (FeedState* victim : victims) {
    ARC_ASSIGN(const bool freed, ReclaimFrom(*victim));
    if (freed) return true;
  }
  return false;
}

Result<bool> FeedMemory::ReclaimFrom(FeedState& feed) {
  if (feed.cache == Cache::kNone) {
    if (DropPassed(feed)) return true;
    if (!feed.stuck) return false;
  }
  if (feed.cache == Cache::kMemory) return false;
  const std::optional<std::uint64_t> victim = feed.log.SpillVictim();
  if (!victim) return false;
  ARC_TRY(Spill(feed, *victim));
  return true;
}

/// Drops rows that were read until some memory is free.
bool FeedMemory::DropPassed(FeedState& feed) {
  while (const std::optional<std::uint64_t> victim = feed.log.DropVictim()) {
    const Segment gone = feed.log.Drop(*victim);
    if (!gone.in_file) {
      store_.Free(gone.buffer);
      return true;
    }
    feed.files.erase(gone.buffer);
    feed.spilled_bytes -= gone.bytes;
    gone_files_.push_back(gone.buffer);
  }
  return false;
}

Status FeedMemory::Spill(FeedState& feed, std::uint64_t number) {
  const Segment segment = *feed.log.Get(number);
  const BufferStore::Buffer* buffer = store_.Find(segment.buffer);
  Result<Fd> file = SpillToDisk(dirs_, buffer->memfd, segment.bytes);
  spill_error_ = file.status();
  if (!file.ok()) {
    spill_error_ = Status(file.status().code(),
                          "feed '" + feed.name + "': feed_memory=" + Bytes(store_.budget_bytes()) +
                              " is used up, and: " + std::string(file.status().message()));
    return spill_error_;
  }
  const std::uint64_t id = store_.NextId();
  feed.files[id] = std::move(*file);
  feed.spilled_bytes += segment.bytes;
  if (const auto orphan = feed.log.MoveToFile(number, id)) store_.Free(*orphan);
  return Status::Ok();
}

void FeedMemory::SpillOrWarn(FeedState& feed, std::uint64_t number) {
  const bool warned = !spill_error_.ok();
  const Status moved = Spill(feed, number);
  if (!moved.ok() && !warned) Log(LogLevel::kWarning, moved.message());
}

/// Memory that no reclaiming and no reader can free: rows of feeds that stay in memory, and what
/// writers are filling.
std::size_t FeedMemory::FixedBytes() const {
  std::size_t bytes = 0;
  for (const auto& [name, feed] : feeds_) {
    bytes += feed->cache == Cache::kMemory ? store_.busy_bytes(name) : store_.granted_bytes(name);
  }
  return bytes;
}

/// One segment for each writer that still writes; a quarter of the budget as long as one does, for
/// segments larger than any so far.
std::size_t FeedMemory::ReserveBytes() const {
  std::size_t writers = 0;
  for (const auto& [name, feed] : feeds_) {
    if (feed->cache != Cache::kMemory && !feed->log.ended()) ++writers;
  }
  if (writers == 0) return 0;
  return std::max(writers * unit_, store_.budget_bytes() / 4);
}

/// Rows that stay in memory may not take what other feeds need to make any progress.
Status FeedMemory::CheckFitsInMemory(const FeedState& feed, std::size_t bytes) const {
  std::size_t taken = bytes;
  for (const auto& [name, other] : feeds_) {
    if (other->cache == Cache::kMemory) {
      taken += store_.busy_bytes(name);
      continue;
    }
    taken += other->log.leased_bytes();
    if (!other->log.ended()) taken += unit_;
  }
  if (taken <= store_.budget_bytes()) return Status::Ok();
  return ResourceExhausted("the rows of feed '" + feed.name +
                           "' do not fit into feed_memory=" + Bytes(store_.budget_bytes()) +
                           "; use cache='auto' (moves rows to local disk when memory is used up), "
                           "or raise feed_memory");
}

/// The error when waiting for readers cannot help.
Status FeedMemory::WhyNever(const FeedState& feed, std::size_t bytes) const {
  const std::size_t fixed = FixedBytes();
  if (fixed > store_.budget_bytes() - bytes) {
    std::string holders;
    for (const auto& [name, other] : feeds_) {
      const bool stays = other->cache == Cache::kMemory;
      const std::size_t held = stays ? store_.busy_bytes(name) : store_.granted_bytes(name);
      if (held == 0) continue;
      holders += (holders.empty() ? "'" : ", '") + name + "' " + Bytes(held) +
                 (stays ? " (cache='memory')" : " (being filled)");
    }
    return ResourceExhausted("no room for a segment of " + Bytes(bytes) + " for feed '" +
                             feed.name + "' in feed_memory=" + Bytes(store_.budget_bytes()) +
                             ", held by " + holders + "; raise feed_memory");
  }
  // Readers hold all the rest and nothing can move away from under them.
  if (MayMove(feed) && !spill_error_.ok()) return spill_error_;
  return Status::Ok();
}

bool FeedMemory::PrepareLease(FeedState& feed, std::uint64_t number) {
  const Segment& segment = *feed.log.Get(number);
  if (segment.in_file || feed.cache == Cache::kMemory || feed.log.Leased(segment.buffer))
    return true;
  std::size_t taken = segment.bytes + ReserveBytes();
  for (const auto& [name, other] : feeds_) {
    taken += other->cache == Cache::kMemory ? store_.busy_bytes(name) : other->log.leased_bytes();
  }
  if (taken <= store_.budget_bytes()) return true;
  if (!segment.closed) return false;
  // Without a disk the reader gets its rows all the same; it may keep the writer waiting.
  SpillOrWarn(feed, number);
  return true;
}

Result<FeedMemory::Copy> FeedMemory::CopyToDisk(const Segment& segment) {
  const BufferStore::Buffer* buffer = store_.Find(segment.buffer);
  if (buffer == nullptr) return Internal("no memory for buffer " + std::to_string(segment.buffer));
  ARC_ASSIGN(Fd file, SpillToDisk(dirs_, buffer->memfd, segment.bytes));
  return Copy{store_.NextId(), std::move(file)};
}

int FeedMemory::DescriptorOf(const FeedState& feed, const Segment& segment) const {
  if (segment.in_file) return feed.files.at(segment.buffer).get();
  const BufferStore::Buffer* buffer = store_.Find(segment.buffer);
  return buffer == nullptr ? -1 : buffer->memfd.get();
}

void FeedMemory::Settle(FeedState& feed, std::uint64_t number) {
  const Segment* segment = feed.log.Get(number);
  if (feed.cache != Cache::kDisk || segment == nullptr || segment->in_file) return;
  SpillOrWarn(feed, number);
}

void FeedMemory::OnEnded(FeedState& feed) {
  for (const std::uint64_t buffer : store_.Granted(feed.name)) store_.Free(buffer);
  store_.RetireFeed(feed.name);
}

void FeedMemory::Free(const std::vector<std::uint64_t>& orphans) {
  for (const std::uint64_t buffer : orphans) store_.Free(buffer);
}

void FeedMemory::Add(FeedState& feed) { feeds_[feed.name] = &feed; }

void FeedMemory::Remove(FeedState& feed) {
  for (const auto& [id, file] : feed.files) gone_files_.push_back(id);
  feed.files.clear();
  store_.Remove(feed.name);
  feeds_.erase(feed.name);
}

Status FeedMemory::Splice(FeedState& from, FeedState& to) {
  if (to.log.ended()) return InvalidArgument("feed '" + to.name + "' has ended");
  for (const Segment& segment : from.log.all()) {
    if (!segment.dropped) ARC_TRY(to.log.Append(segment));
  }
  from.log = FeedLog();
  from.log.End();
  store_.Move(from.name, to.name);
  store_.RetireFeed(to.name);  // no writer has its memory mapped
  to.files.merge(from.files);
  to.spilled_bytes += std::exchange(from.spilled_bytes, 0);
  return Status::Ok();
}

void FeedMemory::Truncate(FeedState& feed, std::uint64_t rows) {
  for (const Segment& gone : feed.log.Truncate(rows)) {
    if (!gone.in_file) {
      if (!feed.log.Leased(gone.buffer)) store_.Free(gone.buffer);
      continue;
    }
    feed.files.erase(gone.buffer);
    feed.spilled_bytes -= gone.bytes;
    gone_files_.push_back(gone.buffer);
  }
}

std::size_t FeedMemory::MaxLeases(const FeedState& feed) const {
  const std::size_t unit = unit_ > 0 ? unit_ : std::max<std::size_t>(store_.budget_bytes() / 8, 1);
  const std::size_t segments = store_.budget_bytes() / unit;
  // Two readers at their limits leave half of the memory; rows that stay in memory anyway are no
  // burden.
  return std::max<std::size_t>(1, feed.cache == Cache::kMemory ? segments / 2 : segments / 4);
}

std::vector<std::uint64_t> FeedMemory::TakeGone() {
  std::vector<std::uint64_t> gone = store_.TakeDestroyed();
  gone.insert(gone.end(), gone_files_.begin(), gone_files_.end());
  gone_files_.clear();
  return gone;
}

}  // namespace arcflow::feed
