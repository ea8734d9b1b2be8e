// SPDX-License-Identifier: Apache-2.0
// FeedMemory: the policy of a node's feed memory: who gets room, which rows move or go for it,
// which leases leave room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/feed/log.h"
#include "arcflow/feed/service.h"
#include "arcflow/feed/store.h"

namespace arcflow::feed {

/// One feed's log and where its moved segments lie.
struct FeedState {
  std::string name;
  Cache cache = Cache::kAuto;
  FeedLog log;
  bool stuck = false;  // under kNone: nobody reads it, and to wait until somebody does helps nobody
  std::map<std::uint64_t, Fd> files;  // read-only, by id
  std::uint64_t spilled_bytes = 0;    // in `files`
};

/// Applies the cache modes to the logs of all feeds under one budget. The argument why it cannot
/// deadlock is in docs/design/feed.md; its core is the reserve: memory that leases of readers never
/// take, so that a writer always finds room however many readers stand still. Threads: one thread.
/// Blocking: disk writes. Lifetime: `feeds` must outlive it.
class FeedMemory {
 public:
  using Feeds = std::map<std::string, FeedState*>;
  FeedMemory(std::size_t budget_bytes, std::size_t segment_bytes, std::vector<std::string> dirs,
             Feeds feeds);

  /// Room for a segment of the feed, taken from rows that may move or go if need be; std::nullopt:
  /// only when readers have gone on. Errors (the request will never be granted): ResourceExhausted,
  /// or what the disk said.
  Result<std::optional<BufferStore::Grant>> Acquire(FeedState& feed, std::size_t bytes);

  /// Sees to it that leasing a segment leaves the writer room: moves it to disk if need be. False:
  /// that cannot be because it is open; it has to be closed first, or copied.
  bool PrepareLease(FeedState& feed, std::uint64_t number);
  /// A copy of the segment on disk, under an id of its own, for one reader to keep.
  struct Copy {
    std::uint64_t id = 0;
    Fd file;
  };
  Result<Copy> CopyToDisk(const Segment& segment);
  /// The descriptor of a segment's memory or file; -1 if there is none.
  int DescriptorOf(const FeedState& feed, const Segment& segment) const;

  /// The segment is closed: its memory is not written any more.
  void OnClosed(const Segment& segment) { store_.Close(segment.buffer); }
  /// Under kDisk, moves a closed segment to disk. If that fails it stays, and the writer hears of
  /// it when it needs room.
  void Settle(FeedState& feed, std::uint64_t number);
  /// The feed has ended: frees what its writer holds.
  void OnEnded(FeedState& feed);
  void Free(const std::vector<std::uint64_t>& orphans);

  /// A feed that came after the start; it must outlive this, or be removed.
  void Add(FeedState& feed);
  /// Lets go of all that a feed without leases holds.
  void Remove(FeedState& feed);
  /// All segments of `from`, which has ended and has no readers, become the newest of `to`.
  /// InvalidArgument when `to` has ended; nothing changes then.
  Status Splice(FeedState& from, FeedState& to);

  /// Lets go of all rows from `rows` on, which no reader has seen.
  void Truncate(FeedState& feed, std::uint64_t rows);

  /// What a reader opened now is told: how many segments it may hold beyond the one it reads.
  std::size_t MaxLeases(const FeedState& feed) const;

  /// Ids of memory and files that are gone since the last call, for readers.
  std::vector<std::uint64_t> TakeGone();

  BufferStore& store() { return store_; }
  const BufferStore& store() const { return store_; }

 private:
  Result<bool> Reclaim(FeedState& feed);
  Result<bool> ReclaimFrom(FeedState& feed);
  Status Spill(FeedState& feed, std::uint64_t number);
  void SpillOrWarn(FeedState& feed, std::uint64_t number);
  bool DropPassed(FeedState& feed);
  Status CheckFitsInMemory(const FeedState& feed, std::size_t bytes) const;
  Status WhyNever(const FeedState& feed, std::size_t bytes) const;
  std::size_t FixedBytes() const;
  std::size_t ReserveBytes() const;

  BufferStore store_;
  std::vector<std::string> dirs_;
  Feeds feeds_;
  std::size_t
      unit_;  // size of segments: the largest that a feed whose rows may move or go has asked for
  Status spill_error_;  // of the newest attempt
  std::vector<std::uint64_t> gone_files_;
};

}  // namespace arcflow::feed
