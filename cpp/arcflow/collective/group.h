// SPDX-License-Identifier: Apache-2.0
// Group: ranks of one host that run collectives together through shared memory made once.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/board.h"
#include "arcflow/collective/operation.h"

namespace arcflow::collective {

/// Bytes that one rank had from another.
struct PairBytes {
  std::uint64_t sent = 0;      // to it
  std::uint64_t received = 0;  // from it
};

/// What a group has done since it was made; `Group::counters`.
struct GroupCounters {
  std::uint64_t operations = 0;
  std::uint64_t small_operations = 0;  // of these, in one round
  std::uint64_t bytes_in = 0;          // read from callers
  std::uint64_t bytes_out = 0;         // written to callers
  std::uint64_t bytes_shared = 0;      // written to shared memory for other ranks
  std::uint64_t sleeps = 0;            // waits that were too long to spin
  std::uint64_t mappings = 0;          // shared segments mapped: 1, whatever the number of steps
  std::uint64_t busy_ns = 0;           // from the first to the last byte of operations
  std::vector<PairBytes> pairs;        // by rank; nothing for the own one
};

/// Where a test stops a rank; no part of the product calls back.
enum class Moment : int { kArrived, kOrdered, kFilled, kReduced, kDrained, kPublished, kFinished };

/// One rank's membership in a group.
///
/// Every rank submits the same operations, in any order: an operation runs when all ranks have
/// submitted it, in one order that is the same everywhere. Ranks that disagree about an operation
/// all get InvalidArgument for it, and the group lives on. Any other error ends the group: all
/// operations under way and all later ones give it.
///
/// Results: merged values are combined in order of rank, from 0 up, so all ranks have the same
/// bits. Memory: nothing is allocated or mapped by an operation but its queue entry.
///
/// Threads: any. One thread works for the group at a time: the one whose `Submit` found nobody
/// working; it returns when no operation is left, so each `Submit` needs a thread that nobody waits
/// for. Lifetime: keep the group until every `Submit` has
/// returned and every operation is done; destroying it tells the others that this rank has left.
class Group {
 public:
  /// Rank `rank` on a board that all ranks map. `probe` is for tests.
  Group(std::shared_ptr<Mapping> memory, int rank, void (*probe)(Moment) = nullptr);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const { return board_.rank(); }
  int ranks() const { return board_.ranks(); }

  /// Starts an operation; `done` tells its end, always, and may be called before this returns.
  /// Errors (to `done`): InvalidArgument, checked before anything is announced, and when ranks
  /// disagree; ResourceExhausted above kMaxPending operations; DeadlineExceeded; Unavailable when a
  /// peer has died; what `Fail` was given.
  void Submit(Operation operation);
  /// Submits and waits.
  Status Run(Operation operation);

  /// Ends the group for all ranks with `failure`; the first one stays. Threads: any. Never blocks.
  void Fail(const Status& failure);
  /// OK while the group is usable.
  Status failure() const;

  GroupCounters counters() const;

 private:
  friend class Blocks;
  struct Tally {
    std::atomic<std::uint64_t> operations{0}, small{0}, in{0}, out{0}, shared{0}, busy_ns{0};
    std::array<std::atomic<std::uint64_t>, kMaxRanks> sent{}, received{};
  };

  Status Check(const Operation& operation) const;
  void Work();  // runs operations in their order until none is left; `mutex_` is not held
  Status Next(Operation* operation, bool* agreed);
  Status AwaitOrder(const Deadline& deadline, std::uint64_t key);
  bool Give(Operation* operation, const Status& status);
  Status Execute(const Operation& operation);
  Status Judge(const std::optional<bool>& waited, const char* what);
  void Probe(Moment moment) const {
    if (probe_ != nullptr) probe_(moment);
  }

  Board board_;
  void (*probe_)(Moment) = nullptr;
  mutable std::mutex mutex_;
  std::deque<Operation> queue_;  // submitted, not begun
  std::size_t under_way_ = 0;    // submitted, not done
  bool working_ = false;
  Status failure_;
  std::atomic<bool> stopped_{false};
  // The worker's own.
  std::uint64_t ticket_ = 0;
  std::uint64_t blocks_ = 0;  // used by all operations so far
  std::uint64_t rounds_ = 0;
  Tally tally_;
};

}  // namespace arcflow::collective
