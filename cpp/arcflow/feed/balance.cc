// SPDX-License-Identifier: Apache-2.0
// The plan by which uneven ranks become even, as a pure function.
#include "arcflow/feed/balance.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace arcflow::feed {
namespace {

struct Mean {
  std::uint64_t rows = 0;
  std::uint64_t rest = 0;  // rows that are left over; fewer than ranks
};

/// By quotients and remainders, so that no sum is out of range.
Mean MeanOf(const std::vector<std::uint64_t>& rows) {
  const std::uint64_t n = rows.size();
  Mean mean;
  for (const std::uint64_t r : rows) {
    mean.rows += r / n;
    mean.rest += r % n;
  }
  mean.rows += mean.rest / n;
  mean.rest %= n;
  return mean;
}

}  // namespace

std::uint64_t MeanRows(const std::vector<std::uint64_t>& rows) {
  return rows.empty() ? 0 : MeanOf(rows).rows;
}

Balance PlanBalance(const std::vector<std::uint64_t>& rows) {
  const Mean mean = MeanOf(rows);
  Balance plan;
  plan.targets.assign(rows.size(), mean.rows);
  std::vector<std::size_t> by_rows(rows.size());
  std::iota(by_rows.begin(), by_rows.end(), std::size_t{0});
  std::stable_sort(by_rows.begin(), by_rows.end(),
                   [&](std::size_t a, std::size_t b) { return rows[a] > rows[b]; });
  for (std::size_t i = 0; i < mean.rest; ++i) ++plan.targets[by_rows[i]];

  std::size_t to = 0;
  std::uint64_t filled = 0;  // of what `to` lacks
  for (std::size_t from = 0; from < rows.size(); ++from) {
    std::uint64_t at = plan.targets[from];
    while (at < rows[from]) {
      while (plan.targets[to] <= rows[to] || filled == plan.targets[to] - rows[to]) {
        ++to;
        filled = 0;
      }
      const std::uint64_t lacks = plan.targets[to] - rows[to] - filled;
      const std::uint64_t n = std::min(rows[from] - at, lacks);
      plan.moves.push_back({static_cast<int>(from), static_cast<int>(to), at, n});
      at += n;
      filled += n;
    }
  }
  return plan;
}

}  // namespace arcflow::feed
