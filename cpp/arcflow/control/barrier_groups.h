// SPDX-License-Identifier: Apache-2.0
// BarrierGroups: one BarrierBook for each number of first ranks that meet at barriers of their own.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "arcflow/control/barrier_book.h"

namespace arcflow::control {

/// A run may have ranks that do not come to the barriers of training: parameter servers and
/// evaluators, whose ranks follow those of training. A barrier therefore says how many of the first
/// ranks it is for; barriers for different numbers do not disturb each other.
/// Pure bookkeeping, no sockets. Threads: one at a time.
class BarrierGroups {
 public:
  BarrierGroups(int size, std::size_t max_payload_bytes)
      : size_(size), max_payload_bytes_(max_payload_bytes) {}

  /// `ranks` is the number of first ranks that meet; 0 means all. InvalidArgument ends nothing but
  /// this call: a number outside 0 … size, or a rank that is not one of them.
  std::vector<BarrierBook::Done> Arrive(int rank, int ranks, const std::string& name,
                                        BarrierBook::Waiter waiter);
  /// The rank will not come to any barrier any more (`why`: "has finished", "failed").
  std::vector<BarrierBook::Done> Leave(int rank, const std::string& why);
  /// Ends the barriers whose earliest deadline has passed.
  std::vector<BarrierBook::Done> Expire();
  std::vector<BarrierBook::Done> FailAll(const Status& why);
  /// Whether the rank waits at one.
  bool Waits(int rank) const;
  /// When Expire should be called; infinite while nobody waits.
  Deadline next_deadline() const;

 private:
  BarrierBook& BookFor(int ranks);

  int size_;
  std::size_t max_payload_bytes_;
  std::map<int, BarrierBook> books_;  // by number of ranks
  std::map<int, std::string> gone_;   // for books that are made later
  Status closed_;                     // not OK after FailAll
};

}  // namespace arcflow::control
