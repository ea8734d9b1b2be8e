// SPDX-License-Identifier: Apache-2.0
// Board: the shared memory of one group on one host: who has come, what is next, the data slots.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>

#include "arcflow/base/deadline.h"
#include "arcflow/base/mapping.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/operation.h"
#include "arcflow/collective/results.h"

namespace arcflow::collective {

inline constexpr int kMaxRanks = 64;
inline constexpr std::size_t kMaxPending = 512;
inline constexpr std::size_t kOrderEntries = 1024;  // above kMaxPending: see Board::Arrive
inline constexpr std::size_t kMaxFailureText = 240;

/// Sizes of a board, the same for all ranks.
struct Geometry {
  std::uint32_t ranks = 0;
  std::uint32_t slots = 4;                // how many blocks a rank may be ahead
  std::uint32_t block_bytes = 128 << 10;  // one rank's share of a slot; a multiple of 64
  std::uint32_t small_bytes = 64 << 10;   // up to here an operation takes one round
  std::uint64_t result_bytes = std::uint64_t{4} << 30;  // of shared results; pages come when used

  /// The geometry that suits `ranks` ranks: larger groups get smaller blocks.
  static Geometry For(int ranks);
  Status Check() const;
  /// Bytes of one rank's slots and small buffers, of all but the results, and of the whole board.
  std::size_t rank_bytes() const;
  std::size_t result_offset() const;
  std::size_t total_bytes() const { return result_offset() + result_bytes; }
};

// Layout: docs/formats/collective.md; any change bumps kBoardVersion.
inline constexpr std::uint32_t kBoardMagic = 0x42435241;  // "ARCB"
inline constexpr std::uint32_t kBoardVersion = 2;

inline constexpr std::uint32_t kNobody = 0xffffffff;

/// An operation that some ranks have come to and others not yet.
struct PendingEntry {
  std::uint64_t key;
  std::uint64_t arrived;  // bit r: rank r has
  Signature first;        // of the first to come
  Signature other;        // of the first that differed
  std::uint32_t first_rank;
  std::uint32_t other_rank;          // kNobody: all agree so far
  std::uint64_t reserved = 0;        // bit r: rank r holds the shared result
  std::uint64_t result_bytes = 0;    // of it, as the first rank asked; 0: nobody has asked
  std::uint32_t result = kNoRegion;  // its number; kNoRegion: there was no room
};

/// The next operation of all ranks.
struct OrderEntry {
  std::uint64_t key;
  Signature first;
  Signature other;
  std::uint32_t first_rank;
  std::uint32_t other_rank;
  std::uint32_t result = kNoRegion;  // where the result lies, if all ranks share it
};

/// What one rank tells the others; each counter on a cache line of its own.
struct RankState {
  alignas(64) std::atomic<std::uint64_t> filled;   // blocks that lie in my slots
  alignas(64) std::atomic<std::uint64_t> reduced;  // blocks whose result lies in my slots
  alignas(64) std::atomic<std::uint64_t> drained;  // blocks of which I need nothing any more
  alignas(64) std::atomic<std::uint64_t> rounds;   // small operations that I have published
  alignas(64) std::atomic<std::uint32_t> bell;     // futex: changes when something may be new
  std::atomic<std::uint32_t> sleeping;             // 1: ring the bell
};

struct BoardHeader {
  std::uint32_t magic, version;
  Geometry geometry;
  alignas(64) std::atomic<std::uint32_t> lock;     // of `pending` and of writing `order`
  alignas(64) std::atomic<std::uint32_t> failure;  // 0 none, 1 being written, 2 written
  std::uint32_t failure_code;
  std::uint32_t failure_rank;
  char failure_text[kMaxFailureText];
  alignas(64) std::atomic<std::uint64_t> ordered;  // entries ever written to `order`
  std::uint32_t pending_count;                     // under `lock`
  PendingEntry pending[kMaxPending];
  OrderEntry order[kOrderEntries];
  ResultRegion results[kMaxResults];  // taken under `lock`, given back without
  RankState rank[kMaxRanks];
};
static_assert(std::is_standard_layout_v<BoardHeader>);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free &&
              std::atomic<std::uint32_t>::is_always_lock_free);

/// A board as one process has it mapped.
struct BoardMemory {
  Mapping all;
  Mapping read_only;  // the same once more: whoever is given a shared result reads it here
};

/// One rank's hold on a board.
/// Threads: `Arrive`, `PublishFailure` and `Ring` from any; `Wait` and the slot counters by one
/// thread at a time, the group's worker. Peers are members of the run that proved its secret; what
/// they write is bounded before it is used as an index, the payload is theirs to spoil.
class Board {
 public:
  /// A fresh board in a sealed memfd.
  static Result<Fd> Create(const Geometry& geometry);
  /// Maps `memfd` and faults in all but its results; InvalidArgument when it is not a board of
  /// `geometry`.
  static Result<std::shared_ptr<BoardMemory>> Map(const Fd& memfd, const Geometry& geometry);

  Board(std::shared_ptr<BoardMemory> memory, int rank);

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  const Geometry& geometry() const { return geometry_; }

  /// `Engine::Reserve`. Threads: any.
  std::optional<SharedResult> Reserve(std::uint64_t key, const Signature& what, std::size_t bytes,
                                      const std::atomic<bool>& stopped);
  /// Enters this rank for an operation; the last rank to come puts it in the order.
  /// ResourceExhausted when too many are under way; whatever `stopped` says when the group fails.
  Status Arrive(std::uint64_t key, const Signature& what, const std::atomic<bool>& stopped);
  /// Entry `ticket` of the order; requires `ordered() > ticket`.
  OrderEntry Entry(std::uint64_t ticket) const { return header().order[ticket % kOrderEntries]; }
  std::uint64_t ordered() const { return header().ordered.load(); }
  /// Ranks that have not come to `key`, such as "1, 3"; for messages.
  std::string Missing(std::uint64_t key);

  /// Waits until `ready()`. Returns false when `stopped` became true or a peer failed first;
  /// std::nullopt when the deadline passed.
  template <typename Ready>
  std::optional<bool> Wait(const Ready& ready, const std::atomic<bool>& stopped,
                           const Deadline& deadline);
  /// Wakes ranks that sleep in `Wait`; after a counter or the order has changed.
  void Ring();
  void RingSelf() { RingRank(rank_); }

  /// Tells all ranks that the group has failed; the first failure stays.
  void PublishFailure(const Status& failure);
  /// What a rank published (its number goes to `*rank`); OK while none has.
  Status Failure(int* rank) const;

  RankState& state(int rank) { return header().rank[rank]; }
  /// Part `part` of slot `slot` of `rank`; `part` == `rank` holds its results.
  std::byte* Block(int rank, std::uint64_t slot, int part);
  /// The whole slot: `ranks` parts on end.
  std::byte* Slot(int rank, std::uint64_t slot) { return Block(rank, slot, 0); }
  std::byte* Small(int rank, std::uint64_t round);

  /// How often `Wait` had to sleep.
  std::uint64_t sleeps() const { return sleeps_.load(std::memory_order_relaxed); }

 private:
  BoardHeader& header() const { return *reinterpret_cast<BoardHeader*>(memory_->all.data()); }
  PendingEntry* FindOrAdd(std::uint64_t key, const Signature& what, Status* status);
  std::uint32_t TakeResult(PendingEntry* entry, std::size_t bytes);
  std::optional<SharedResult> Hold(std::uint32_t result, std::size_t bytes);
  std::uint64_t Bit() const { return std::uint64_t{1} << rank_; }
  bool Lock(const std::atomic<bool>& stopped);
  bool TryLock();
  void Unlock();
  bool Enter(std::uint64_t key, const Signature& what, Status* status);
  void Order(PendingEntry& entry);
  void RingRank(int rank);
  void Sleep(std::uint32_t bell, const Deadline& deadline);
  bool PeerFailed() const { return header().failure.load(std::memory_order_acquire) == 2; }

  std::shared_ptr<BoardMemory> memory_;
  Geometry geometry_;  // our copy: what lies in shared memory is never believed later
  int rank_ = 0;
  int ranks_ = 0;
  std::byte* data_ = nullptr;
  std::chrono::nanoseconds spin_{0};
  std::atomic<std::uint64_t> sleeps_{0};
};

/// One hint to the processor that this thread spins.
void SpinPause();

template <typename Ready>
std::optional<bool> Board::Wait(const Ready& ready, const std::atomic<bool>& stopped,
                                const Deadline& deadline) {
  if (ready()) return true;
  const auto until = Deadline::Clock::now() + spin_;
  do {
    for (int i = 0; i < 32; ++i) {
      SpinPause();
      if (ready()) return true;
    }
  } while (Deadline::Clock::now() < until);
  sleeps_.fetch_add(1, std::memory_order_relaxed);
  RankState& mine = state(rank_);
  std::optional<bool> answer;
  for (;;) {
    // Sequentially consistent with Ring: either it sees us asleep, or we see what it announced.
    mine.sleeping.store(1);
    const std::uint32_t bell = mine.bell.load();
    if (ready()) {
      answer = true;
      break;
    }
    if (stopped.load() || PeerFailed()) {
      answer = false;
      break;
    }
    if (deadline.expired()) break;
    Sleep(bell, deadline);
  }
  mine.sleeping.store(0);
  return answer;
}

}  // namespace arcflow::collective
