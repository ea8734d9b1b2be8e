// SPDX-License-Identifier: Apache-2.0
// Exchange: which rows of a feed each rank reads in a pass for which ranks have mixed their rows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/feed/balance.h"

namespace arcflow::feed {

/// A pass over exchanged rows. Readers, and agents among each other, name it as a feed of its own,
/// "feed@seed.epoch".
struct ExchangePass {
  std::string feed;  // whose rows they are
  std::uint64_t seed = 0;
  std::uint64_t epoch = 0;

  std::string Name() const;
  /// Nothing when that is no name of a pass.
  static std::optional<ExchangePass> FromName(std::string_view name);

  bool operator==(const ExchangePass&) const = default;
};

/// Who takes which rows, by taker, and for each in the order in which it appends them. Every rank
/// ends with as many rows as it has (`rows`, one entry a rank), and each row is on one rank. The
/// log of each rank, turned by a number of rows that follows from seed, epoch and rank, is cut into
/// one run for each rank, as long as that rank's share of all rows: so half of the rows of two
/// ranks change sides, and few segments are cut. The plan follows from the arguments alone. It
/// names what a rank takes from itself, too. Cost: O(n^2). Threads: pure function.
std::vector<Move> PlanExchange(const std::vector<std::uint64_t>& rows, std::uint64_t seed,
                               std::uint64_t epoch);

}  // namespace arcflow::feed
