// SPDX-License-Identifier: Apache-2.0
// Balance: who hands which rows of a feed to whom, so that all ranks have as many.
#pragma once

#include <cstdint>
#include <vector>

namespace arcflow::feed {

/// Rows [first_row, first_row + rows) of what rank `from` was fed become the newest of rank `to`.
struct Move {
  int from = 0;
  int to = 0;
  std::uint64_t first_row = 0;
  std::uint64_t rows = 0;

  bool operator==(const Move&) const = default;
};

struct Balance {
  std::vector<std::uint64_t> targets;  // rows of each rank afterwards
  std::vector<Move> moves;  // by giver, then by place; a receiver appends them in this order

  bool operator==(const Balance&) const = default;
};

/// Evens out `rows`, one entry a rank: afterwards no two ranks differ by more than one row, and the
/// extra ones are where most rows were. Givers keep their first rows and give from there on, in the
/// order of ranks, so the plan follows from `rows` alone, and no rank both gives and takes. Nothing
/// moves when ranks differ by one row at most. Requires at least one rank. Cost: O(n log n).
/// Threads: pure function.
Balance PlanBalance(const std::vector<std::uint64_t>& rows);

/// What every rank will have at least, when ranks have at least `rows`: their mean, rounded down.
std::uint64_t MeanRows(const std::vector<std::uint64_t>& rows);

}  // namespace arcflow::feed
