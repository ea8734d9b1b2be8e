// SPDX-License-Identifier: Apache-2.0
// The plan by which ranks mix their rows between passes, as a pure function.
#include "arcflow/feed/exchange.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <utility>

#include "arcflow/feed/row_shuffle.h"

namespace arcflow::feed {
namespace {

/// shares[from][to]: how many rows of `from` become rows of `to`; sums of lines and columns are
/// `rows`.
using Shares = std::vector<std::vector<std::uint64_t>>;

/// In proportion to `rows`, rounded so that the sums hold: with S(i) the rows of the ranks before i
/// and F(i, j) = floor(S(i) S(j) / S(n)), the share is F's second difference.
std::optional<Shares> EvenShares(const std::vector<std::uint64_t>& rows) {
  const std::size_t n = rows.size();
  std::vector<std::uint64_t> before(n + 1, 0);
  for (std::size_t i = 0; i < n; ++i) before[i + 1] = before[i] + rows[i];
  const std::uint64_t all = before[n];
  Shares shares(n, std::vector<std::uint64_t>(n, 0));
  if (all == 0) return shares;
  const auto floor = [&](std::size_t i, std::size_t j) {
    using Wide = unsigned __int128;
    return static_cast<std::uint64_t>(static_cast<Wide>(before[i]) * before[j] / all);
  };
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      const std::uint64_t plus = floor(i + 1, j + 1) + floor(i, j);
      const std::uint64_t minus = floor(i + 1, j) + floor(i, j + 1);
      if (plus < minus) return std::nullopt;  // of less than two rows, rounding may leave nothing
      shares[i][j] = plus - minus;
    }
  }
  return shares;
}

/// For a handful of rows: each rank gives one row after the other to the next rank that has room.
Shares FewRows(const std::vector<std::uint64_t>& rows, std::uint64_t epoch) {
  const std::size_t n = rows.size();
  Shares shares(n, std::vector<std::uint64_t>(n, 0));
  std::vector<std::uint64_t> room = rows;
  std::size_t to = epoch % n;
  for (std::size_t from = 0; from < n; ++from) {
    for (std::uint64_t i = 0; i < rows[from]; ++i) {
      while (room[to] == 0) to = (to + 1) % n;
      --room[to];
      ++shares[from][to];
      to = (to + 1) % n;
    }
  }
  return shares;
}

std::optional<std::uint64_t> ReadNumber(std::string_view text) {
  std::uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || stop != end) return std::nullopt;
  return value;
}

}  // namespace

std::string ExchangePass::Name() const {
  return feed + "@" + std::to_string(seed) + "." + std::to_string(epoch);
}

std::optional<ExchangePass> ExchangePass::FromName(std::string_view name) {
  const std::size_t at = name.rfind('@');
  const std::size_t dot = name.rfind('.');
  if (at == std::string_view::npos || at == 0 || dot == std::string_view::npos || dot < at)
    return std::nullopt;
  const auto seed = ReadNumber(name.substr(at + 1, dot - at - 1));
  const auto epoch = ReadNumber(name.substr(dot + 1));
  if (!seed || !epoch) return std::nullopt;
  return ExchangePass{std::string(name.substr(0, at)), *seed, *epoch};
}

std::vector<Move> PlanExchange(const std::vector<std::uint64_t>& rows, std::uint64_t seed,
                               std::uint64_t epoch) {
  const std::size_t n = rows.size();
  std::optional<Shares> even = EvenShares(rows);
  const Shares shares = even ? *std::move(even) : FewRows(rows, epoch);
  // From where on the log of each rank is handed out, round and round.
  std::vector<std::uint64_t> turned(n, 0);
  for (std::size_t r = 0; r < n; ++r) {
    if (rows[r] > 0) turned[r] = RowShuffle(rows[r], ~seed, epoch, r)(0);
  }
  std::vector<Move> moves;
  for (std::size_t to = 0; to < n; ++to) {
    for (std::size_t k = 0; k < n; ++k) {
      const std::size_t from = (to + k) % n;
      std::uint64_t left = shares[from][to];
      std::uint64_t first = turned[from];
      if (left > 0) turned[from] = (turned[from] + left) % rows[from];
      while (left > 0) {
        const std::uint64_t run = std::min(left, rows[from] - first);
        moves.push_back({static_cast<int>(from), static_cast<int>(to), first, run});
        left -= run;
        first = 0;
      }
    }
  }
  return moves;
}

}  // namespace arcflow::feed
