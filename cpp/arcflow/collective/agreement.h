// SPDX-License-Identifier: Apache-2.0
// Agreement: which operations ranks have come to; rank 0 keeps it for a group of several hosts.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "arcflow/base/status.h"
#include "arcflow/collective/board.h"
#include "arcflow/collective/operation.h"

namespace arcflow::collective {

/// What the board's `pending` is within a host.
/// Threads: none of its own, the caller locks.
class Agreement {
 public:
  explicit Agreement(int ranks) : ranks_(ranks) {}

  /// Enters `rank` for an operation. The entry of the order when it was the last to come, nothing
  /// while others are missing; ResourceExhausted above kMaxPending operations; InvalidArgument when
  /// the rank has come already.
  Result<std::optional<OrderEntry>> Arrive(int rank, std::uint64_t key, const Signature& what);
  /// Ranks that have not come to `key`, such as "1, 3"; empty when nobody waits for it.
  std::string Missing(std::uint64_t key) const;

 private:
  const int ranks_;
  std::map<std::uint64_t, PendingEntry> pending_;  // by key
};

}  // namespace arcflow::collective
