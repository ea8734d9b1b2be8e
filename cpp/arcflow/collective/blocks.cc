// SPDX-License-Identifier: Apache-2.0
// The small and the large way through shared memory, for all five collectives.
#include "arcflow/collective/blocks.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "arcflow/base/round_up.h"
#include "arcflow/collective/reduce.h"

namespace arcflow::collective {
namespace {

// Outputs from here on are written past the caches: they would only push out the slots.
constexpr std::size_t kPastCachesBytes = 4 << 20;
// So that small operations overlap their steps too: at least this many blocks, unless they become
// smaller than kLeastShare.
constexpr std::size_t kOverlap = 4;
constexpr std::size_t kLeastShare = 16 << 10;
constexpr std::size_t kLine = 64;
// Merged results go to shared memory and to the output in strides that the first cache holds.
constexpr std::size_t kStride = 8 << 10;

/// A rank that only receives has no input to move along.
const std::byte* Along(const std::byte* p, std::size_t n) { return p == nullptr ? p : p + n; }

}  // namespace

Blocks::Blocks(Group& group, const Operation& operation)
    : group_(group),
      board_(group.board_),
      operation_(operation),
      kind_(operation.what.kind),
      rank_(board_.rank()),
      ranks_(board_.ranks()),
      element_bytes_(SizeOf(operation.what.element)),
      part_bytes_(operation.what.count * element_bytes_) {}

Status Blocks::Run() {
  if (part_bytes_ == 0) return Status::Ok();
  const bool per_rank = kind_ == Kind::kReduceScatter || kind_ == Kind::kAllToAll;
  const std::size_t publish = part_bytes_ * (per_rank ? static_cast<std::size_t>(ranks_) : 1);
  auto& tally = group_.tally_;
  const bool reads =
      kind_ != Kind::kBroadcast || static_cast<int>(operation_.what.root) == board_.rank();
  tally.in.fetch_add(reads ? publish : 0, std::memory_order_relaxed);
  const bool wide = kind_ == Kind::kAllGather || kind_ == Kind::kAllToAll;
  tally.out.fetch_add(part_bytes_ * (wide ? static_cast<std::size_t>(ranks_) : 1),
                      std::memory_order_relaxed);
  if (publish <= board_.geometry().small_bytes) return RunSmall(publish);
  return RunLarge();
}

// ---- one round ----

Status Blocks::RunSmall(std::size_t publish_bytes) {
  const std::uint64_t round = ++group_.rounds_;
  // Two buffers in turn: mine of two rounds ago is free when all have published the last round.
  for (int r = 0; r < ranks_; ++r) {
    ARC_TRY(Await(r, &RankState::rounds, round - 1, "an earlier collective"));
  }
  const bool publishes =
      kind_ != Kind::kBroadcast || static_cast<int>(operation_.what.root) == rank_;
  if (publishes) CopyIn(board_.Small(rank_, round), 0, publish_bytes);
  Publish(&RankState::rounds, round);
  group_.tally_.small.fetch_add(1, std::memory_order_relaxed);
  group_.tally_.shared.fetch_add(publishes ? publish_bytes : 0, std::memory_order_relaxed);
  if (publishes) CountSent(-1, part_bytes_);
  group_.Probe(Moment::kPublished);
  if (kind_ == Kind::kBroadcast) {
    const int root = static_cast<int>(operation_.what.root);
    ARC_TRY(Await(root, &RankState::rounds, round, "the root of a broadcast"));
    CountReceived(root, part_bytes_);
  } else {
    for (int r = 0; r < ranks_; ++r) ARC_TRY(Await(r, &RankState::rounds, round, "its input"));
    CountReceived(-1, part_bytes_);
  }
  ComputeSmall(round);
  return Status::Ok();
}

void Blocks::ComputeSmall(std::uint64_t round) {
  const auto small = [&](int r) { return board_.Small(r, round); };
  const auto mine = static_cast<std::size_t>(rank_) * part_bytes_;
  switch (kind_) {
    case Kind::kBroadcast: {
      const int root = static_cast<int>(operation_.what.root);
      CopyOut(small(root), 0, part_bytes_);
      return;
    }
    case Kind::kAllGather:
    case Kind::kAllToAll: {
      const std::size_t from = kind_ == Kind::kAllToAll ? mine : 0;
      for (int r = 0; r < ranks_; ++r) {
        std::memcpy(operation_.out + static_cast<std::size_t>(r) * part_bytes_, small(r) + from,
                    part_bytes_);
      }
      return;
    }
    case Kind::kAllReduce:
    case Kind::kReduceScatter: {
      const std::size_t from = kind_ == Kind::kReduceScatter ? mine : 0;
      ForPieces(
          0, part_bytes_, [&](const std::byte*, std::byte* out, std::size_t at, std::size_t bytes) {
            std::array<const void*, kMaxRanks> sources;
            for (int r = 0; r < ranks_; ++r)
              sources[static_cast<std::size_t>(r)] = small(r) + from + at;
            ReduceInto(operation_.what.element, operation_.what.merge, divisor(), sources.data(),
                       static_cast<std::size_t>(ranks_), out, bytes / element_bytes_);
          });
      return;
    }
  }
}

// ---- blocks ----

bool Blocks::Fills() const {
  return kind_ != Kind::kBroadcast || static_cast<int>(operation_.what.root) == rank_;
}
bool Blocks::Merges() const { return kind_ == Kind::kAllReduce || kind_ == Kind::kReduceScatter; }

Status Blocks::RunLarge() {
  const auto ranks = static_cast<std::size_t>(ranks_);
  const std::size_t most = board_.geometry().block_bytes;
  // All-reduce cuts the operation into shares of ranks; the others cut each part by itself, and a
  // rank that publishes the same for all (broadcast, all-gather) has its whole slot for that.
  const bool shares = kind_ == Kind::kAllReduce;
  const bool whole_slot = kind_ == Kind::kBroadcast || kind_ == Kind::kAllGather;
  const std::size_t limit = whole_slot ? most * ranks : most;
  const std::size_t each = shares ? (part_bytes_ + ranks - 1) / ranks : part_bytes_;
  const std::size_t wanted =
      RoundUp(std::max(kLeastShare, (each + kOverlap - 1) / kOverlap), kLine);
  share_bytes_ = std::min(limit, wanted);
  const std::size_t block = shares ? share_bytes_ * ranks : share_bytes_;
  block_count_ = (part_bytes_ + block - 1) / block;
  first_block_ = group_.blocks_;
  group_.blocks_ += block_count_;
  past_caches_ = part_bytes_ >= kPastCachesBytes;
  for (std::uint64_t k = 0; k < block_count_ + 2; ++k) {
    if (k < block_count_) ARC_TRY(Fill(k));
    if (k >= 1 && k - 1 < block_count_ && Merges()) ARC_TRY(Merge(k - 1));
    if (k >= 2) ARC_TRY(Drain(k - 2));
  }
  return Status::Ok();
}

std::size_t Blocks::Offset(std::uint64_t block, int rank) const {
  const std::size_t index = kind_ == Kind::kAllReduce ? block * static_cast<std::size_t>(ranks_) +
                                                            static_cast<std::size_t>(rank)
                                                      : block;
  return std::min(part_bytes_, index * share_bytes_);
}
std::size_t Blocks::Length(std::uint64_t block, int rank) const {
  const std::size_t offset = Offset(block, rank);
  return std::min(share_bytes_, part_bytes_ - offset);
}

/// Puts what other ranks need of block `block` into this rank's slot.
Status Blocks::Fill(std::uint64_t block) {
  const std::uint64_t number = first_block_ + block + 1;  // counters say how many blocks are done
  const std::uint64_t slots = board_.geometry().slots;
  const std::uint64_t slot = (number - 1) % slots;
  if (number > slots) {
    for (int r = 0; r < ranks_; ++r) {
      ARC_TRY(Await(r, &RankState::drained, number - slots, "a free slot"));
    }
  }
  std::size_t filled = 0;
  if (kind_ == Kind::kBroadcast || kind_ == Kind::kAllGather) {
    if (Fills()) {
      filled = Length(block, rank_);
      CopyIn(board_.Slot(rank_, slot), Offset(block, rank_), filled);
      CountSent(-1, filled);
    }
  } else {
    const bool parted = kind_ != Kind::kAllReduce;  // the input has a part for each rank
    for (int r = 0; r < ranks_; ++r) {
      const std::size_t bytes = Length(block, r);
      if (r == rank_ || bytes == 0) continue;
      const std::size_t part = parted ? static_cast<std::size_t>(r) * part_bytes_ : 0;
      CopyIn(board_.Block(rank_, slot, r), part + Offset(block, r), bytes);
      filled += bytes;
      CountSent(r, bytes);
    }
  }
  group_.tally_.shared.fetch_add(filled, std::memory_order_relaxed);
  if (Fills()) Publish(&RankState::filled, number);
  group_.Probe(Moment::kFilled);
  return Status::Ok();
}

/// Merges this rank's share of block `block`, into the output and, for all-reduce, into its slot.
Status Blocks::Merge(std::uint64_t block) {
  const std::uint64_t number = first_block_ + block + 1;
  for (int r = 0; r < ranks_; ++r) {
    if (r != rank_) ARC_TRY(Await(r, &RankState::filled, number, "its input"));
  }
  ARC_TRY(MergeRange(block, Offset(block, rank_), Length(block, rank_)));
  CountReceived(-1, Length(block, rank_));
  if (kind_ == Kind::kAllReduce) {
    CountSent(-1, Length(block, rank_));
    group_.tally_.shared.fetch_add(Length(block, rank_), std::memory_order_relaxed);
    Publish(&RankState::reduced, number);
  }
  group_.Probe(Moment::kReduced);
  return Status::Ok();
}

/// Merges what the first cache holds of a share: an all-reduce into `slot`, where others take it,
/// and from there to `out`. Of a shared result nobody takes anything: the slot is only on the way.
void Blocks::MergeStride(const void* const* sources, std::byte* slot, std::byte* out,
                         std::size_t bytes) const {
  const bool direct = slot == nullptr || (operation_.result_shared && !past_caches_);
  std::byte* const to = direct ? out : slot;
  ReduceInto(operation_.what.element, operation_.what.merge, divisor(), sources,
             static_cast<std::size_t>(ranks_), to, bytes / element_bytes_);
  if (direct) return;
  if (past_caches_) {
    CopyPastCaches(out, to, bytes);
  } else {
    std::memcpy(out, to, bytes);
  }
}

Status Blocks::MergeRange(std::uint64_t block, std::size_t offset, std::size_t bytes) {
  const std::uint64_t slot = (first_block_ + block) % board_.geometry().slots;
  const bool all_reduce = kind_ == Kind::kAllReduce;
  const std::size_t own_part =
      all_reduce ? 0 : static_cast<std::size_t>(rank_) * part_bytes_;  // of the input
  std::byte* const result = all_reduce ? board_.Block(rank_, slot, rank_) : nullptr;
  const bool shared = operation_.result_shared;
  std::size_t at = 0;  // within the share
  ForPieces(offset, bytes, [&](const std::byte* in, std::byte* out, std::size_t, std::size_t n) {
    for (std::size_t done = 0; done < n;) {
      const std::size_t step = std::min(kStride, n - done);
      std::array<const void*, kMaxRanks> sources;
      for (int r = 0; r < ranks_; ++r) {
        sources[static_cast<std::size_t>(r)] =
            r == rank_ ? in + own_part + done : board_.Block(r, slot, rank_) + at;
      }
      MergeStride(sources.data(), all_reduce ? result + (shared ? 0 : at) : nullptr, out + done,
                  step);
      done += step;
      at += step;
    }
  });
  if (past_caches_) StreamFence();
  return Status::Ok();
}

/// Takes from other ranks' slots what this rank needs of block `block`.
Status Blocks::Drain(std::uint64_t block) {
  const std::uint64_t number = first_block_ + block + 1;
  const std::uint64_t slot = (number - 1) % board_.geometry().slots;
  for (int i = kind_ == Kind::kAllReduce ? 1 : 0; i < ranks_; ++i) {
    const int r = (rank_ + i) % ranks_;  // each begins with another, so they do not queue up
    const std::size_t bytes = Length(block, r);
    const std::size_t offset = Offset(block, r);
    const std::size_t row = static_cast<std::size_t>(r) * part_bytes_;
    switch (kind_) {
      case Kind::kAllReduce:
        ARC_TRY(Await(r, &RankState::reduced, number, "its share"));
        if (!operation_.result_shared) CopyOut(board_.Block(r, slot, r), offset, bytes);
        CountReceived(r, bytes);
        break;
      case Kind::kBroadcast:
        if (r != static_cast<int>(operation_.what.root)) break;
        if (r == rank_) {
          if (operation_.pieces.empty() && operation_.in == operation_.out) break;
        } else {
          ARC_TRY(Await(r, &RankState::filled, number, "the root of a broadcast"));
        }
        CopyOut(board_.Slot(r, slot), offset, bytes);
        CountReceived(r, bytes);
        break;
      case Kind::kAllGather:
        if (r != rank_) ARC_TRY(Await(r, &RankState::filled, number, "its part"));
        CopyOut(board_.Slot(r, slot), row + offset, bytes);
        CountReceived(r, bytes);
        break;
      case Kind::kAllToAll:
        if (r == rank_) {
          std::memcpy(operation_.out + row + offset, operation_.in + row + offset, bytes);
          break;
        }
        ARC_TRY(Await(r, &RankState::filled, number, "its part"));
        CopyOut(board_.Block(r, slot, rank_), row + offset, bytes);
        CountReceived(r, bytes);
        break;
      case Kind::kReduceScatter:
        break;  // merging was all
    }
  }
  if (past_caches_) StreamFence();
  Publish(&RankState::drained, number);
  group_.Probe(Moment::kDrained);
  return Status::Ok();
}

// ---- memory ----

/// Calls visit(in, out, offset, bytes) for each run of the operation's memory that is dense.
template <typename Visit>
void Blocks::ForPieces(std::size_t offset, std::size_t bytes, const Visit& visit) const {
  if (operation_.pieces.empty()) {
    // A parted input is longer than the output, so only one of the two may reach this far.
    if (bytes > 0) visit(Along(operation_.in, offset), operation_.out + offset, offset, bytes);
    return;
  }
  std::size_t begin = 0;  // of the piece
  for (const Piece& piece : operation_.pieces) {
    if (bytes == 0) return;
    const std::size_t end = begin + piece.bytes;
    if (offset < end) {
      const std::size_t n = std::min(bytes, end - offset);
      const std::size_t inside = offset - begin;
      if (n > 0) visit(Along(piece.in, inside), piece.out + inside, offset, n);
      offset += n;
      bytes -= n;
    }
    begin = end;
  }
}

void Blocks::CopyIn(std::byte* to, std::size_t offset, std::size_t bytes) {
  ForPieces(offset, bytes, [&](const std::byte* in, std::byte*, std::size_t, std::size_t n) {
    std::memcpy(to, in, n);
    to += n;
  });
}

void Blocks::CopyOut(const std::byte* from, std::size_t offset, std::size_t bytes) {
  ForPieces(offset, bytes, [&](const std::byte*, std::byte* out, std::size_t, std::size_t n) {
    if (past_caches_) {
      CopyPastCaches(out, from, n);
    } else {
      std::memcpy(out, from, n);
    }
    from += n;
  });
}

// ---- counters ----

Status Blocks::Await(int rank, Counter counter, std::uint64_t value, const char* what) {
  if (rank == rank_) return Status::Ok();
  const std::atomic<std::uint64_t>& theirs = board_.state(rank).*counter;
  const auto waited =
      board_.Wait([&] { return theirs.load() >= value; }, group_.stopped_, operation_.deadline);
  if (waited && *waited) return Status::Ok();
  const Status failed = group_.Judge(waited, what);
  return waited ? failed : failed.WithContext("rank " + std::to_string(rank));
}

void Blocks::CountSent(int rank, std::size_t bytes) {
  for (int r = rank < 0 ? 0 : rank; r < (rank < 0 ? ranks_ : rank + 1); ++r) {
    if (r == rank_) continue;
    group_.tally_.sent[static_cast<std::size_t>(r)].fetch_add(bytes, std::memory_order_relaxed);
  }
}
void Blocks::CountReceived(int rank, std::size_t bytes) {
  for (int r = rank < 0 ? 0 : rank; r < (rank < 0 ? ranks_ : rank + 1); ++r) {
    if (r == rank_) continue;
    group_.tally_.received[static_cast<std::size_t>(r)].fetch_add(bytes, std::memory_order_relaxed);
  }
}

void Blocks::Publish(Counter counter, std::uint64_t value) {
  // Sequentially consistent with the sleepers' look at it (Board::Wait).
  (board_.state(rank_).*counter).store(value);
  board_.Ring();
}

}  // namespace arcflow::collective
