// SPDX-License-Identifier: Apache-2.0
// FeedService: uneven ranks: which rows readers may see before the plan, and the rows that ranks
// hand one another after it.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>
#include <utility>

#include "arcflow/feed/service_impl.h"

namespace arcflow::feed {
namespace {

/// Who takes rows holds leases like a reader. Ids of readers count from 1.
FeedLog::ReaderId TakerId(int rank) { return UINT64_MAX - static_cast<std::uint64_t>(rank); }

}  // namespace

/// What the feeder brought; to the coordinator it stays that, whatever is handed over.
RankRows FeedService::Impl::Own(const Feed& feed) const {
  if (!feed.balanced) return {feed.log.rows(), feed.log.ended()};
  return {feed.spooled ? feed.spooled_rows : feed.log.rows(), feed.spooled};
}

/// What ranks have or will have for sure: their mean, as long as rows may come.
std::vector<RankRows> FeedService::Impl::RanksForSteps(const Feed& feed) const {
  std::vector<RankRows> ranks;
  if (feed.plan) {
    for (const std::uint64_t rows : feed.plan->targets) ranks.push_back({rows, true});
    return ranks;
  }
  std::vector<std::uint64_t> rows;
  for (const RankRows& r : feed.ranks) rows.push_back(r.rows);
  rows[static_cast<std::size_t>(rank)] = Own(feed).rows;
  ranks.assign(rows.size(), {MeanRows(rows), false});
  return ranks;
}

/// Requires a plan.
std::uint64_t FeedService::Impl::Target(const Feed& feed) const {
  return feed.plan->targets[static_cast<std::size_t>(rank)];
}

/// Rows below this one stay here whatever the plan will be: a rank that has more than the mean
/// keeps at least as many, and the mean only grows.
std::uint64_t FeedService::Impl::ReadableRows(const Feed& feed) const {
  const std::uint64_t sure =
      feed.plan ? Target(feed) : RanksForSteps(feed)[static_cast<std::size_t>(rank)].rows;
  return std::min(feed.log.rows(), sure);
}

/// A reader sees the rows that may be given away as not there yet: to it the segment is open.
void FeedService::Impl::Clamp(const Feed& feed, Segment* segment) const {
  const std::uint64_t readable = ReadableRows(feed);
  if (segment->end_row() <= readable) return;
  segment->rows = readable - segment->first_row;
  segment->closed = feed.plan.has_value();
}

/// The feeder's end of a balanced feed.
Status FeedService::Impl::OnSpooled(Feed& feed) {
  feed.spooled = true;
  feed.spooled_rows = feed.log.rows();
  if (const auto last = feed.log.CloseLast()) {
    memory.OnClosed(*feed.log.Get(*last));
    if (feed.cache == Cache::kDisk) {
      PumpSessions();
      memory.Settle(feed, *last);
    }
  }
  memory.OnEnded(feed);
  PlanIfAllEnded(feed);
  return Status::Ok();
}

void FeedService::Impl::PlanIfAllEnded(Feed& feed) {
  if (!feed.balanced || !feed.spooled || feed.plan) return;
  feed.ranks[static_cast<std::size_t>(rank)] = Own(feed);
  std::vector<std::uint64_t> rows;
  for (const RankRows& r : feed.ranks) {
    if (!r.ended) return;
    rows.push_back(r.rows);
  }
  feed.plan = PlanBalance(rows);
  if (Moves(feed).empty()) {
    Settle(feed);
  } else {
    planned.insert(feed.name);
  }
  PlanPassesOf(feed);
}

/// All rows that this rank will ever have are there.
void FeedService::Impl::Settle(Feed& feed) {
  feed.log.End();
  if (feed.exchange) settled.insert(feed.name);
}

std::vector<Move> FeedService::Impl::Moves(const Feed& feed) const {
  std::vector<Move> ours;
  if (!feed.plan) return ours;
  for (const Move& move : feed.plan->moves) {
    if (move.from == rank || move.to == rank) ours.push_back(move);
  }
  return ours;
}

/// The move by which rank `to` gets a row of ours; null when there is none.
const Move* FeedService::Impl::MoveFor(const std::vector<Move>& moves, int to,
                                       std::uint64_t row) const {
  const auto move = std::find_if(moves.begin(), moves.end(), [&](const Move& m) {
    return m.from == rank && m.to == to && row >= m.first_row && row - m.first_row < m.rows;
  });
  return move == moves.end() ? nullptr : &*move;
}

Result<FeedService::Piece> FeedService::Impl::BeginPiece(Feed& feed, int to, std::uint64_t row) {
  if (!failure.ok()) return failure;
  const std::vector<Move> moves = Moves(feed);
  const Move* const move = MoveFor(moves, to, row);
  const FeedLog::Found found = feed.log.Find(row);
  if (move == nullptr || found.where != FeedLog::Where::kHere || feed.given.contains(to)) {
    return InvalidArgument("rank " + std::to_string(to) + " does not get row " +
                           std::to_string(row) + " of feed '" + feed.name + "' from rank " +
                           std::to_string(rank));
  }
  return LendPiece(feed, to, row, move->first_row + move->rows);
}

/// Rows of one segment, from one that is there to `end_row` at most.
Result<FeedService::Piece> FeedService::Impl::LendPiece(Feed& feed, int to, std::uint64_t row,
                                                        std::uint64_t end_row) {
  const std::uint64_t number = feed.log.Find(row).segment->number;
  memory.PrepareLease(feed, number);  // may move it to disk, like a reader's
  const Segment& segment = *feed.log.Get(number);
  Piece piece;
  piece.segment = number;
  piece.rows = std::min(segment.end_row(), end_row) - row;
  piece.skip = segment.skip + (row - segment.first_row);
  piece.bytes = segment.bytes;
  piece.memory = Fd(::fcntl(memory.DescriptorOf(feed, segment), F_DUPFD_CLOEXEC, 3));
  if (!piece.memory.valid())
    return Status::FromErrno(errno, "a segment of feed '" + feed.name + "'");
  feed.log.Lease(TakerId(to), number, FeedLog::Holds::kSegment);
  return piece;
}

void FeedService::Impl::Given(Feed& feed, int to) {
  feed.given.insert(to);
  for (const Move& move : Moves(feed)) {
    if (move.to != rank && !feed.given.contains(move.to)) return;
  }
  memory.Truncate(feed, Target(feed));
  Settle(feed);
}

Status FeedService::Impl::AddPiece(Feed& feed, std::uint64_t id, Fd descriptor, std::uint64_t rows,
                                   std::uint64_t skip) {
  const BufferStore::Buffer* buffer = memory.store().Find(id);
  if (buffer == nullptr || buffer->feed != feed.name || !feed.plan || rows == 0 ||
      rows > Target(feed) - feed.log.rows() || skip > FeedLog::kMaxRows) {
    return InvalidArgument("rows of another rank that feed '" + feed.name + "' does not expect");
  }
  ARC_TRY(memory.store().Adopt(id, std::move(descriptor)));
  Segment segment;
  segment.rows = rows;
  segment.buffer = id;
  segment.bytes = buffer->bytes;
  segment.skip = skip;
  ARC_TRY(feed.log.Append(segment));
  memory.OnClosed(segment);
  if (feed.cache == Cache::kDisk) {
    PumpSessions();
    memory.Settle(feed, feed.log.all().back().number);
  }
  if (feed.log.rows() == Target(feed)) Settle(feed);
  return Status::Ok();
}

std::vector<Move> FeedService::Moves(const std::string& name) const {
  const Result<Impl::Feed*> feed = impl_->FindFeed(name);
  return feed.ok() ? impl_->Moves(**feed) : std::vector<Move>();
}

Result<FeedService::Piece> FeedService::BeginPiece(const std::string& name, int to,
                                                   std::uint64_t row) {
  std::optional<ExchangePass> pass;
  ARC_ASSIGN(Impl::Feed * feed, impl_->FindToGive(name, &pass));
  Result<Piece> piece =
      pass ? impl_->BeginPassPiece(*feed, *pass, to, row) : impl_->BeginPiece(*feed, to, row);
  impl_->Flush();
  return piece;
}

void FeedService::EndPiece(const std::string& name, int to, std::uint64_t segment) {
  std::optional<ExchangePass> pass;
  const Result<Impl::Feed*> feed = impl_->FindToGive(name, &pass);
  if (!feed.ok()) return;
  const auto orphans = (*feed)->log.Release(TakerId(to), segment, 1);
  if (orphans.ok()) impl_->memory.Free(*orphans);
  impl_->Pump();
  impl_->Flush();
}

void FeedService::Given(const std::string& name, int to) {
  const Result<Impl::Feed*> feed = impl_->FindFeed(name);
  if (!feed.ok() || !(*feed)->plan || (*feed)->log.ended() || (*feed)->source != nullptr) return;
  impl_->Given(**feed, to);
  impl_->Pump();
  impl_->Flush();
}

Status FeedService::AskRoom(const std::string& name, std::size_t bytes) {
  ARC_ASSIGN(Impl::Feed * feed, impl_->FindFeed(name));
  if (!feed->plan || feed->log.ended())
    return InvalidArgument("feed '" + name + "' expects no rows of other ranks");
  impl_->acquires.push_back({feed, bytes, std::chrono::steady_clock::now(), true});
  impl_->Pump();
  impl_->Flush();
  return Status::Ok();
}

Status FeedService::AddPiece(const std::string& name, std::uint64_t buffer, Fd memory,
                             std::uint64_t rows, std::uint64_t skip) {
  ARC_ASSIGN(Impl::Feed * feed, impl_->FindFeed(name));
  const Status status = impl_->AddPiece(*feed, buffer, std::move(memory), rows, skip);
  impl_->Pump();
  impl_->Flush();
  return status;
}

}  // namespace arcflow::feed
