// SPDX-License-Identifier: Apache-2.0
// Pending: the operations that a rank has submitted, and whether somebody works on them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>

#include "arcflow/base/status.h"
#include "arcflow/collective/operation.h"

namespace arcflow::collective {

struct OrderEntry;

/// What one rank of a group has to do, whatever carries its bytes.
/// Threads: under its engine's mutex, but for Tell.
class Pending {
 public:
  /// ResourceExhausted above kMaxPending operations; `operation` is as before then.
  Status Add(Operation* operation);
  /// Whether the caller is to work now: somebody has to, and nobody does.
  bool TakeRole();
  /// One operation less is under way. False when none is left: the role is given up.
  bool Finish();

  /// The operation whose time is over first. Requires one that was not taken.
  const Operation& Earliest() const;
  /// Takes the operation that was submitted first. Requires one.
  Operation TakeFirst();
  /// Takes the operation that is next in the order of all; with an error some operation, which is
  /// to be given that error: Internal when this rank has not submitted it, InvalidArgument when
  /// ranks disagree about it, and then `*agreed` becomes false: it ends only this one. Requires
  /// one.
  Status TakeOrdered(const OrderEntry& entry, Operation* operation, bool* agreed);

  /// Tells the end of an operation; `more`: what Finish said. `done` may submit again.
  static void Tell(Operation* operation, const Status& status, bool more);

 private:
  std::deque<Operation> queue_;  // submitted, not taken
  std::size_t under_way_ = 0;    // submitted, not done
  bool working_ = false;
};

}  // namespace arcflow::collective
