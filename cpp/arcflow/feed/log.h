// SPDX-License-Identifier: Apache-2.0
// FeedLog: which rows of a feed lie in which segment, who holds leases on them, and which may move
// or go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::feed {

/// A run of consecutive rows of a feed in one piece of memory or one file.
struct Segment {
  std::uint64_t number = 0;     // position in the feed, from 0
  std::uint64_t first_row = 0;  // of the feed
  std::uint64_t rows = 0;       // visible so far; > 0
  std::uint64_t buffer = 0;     // id of the memory, or of the file once it moved
  std::size_t bytes = 0;        // of that memory or file
  std::uint64_t skip = 0;       // rows in that memory before the first one, which are not ours
  bool closed = false;          // no more rows will come
  bool in_file = false;
  bool dropped = false;  // its rows are gone (cache none)
  int readers = 0;       // that hold a lease of any kind

  std::uint64_t end_row() const { return first_row + rows; }
};

/// The log of one feed: segments in order, the leases of its readers, and what readers have passed.
/// Pure bookkeeping: it touches no memory and no descriptor. At most one segment, the last, is
/// open. A buffer is *orphaned* when no segment lives in it and no reader holds a lease on what it
/// held: only then may its memory be used again. Functions that can orphan buffers return their
/// ids. Threads: one thread. Never blocks.
class FeedLog {
 public:
  using ReaderId = std::uint64_t;
  static constexpr std::uint64_t kMaxRows = std::uint64_t{1} << 62;

  struct Published {
    bool grew = false;                    // rows became visible
    bool closed = false;                  // the segment is closed now
    bool unused = false;                  // closed before it held any row: no segment came of it
    std::optional<std::uint64_t> number;  // the segment, when there is one
  };
  /// Makes rows [0, rows) of the segment in `buffer` visible; the first row makes the segment.
  /// Errors: InvalidArgument after End, for fewer rows than before, for another buffer while a
  /// segment is open, and for a row number out of range. Nothing changes then.
  Result<Published> Publish(std::uint64_t buffer, std::size_t bytes, std::uint64_t rows,
                            bool closed);
  /// Adds a closed segment of another log, with all its rows; number and first row are given anew.
  /// Errors: as Publish.
  Status Append(Segment segment);
  /// Closes the open segment, if there is one, and returns its number; more rows may come.
  std::optional<std::uint64_t> CloseLast();
  /// Forgets all rows from `rows` on, which no reader has seen: whole segments, returned as they
  /// were, and the end of one. Requires that no segment is open, and rows <= rows().
  std::vector<Segment> Truncate(std::uint64_t rows);
  /// No more rows. Closes the open segment and returns its number. Idempotent.
  std::optional<std::uint64_t> End();

  std::uint64_t rows() const { return rows_; }
  bool ended() const { return ended_; }
  /// Bytes of all segments ever begun.
  std::uint64_t total_bytes() const { return total_bytes_; }

  enum class Where { kHere, kBeyond, kEnd, kDropped };
  struct Found {
    Where where = Where::kBeyond;
    const Segment* segment = nullptr;  // kHere and kDropped; lives until the next change of the log
  };
  /// Where a row is: in a segment, not there yet, behind the end of an ended feed, or dropped.
  /// Cost: O(log segments).
  Found Find(std::uint64_t row) const;
  /// The segment of that number; nullptr when there never was one.
  const Segment* Get(std::uint64_t number) const;
  /// Segments not dropped.
  std::size_t segments() const { return live_; }
  std::size_t segments_in_file() const { return in_file_; }

  /// How a reader got a segment: as it lies now, or as a copy of its own (which keeps no memory of
  /// the log busy).
  enum class Holds { kSegment, kCopy };
  /// `reader` may use the segment. Counts how often it was called; leases on several places of one
  /// segment add up. Requires a segment that exists and is not dropped.
  void Lease(ReaderId reader, std::uint64_t number, Holds what);
  /// `reader` holds nothing any more of what `times` calls of Lease gave it: the lease ends when
  /// that is all of them, so that a release and a new answer may cross on their way. kAllTimes ends
  /// it in any case. Returns orphaned buffers. Errors: InvalidArgument when there is no lease or
  /// `times` is 0 or above what was given; nothing changes then.
  static constexpr std::uint64_t kAllTimes = UINT64_MAX;
  Result<std::vector<std::uint64_t>> Release(ReaderId reader, std::uint64_t number,
                                             std::uint64_t times = kAllTimes);
  std::vector<std::uint64_t> ReleaseAll(ReaderId reader);
  /// Leases on memory (not on files), whether the segment still lives there or has moved.
  bool Leased(std::uint64_t buffer) const { return leases_on_.contains(buffer); }
  /// Bytes of memory under a lease, each buffer once.
  std::size_t leased_bytes() const { return leased_bytes_; }

  /// The oldest closed segment that lies in memory which no reader holds.
  std::optional<std::uint64_t> SpillVictim() const;
  /// The segment lies in file `file` from now on. Returns its former buffer if that is orphaned.
  /// Requires a closed segment in memory.
  std::optional<std::uint64_t> MoveToFile(std::uint64_t number, std::uint64_t file);

  /// A reader has finished with all rows below `row`.
  void Passed(std::uint64_t row);
  /// The oldest closed segment that the furthest reader has passed and that no reader holds (a copy
  /// of a segment in memory does not count).
  std::optional<std::uint64_t> DropVictim() const;
  /// Forgets the segment's rows and returns the segment as it was. Requires a closed one as
  /// DropVictim finds.
  Segment Drop(std::uint64_t number);
  /// Bytes of segments that no reader has passed: how far the writer is ahead.
  std::uint64_t depth_bytes() const;
  /// Segments in order, dropped ones among them.
  const std::deque<Segment>& all() const { return segments_; }

 private:
  struct MemoryLease {
    std::size_t bytes = 0;
    int count = 0;
  };
  struct ReaderLease {
    std::uint64_t times = 0;
    std::vector<std::uint64_t> buffers;  // in memory
  };

  Segment& At(std::uint64_t number) { return segments_[number - base_]; }
  bool OpenSegment() const { return !segments_.empty() && !segments_.back().closed; }
  std::uint64_t Close();
  void Unlease(const std::vector<std::uint64_t>& buffers, std::uint64_t number,
               std::vector<std::uint64_t>* orphans);

  std::deque<Segment>
      segments_;  // numbers base_, base_ + 1, …; dropped ones stay until they are at the front
  std::uint64_t base_ = 0;
  std::set<std::uint64_t> closed_;            // numbers of closed segments not dropped
  std::set<std::uint64_t> closed_in_memory_;  // those of them that did not move
  std::map<std::pair<ReaderId, std::uint64_t>, ReaderLease> leases_;  // by reader and segment
  std::map<std::uint64_t, MemoryLease> leases_on_;                    // by buffer
  std::size_t leased_bytes_ = 0;
  std::size_t live_ = 0;
  std::size_t in_file_ = 0;
  std::uint64_t rows_ = 0;
  std::uint64_t passed_row_ = 0;
  std::uint64_t total_bytes_ = 0;
  bool ended_ = false;
};

}  // namespace arcflow::feed
