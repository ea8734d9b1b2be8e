// SPDX-License-Identifier: Apache-2.0
// Agreement: arrivals counted, signatures compared.
#include "arcflow/collective/agreement.h"

#include <bit>

namespace arcflow::collective {

Result<std::optional<OrderEntry>> Agreement::Arrive(int rank, std::uint64_t key,
                                                    const Signature& what) {
  const auto number = static_cast<std::uint32_t>(rank);
  if (pending_.size() >= kMaxPending && !pending_.contains(key)) {
    return ResourceExhausted("more than " + std::to_string(kMaxPending) +
                             " collectives are under way in one group");
  }
  const PendingEntry fresh{key, 0, what, what, number, kNobody};
  PendingEntry& entry = pending_.try_emplace(key, fresh).first->second;
  const std::uint64_t bit = std::uint64_t{1} << rank;
  if ((entry.arrived & bit) != 0) {
    return InvalidArgument("rank " + std::to_string(rank) +
                           " has come twice to one collective: two that are under way at one time "
                           "have the same key");
  }
  if (entry.other_rank == kNobody && !(entry.first == what)) {
    entry.other = what;
    entry.other_rank = number;
  }
  entry.arrived |= bit;
  if (std::popcount(entry.arrived) != ranks_) return std::optional<OrderEntry>();
  const OrderEntry ordered{key, entry.first, entry.other, entry.first_rank, entry.other_rank};
  pending_.erase(key);
  return std::optional<OrderEntry>(ordered);
}

std::string Agreement::Missing(std::uint64_t key) const {
  const auto found = pending_.find(key);
  if (found == pending_.end()) return "";
  std::string text;
  for (int r = 0; r < ranks_; ++r) {
    if ((found->second.arrived >> r & 1) != 0) continue;
    text += (text.empty() ? "" : ", ") + std::to_string(r);
  }
  return text;
}

}  // namespace arcflow::collective
