// SPDX-License-Identifier: Apache-2.0
// FeedLog: numbered segments in a deque, leases by (reader, segment), and sets of those that may
// move or go.
#include "arcflow/feed/log.h"

#include <algorithm>
#include <cassert>
#include <string>

namespace arcflow::feed {

Result<FeedLog::Published> FeedLog::Publish(std::uint64_t buffer, std::size_t bytes,
                                            std::uint64_t rows, bool closed) {
  if (ended_) return InvalidArgument("publish after the end of the feed");
  Segment* open = OpenSegment() ? &segments_.back() : nullptr;
  if (open != nullptr && open->buffer != buffer) {
    return InvalidArgument("publish of buffer " + std::to_string(buffer) +
                           " while the segment in buffer " + std::to_string(open->buffer) +
                           " is open");
  }
  const std::uint64_t before = open != nullptr ? open->rows : 0;
  if (rows < before) {
    return InvalidArgument("publish takes back rows: " + std::to_string(rows) + " after " +
                           std::to_string(before));
  }
  if (rows > kMaxRows || rows_ + (rows - before) > kMaxRows) {
    return InvalidArgument("publish of " + std::to_string(rows) + " rows is out of range");
  }
  Published out;
  out.closed = closed;
  if (rows == 0) {
    out.unused = closed;
    return out;
  }
  if (open == nullptr) {
    Segment segment;
    segment.number = base_ + segments_.size();
    segment.first_row = rows_;
    segment.buffer = buffer;
    segment.bytes = bytes;
    segments_.push_back(segment);
    open = &segments_.back();
    total_bytes_ += bytes;
    ++live_;
  }
  open->rows = rows;
  rows_ += rows - before;
  out.grew = rows > before;
  out.number = open->number;
  if (closed) Close();
  return out;
}

std::uint64_t FeedLog::Close() {
  Segment& last = segments_.back();
  last.closed = true;
  closed_.insert(last.number);
  closed_in_memory_.insert(last.number);
  return last.number;
}

Status FeedLog::Append(Segment segment) {
  if (ended_) return InvalidArgument("rows after the end of the feed");
  if (OpenSegment()) return InvalidArgument("rows of another log while a segment is open");
  if (segment.rows > kMaxRows - rows_) return InvalidArgument("too many rows");
  segment.number = base_ + segments_.size();
  segment.first_row = rows_;
  segment.closed = true;
  segment.readers = 0;
  rows_ += segment.rows;
  total_bytes_ += segment.bytes;
  ++live_;
  closed_.insert(segment.number);
  if (segment.in_file) {
    ++in_file_;
  } else {
    closed_in_memory_.insert(segment.number);
  }
  segments_.push_back(segment);
  return Status::Ok();
}

std::optional<std::uint64_t> FeedLog::CloseLast() {
  if (!OpenSegment()) return std::nullopt;
  return Close();
}

std::vector<Segment> FeedLog::Truncate(std::uint64_t rows) {
  assert(!OpenSegment() && rows <= rows_);
  std::vector<Segment> gone;
  while (!segments_.empty() && segments_.back().first_row >= rows) {
    const Segment& last = segments_.back();
    closed_.erase(last.number);
    closed_in_memory_.erase(last.number);
    if (!last.dropped) {
      --live_;
      if (last.in_file) --in_file_;
      gone.push_back(last);
    }
    total_bytes_ -= last.bytes;
    segments_.pop_back();
  }
  if (!segments_.empty() && segments_.back().end_row() > rows)
    segments_.back().rows = rows - segments_.back().first_row;
  rows_ = rows;
  return gone;
}

std::optional<std::uint64_t> FeedLog::End() {
  ended_ = true;
  return CloseLast();
}

FeedLog::Found FeedLog::Find(std::uint64_t row) const {
  if (row >= rows_) return {ended_ ? Where::kEnd : Where::kBeyond, nullptr};
  const auto after = std::partition_point(segments_.begin(), segments_.end(),
                                          [&](const Segment& s) { return s.first_row <= row; });
  if (after == segments_.begin()) return {Where::kDropped, nullptr};
  const Segment& segment = *std::prev(after);
  return {segment.dropped ? Where::kDropped : Where::kHere, &segment};
}

const Segment* FeedLog::Get(std::uint64_t number) const {
  if (number < base_ || number - base_ >= segments_.size()) return nullptr;
  return &segments_[number - base_];
}

void FeedLog::Lease(ReaderId reader, std::uint64_t number, Holds what) {
  Segment& segment = At(number);
  assert(!segment.dropped);
  ReaderLease& lease = leases_[{reader, number}];
  if (lease.times++ == 0) ++segment.readers;
  std::vector<std::uint64_t>& buffers = lease.buffers;
  if (segment.in_file || what == Holds::kCopy) return;
  if (std::find(buffers.begin(), buffers.end(), segment.buffer) != buffers.end()) return;
  buffers.push_back(segment.buffer);
  MemoryLease& memory = leases_on_[segment.buffer];
  if (memory.count++ == 0) {
    memory.bytes = segment.bytes;
    leased_bytes_ += segment.bytes;
  }
}

void FeedLog::Unlease(const std::vector<std::uint64_t>& buffers, std::uint64_t number,
                      std::vector<std::uint64_t>* orphans) {
  Segment* segment = Get(number) == nullptr ? nullptr : &At(number);
  const bool moved = segment == nullptr || segment->dropped || segment->in_file;
  if (segment != nullptr) --segment->readers;
  for (const std::uint64_t buffer : buffers) {
    const auto memory = leases_on_.find(buffer);
    if (--memory->second.count > 0) continue;
    leased_bytes_ -= memory->second.bytes;
    leases_on_.erase(memory);
    // A segment lies in one piece of memory in its life: it has left this buffer or still lives in
    // it.
    if (moved) orphans->push_back(buffer);
  }
}

Result<std::vector<std::uint64_t>> FeedLog::Release(ReaderId reader, std::uint64_t number,
                                                    std::uint64_t times) {
  const auto lease = leases_.find({reader, number});
  if (lease == leases_.end()) {
    return InvalidArgument("release of segment " + std::to_string(number) +
                           ", which this reader does not hold");
  }
  const std::uint64_t given = lease->second.times;
  if (times == kAllTimes) times = given;
  if (times == 0 || times > given) {
    return InvalidArgument("release of " + std::to_string(times) + " answers with segment " +
                           std::to_string(number) + " of " + std::to_string(given));
  }
  std::vector<std::uint64_t> orphans;
  lease->second.times -= times;
  if (lease->second.times > 0) return orphans;
  Unlease(lease->second.buffers, number, &orphans);
  leases_.erase(lease);
  return orphans;
}

std::vector<std::uint64_t> FeedLog::ReleaseAll(ReaderId reader) {
  std::vector<std::uint64_t> orphans;
  auto lease = leases_.lower_bound({reader, 0});
  while (lease != leases_.end() && lease->first.first == reader) {
    Unlease(lease->second.buffers, lease->first.second, &orphans);
    lease = leases_.erase(lease);
  }
  return orphans;
}

std::optional<std::uint64_t> FeedLog::SpillVictim() const {
  for (const std::uint64_t number : closed_in_memory_) {
    if (!Leased(Get(number)->buffer)) return number;
  }
  return std::nullopt;
}

std::optional<std::uint64_t> FeedLog::MoveToFile(std::uint64_t number, std::uint64_t file) {
  Segment& segment = At(number);
  assert(segment.closed && !segment.in_file && !segment.dropped);
  const std::uint64_t buffer = segment.buffer;
  segment.buffer = file;
  segment.in_file = true;
  closed_in_memory_.erase(number);
  ++in_file_;
  if (Leased(buffer)) return std::nullopt;
  return buffer;
}

void FeedLog::Passed(std::uint64_t row) { passed_row_ = std::max(passed_row_, row); }

std::optional<std::uint64_t> FeedLog::DropVictim() const {
  for (const std::uint64_t number : closed_) {
    const Segment& segment = *Get(number);
    if (segment.end_row() > passed_row_) return std::nullopt;
    const bool held = segment.in_file ? segment.readers > 0 : Leased(segment.buffer);
    if (!held) return number;
  }
  return std::nullopt;
}

Segment FeedLog::Drop(std::uint64_t number) {
  Segment& segment = At(number);
  assert(segment.closed && !segment.dropped && !Leased(segment.buffer));
  const Segment before = segment;
  segment.dropped = true;
  closed_.erase(number);
  closed_in_memory_.erase(number);
  --live_;
  if (before.in_file) --in_file_;
  while (!segments_.empty() && segments_.front().dropped) {
    segments_.pop_front();
    ++base_;
  }
  return before;
}

std::uint64_t FeedLog::depth_bytes() const {
  std::uint64_t bytes = 0;
  for (auto s = segments_.rbegin(); s != segments_.rend() && s->end_row() > passed_row_; ++s) {
    if (!s->dropped) bytes += s->bytes;
  }
  return bytes;
}

}  // namespace arcflow::feed
