// SPDX-License-Identifier: Apache-2.0
// Engine: one rank's membership in a group, whatever carries its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/collective/operation.h"
#include "arcflow/collective/results.h"

namespace arcflow::collective {

/// Bytes that one rank had from another.
struct PairBytes {
  std::uint64_t sent = 0;      // to it
  std::uint64_t received = 0;  // from it
  std::string backend;         // "shm", "tcp"; empty: the two exchange nothing directly
};

/// What a group has done since it was made; `Engine::counters`.
struct GroupCounters {
  std::uint64_t operations = 0;
  std::uint64_t small_operations = 0;     // of these, in one round
  std::uint64_t bytes_in = 0;             // read from callers
  std::uint64_t bytes_out = 0;            // written to callers
  std::uint64_t bytes_shared = 0;         // written to shared memory for other ranks
  std::uint64_t bytes_between_hosts = 0;  // sent to other hosts by this rank
  std::uint64_t sleeps = 0;               // waits that were too long to spin
  std::uint64_t mappings = 0;             // memory made for the group; stands still between steps
  std::uint64_t registrations = 0;        // of memory that peers write to; stands still likewise
  std::uint64_t busy_ns = 0;              // from the first to the last byte of operations
  std::vector<PairBytes> pairs;           // by rank; nothing for the own one
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
/// Results: all ranks have the same bits; in which order values are merged, each engine says.
///
/// Threads: any. One thread works for the group at a time: the one whose `Submit` found nobody
/// working; it returns when no operation is left, so each `Submit` needs a thread that nobody waits
/// for. Lifetime: keep the engine until every `Submit` has returned and every operation is done;
/// destroying it tells the others that this rank has left.
class Engine {
 public:
  Engine() = default;
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  virtual int rank() const = 0;
  virtual int ranks() const = 0;

  /// Memory for the result of the all-reduce `key` that this rank is about to submit: with it, and
  /// `Operation::result_shared`, ranks of a host merge into one place and each reads it there,
  /// instead of a copy for each. Every rank asks for it, with the same key, signature and bytes, or
  /// none does. Nothing where there is no such memory: groups of several hosts, no room left, a
  /// group that has failed. Never waits.
  virtual std::optional<SharedResult> Reserve(std::uint64_t key, const Signature& what,
                                              std::size_t bytes);
  /// Starts an operation; `done` tells its end, always, and may be called before this returns.
  /// Errors (to `done`): InvalidArgument, checked before anything is announced, and when ranks
  /// disagree; ResourceExhausted above kMaxPending operations; DeadlineExceeded; Unavailable when a
  /// peer has died; what `Fail` was given.
  virtual void Submit(Operation operation) = 0;
  /// Submits and waits.
  Status Run(Operation operation);

  /// Ends the group for all ranks with `failure`; the first one stays. Threads: any. Never waits
  /// for a peer.
  virtual void Fail(const Status& failure) = 0;
  /// OK while the group is usable.
  virtual Status failure() const = 0;

  virtual GroupCounters counters() const = 0;
};

}  // namespace arcflow::collective
