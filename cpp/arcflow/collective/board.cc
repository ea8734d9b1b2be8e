// SPDX-License-Identifier: Apache-2.0
// Board: sizes, agreement on the order of operations, bells, failure.
#include "arcflow/collective/board.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <ctime>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "arcflow/base/cores.h"
#include "arcflow/base/round_up.h"

namespace arcflow::collective {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::uint32_t kMinBlock = 16 << 10;
constexpr std::uint32_t kSlotBytes = 1 << 20;  // what a rank's slot aims at when there are many
// A sleeper looks again by itself after this long, so that a lost bell costs time, never an end.
constexpr std::chrono::milliseconds kNap{100};

constexpr std::size_t DataOffset() { return RoundUp(sizeof(BoardHeader), kPage); }

/// Faults pages in, so that no operation has to.
void Populate(std::byte* begin, std::size_t bytes) {
#ifdef MADV_POPULATE_WRITE
  if (::madvise(begin, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
  for (std::size_t at = 0; at < bytes; at += kPage) {  // before Linux 5.14
    [[maybe_unused]] const std::byte touched = *const_cast<volatile std::byte*>(begin + at);
  }
}

}  // namespace

void SpinPause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

Geometry Geometry::For(int ranks) {
  Geometry geometry;
  geometry.ranks = static_cast<std::uint32_t>(ranks);
  const auto share = kSlotBytes / std::max<std::uint32_t>(geometry.ranks, 1) / 64 * 64;
  geometry.block_bytes = std::clamp(share, kMinBlock, geometry.block_bytes);
  return geometry;
}

Status Geometry::Check() const {
  if (ranks < 2 || ranks > kMaxRanks) {
    return InvalidArgument("a group has 2 to " + std::to_string(kMaxRanks) + " ranks, not " +
                           std::to_string(ranks));
  }
  if (slots < 3 || slots > 64 || block_bytes < 64 || block_bytes % 64 != 0 ||
      block_bytes > (16u << 20) || small_bytes % 64 != 0 || small_bytes > (1u << 20) ||
      result_bytes % kPage != 0 || result_bytes > (std::uint64_t{1} << 40)) {
    return InvalidArgument("sizes of a group's shared memory are out of range");
  }
  return Status::Ok();
}

std::size_t Geometry::rank_bytes() const {
  return std::size_t{slots} * ranks * block_bytes + 2 * std::size_t{small_bytes};
}
std::size_t Geometry::result_offset() const {
  return RoundUp(DataOffset() + ranks * rank_bytes(), kPage);
}

Result<Fd> Board::Create(const Geometry& geometry) {
  ARC_TRY(geometry.Check());
  ARC_ASSIGN(Fd memfd, CreateMemfd("arcflow-collective", geometry.total_bytes()));
  ARC_ASSIGN(const Mapping memory, Mapping::Map(memfd, sizeof(BoardHeader), true, false));
  auto* header = new (memory.data()) BoardHeader();  // a memfd is zero, which is how all begins
  header->version = kBoardVersion;
  header->geometry = geometry;
  header->magic = kBoardMagic;
  return memfd;
}

Result<std::shared_ptr<BoardMemory>> Board::Map(const Fd& memfd, const Geometry& geometry) {
  ARC_TRY(geometry.Check());
  ARC_ASSIGN(Mapping memory, Mapping::Map(memfd, geometry.total_bytes(), true, false));
  const auto& header = *reinterpret_cast<const BoardHeader*>(memory.data());
  if (header.magic != kBoardMagic || header.version != kBoardVersion) {
    return InvalidArgument("not the shared memory of a group, or of another version of arcflow");
  }
  if (std::memcmp(&header.geometry, &geometry, sizeof geometry) != 0) {
    return InvalidArgument("the group's shared memory has other sizes than announced");
  }
  ARC_ASSIGN(Mapping read_only, Mapping::Map(memfd, geometry.total_bytes(), false, false));
  Populate(memory.data(), geometry.result_offset());
  return std::make_shared<BoardMemory>(std::move(memory), std::move(read_only));
}

Board::Board(std::shared_ptr<BoardMemory> memory, int rank)
    : memory_(std::move(memory)), geometry_(header().geometry), rank_(rank) {
  ranks_ = static_cast<int>(geometry_.ranks);
  data_ = memory_->all.data() + DataOffset();
  // With fewer cores than ranks, who spins keeps the one waited for from running.
  spin_ = UsableCores() >= ranks_ ? std::chrono::microseconds(50) : std::chrono::microseconds(2);
}

std::byte* Board::Block(int rank, std::uint64_t slot, int part) {
  const std::size_t base = static_cast<std::size_t>(rank) * geometry_.rank_bytes();
  const std::size_t index = slot * geometry_.ranks + static_cast<std::size_t>(part);
  return data_ + base + index * geometry_.block_bytes;
}

std::byte* Board::Small(int rank, std::uint64_t round) {
  return Slot(rank, geometry_.slots) + (round & 1) * geometry_.small_bytes;
}

bool Board::Lock(const std::atomic<bool>& stopped) {
  // Held for well under a microsecond. A holder that was killed is noticed by `stopped`.
  BoardHeader& board = header();
  for (std::uint64_t tries = 1;; ++tries) {
    std::uint32_t open = 0;
    if (board.lock.compare_exchange_weak(open, 1, std::memory_order_acquire)) return true;
    if (tries % 64 == 0) {
      if (stopped.load() || PeerFailed()) return false;
      ::sched_yield();
    }
    SpinPause();
  }
}
bool Board::TryLock() {
  constexpr int kTries = 10000;
  for (int tries = 0; tries < kTries; ++tries) {
    std::uint32_t open = 0;
    if (header().lock.compare_exchange_weak(open, 1, std::memory_order_acquire)) return true;
    SpinPause();
  }
  return false;
}
void Board::Unlock() { header().lock.store(0, std::memory_order_release); }

Status Board::Arrive(std::uint64_t key, const Signature& what, const std::atomic<bool>& stopped) {
  if (!Lock(stopped)) return Unavailable("the group has failed");
  Status status;
  const bool last = Enter(key, what, &status);
  Unlock();
  if (last) Ring();
  return status;
}

/// Under the lock.
PendingEntry* Board::FindOrAdd(std::uint64_t key, const Signature& what, Status* status) {
  BoardHeader& board = header();
  const auto count = std::min<std::size_t>(board.pending_count, kMaxPending);
  PendingEntry* const end = board.pending + count;
  PendingEntry* entry =
      std::find_if(board.pending, end, [&](const PendingEntry& e) { return e.key == key; });
  if (entry != end) return entry;
  if (count == kMaxPending) {
    *status = ResourceExhausted("more than " + std::to_string(kMaxPending) +
                                " collectives are under way in one group");
    return nullptr;
  }
  board.pending_count = static_cast<std::uint32_t>(count + 1);
  *entry = PendingEntry{key, 0, what, what, static_cast<std::uint32_t>(rank_), kNobody};
  return entry;
}

/// Returns whether this rank was the last. The order has room: each rank has at most kMaxPending
/// operations that it has entered and not finished, so the slowest is never further behind.
bool Board::Enter(std::uint64_t key, const Signature& what, Status* status) {
  BoardHeader& board = header();
  PendingEntry* const entry = FindOrAdd(key, what, status);
  if (entry == nullptr) return false;
  if (entry->other_rank == kNobody && !(entry->first == what)) {
    entry->other = what;
    entry->other_rank = static_cast<std::uint32_t>(rank_);
  }
  entry->arrived |= Bit();
  if (std::popcount(entry->arrived) != ranks_) return false;
  Order(*entry);
  const auto count = std::min<std::size_t>(board.pending_count, kMaxPending);
  *entry = board.pending[count - 1];
  board.pending_count = static_cast<std::uint32_t>(count - 1);
  return true;
}

void Board::Order(PendingEntry& entry) {
  BoardHeader& board = header();
  if (entry.result < kMaxResults && entry.reserved != entry.arrived) {
    // Somebody did without: so do all, and only who holds the place has to give it back.
    board.results[entry.result].holders.fetch_and(entry.reserved);
    entry.result = kNoRegion;
  }
  const std::uint64_t ticket = board.ordered.load(std::memory_order_relaxed);  // under the lock
  board.order[ticket % kOrderEntries] = {entry.key,        entry.first,      entry.other,
                                         entry.first_rank, entry.other_rank, entry.result};
  board.ordered.store(ticket + 1);
}

std::optional<SharedResult> Board::Reserve(std::uint64_t key, const Signature& what,
                                           std::size_t bytes, const std::atomic<bool>& stopped) {
  if (bytes == 0 || !Lock(stopped)) return std::nullopt;
  Status full;
  PendingEntry* const entry = FindOrAdd(key, what, &full);
  const std::uint32_t result = entry == nullptr ? kNoRegion : TakeResult(entry, bytes);
  Unlock();
  return Hold(result, bytes);
}

/// Under the lock. The first rank to ask has a place chosen for all.
std::uint32_t Board::TakeResult(PendingEntry* entry, std::size_t bytes) {
  const std::uint64_t all = ~std::uint64_t{0} >> (64 - ranks_);
  if (entry->result_bytes == 0) {
    entry->result_bytes = bytes;
    entry->result = ReserveRegion(header().results, geometry_.result_bytes, bytes, all);
  }
  // One that asks twice may have given its place back meanwhile.
  const bool again = (entry->reserved & Bit()) != 0;
  if (entry->result >= kMaxResults || entry->result_bytes != bytes || again) {
    entry->reserved &= ~Bit();
    return kNoRegion;
  }
  entry->reserved |= Bit();
  return entry->result;
}

std::optional<SharedResult> Board::Hold(std::uint32_t result, std::size_t bytes) {
  if (result >= kMaxResults) return std::nullopt;
  ResultRegion* const region = &header().results[result];
  const std::uint64_t offset = region->offset;
  if (offset > geometry_.result_bytes || bytes > geometry_.result_bytes - offset) {
    return std::nullopt;  // a peer spoiled it
  }
  const std::size_t at = geometry_.result_offset() + offset;
  SharedResult shared;
  shared.write = memory_->all.data() + at;
  shared.read = std::shared_ptr<const std::byte>(
      memory_->read_only.data() + at, [memory = memory_, region, bit = Bit()](const std::byte*) {
        region->holders.fetch_and(~bit, std::memory_order_release);
      });
  return shared;
}

std::string Board::Missing(std::uint64_t key) {
  // Things went wrong, so a dead rank may hold the lock: then the message does without.
  const BoardHeader& board = header();
  if (!TryLock()) return "";
  const auto count = std::min<std::size_t>(board.pending_count, kMaxPending);
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    if (board.pending[i].key != key) continue;
    for (int r = 0; r < ranks_; ++r) {
      if ((board.pending[i].arrived >> r & 1) != 0) continue;
      text += (text.empty() ? "" : ", ") + std::to_string(r);
    }
  }
  Unlock();
  return text;
}

void Board::Ring() {
  for (int r = 0; r < ranks_; ++r) {
    if (r != rank_ && state(r).sleeping.load() != 0) RingRank(r);
  }
}

void Board::RingRank(int rank) {
  std::atomic<std::uint32_t>& bell = state(rank).bell;
  bell.fetch_add(1);
  ::syscall(SYS_futex, &bell, FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
}

void Board::Sleep(std::uint32_t bell, const Deadline& deadline) {
  auto nap = std::chrono::nanoseconds(kNap);
  if (!deadline.infinite()) {
    nap = std::clamp(std::chrono::nanoseconds(deadline.at() - Deadline::Clock::now()),
                     std::chrono::nanoseconds(0), nap);
  }
  const timespec time{0, static_cast<long>(nap.count())};
  ::syscall(SYS_futex, &state(rank_).bell, FUTEX_WAIT, bell, &time, nullptr, 0);
}

void Board::PublishFailure(const Status& failure) {
  BoardHeader& board = header();
  std::uint32_t none = 0;
  if (board.failure.compare_exchange_strong(none, 1)) {
    board.failure_code = static_cast<std::uint32_t>(failure.code());
    board.failure_rank = static_cast<std::uint32_t>(rank_);
    const std::size_t n = std::min(failure.message().size(), kMaxFailureText - 1);
    std::memcpy(board.failure_text, failure.message().data(), n);
    board.failure_text[n] = '\0';
    board.failure.store(2, std::memory_order_release);
  }
  for (int r = 0; r < ranks_; ++r) RingRank(r);
}

Status Board::Failure(int* rank) const {
  const BoardHeader& board = header();
  if (!PeerFailed()) return Status::Ok();
  *rank = static_cast<int>(std::min<std::uint32_t>(board.failure_rank, kMaxRanks));
  const std::size_t n = ::strnlen(board.failure_text, kMaxFailureText);
  const auto code = board.failure_code <= 16 ? static_cast<Code>(board.failure_code) : Code::kOk;
  return Status(code == Code::kOk ? Code::kInternal : code, std::string(board.failure_text, n));
}

}  // namespace arcflow::collective
