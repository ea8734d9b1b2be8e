// SPDX-License-Identifier: Apache-2.0
// BarrierBook: who waits at the barrier of a run, what each brought, and when all may go on.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"

namespace arcflow::control {

/// Pure bookkeeping, no sockets. A rank waits at one barrier at a time, so two names at once can
/// never both be completed: that is an error of the program and told to all at once. Threads: one
/// at a time.
class BarrierBook {
 public:
  struct Waiter {
    std::uint64_t id = 0;  // the caller's number for this call, given back to it
    std::string payload;   // opaque
    Deadline deadline = Deadline::Infinite();
  };
  /// A barrier that is over: OK with everybody in `waiters`, or the error for those who had come.
  struct Done {
    std::string name;
    Status status;
    std::map<int, Waiter> waiters;  // by rank
  };

  BarrierBook(int size, std::size_t max_payload_bytes)
      : size_(size), max_payload_bytes_(max_payload_bytes) {}

  std::optional<Done> Arrive(int rank, const std::string& name, Waiter waiter);
  /// The rank will not come to any barrier any more (`why`: "has finished", "failed").
  std::optional<Done> Leave(int rank, const std::string& why);
  /// Ends the barrier if its earliest deadline has passed.
  std::optional<Done> Expire();
  std::optional<Done> FailAll(const Status& why);
  bool Waits(int rank) const { return waiters_.count(rank) > 0; }
  /// When Expire should be called; infinite while nobody waits.
  Deadline next_deadline() const;

 private:
  std::optional<Done> End(Status status);
  std::string Missing() const;

  int size_;
  std::size_t max_payload_bytes_;
  std::string name_;
  std::map<int, Waiter> waiters_;
  std::map<int, std::string> gone_;
  Status closed_;  // not OK after FailAll
};

}  // namespace arcflow::control
