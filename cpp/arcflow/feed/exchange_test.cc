// SPDX-License-Identifier: Apache-2.0
// Tests of the plan by which ranks mix their rows: each row is somewhere once, every rank keeps its
// number of rows, and epochs differ.
#include "arcflow/feed/exchange.h"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <utility>

namespace arcflow::feed {
namespace {

using Rows = std::vector<std::uint64_t>;
using Place = std::pair<int, std::uint64_t>;  // a rank, and a row of what it has

/// What rank `to` reads, by the plan.
std::vector<Place> RowsOf(int to, const std::vector<Move>& moves) {
  std::vector<Place> places;
  for (const Move& move : moves) {
    if (move.to != to) continue;
    for (std::uint64_t i = 0; i < move.rows; ++i)
      places.emplace_back(move.from, move.first_row + i);
  }
  return places;
}

void ExpectEachRowOnce(const Rows& rows, std::uint64_t seed, std::uint64_t epoch) {
  const std::vector<Move> moves = PlanExchange(rows, seed, epoch);
  std::set<Place> seen;
  for (std::size_t to = 0; to < rows.size(); ++to) {
    const auto places = RowsOf(static_cast<int>(to), moves);
    ASSERT_EQ(places.size(), rows[to]);
    for (const Place& place : places) {
      ASSERT_LT(place.second, rows[static_cast<std::size_t>(place.first)]);
      ASSERT_TRUE(seen.insert(place).second);
    }
  }
  for (const Move& move : moves) ASSERT_GT(move.rows, 0u);
}

TEST(PlanExchangeTest, EachRowIsOnOneRankAndRanksKeepTheirNumbers) {
  for (const Rows& rows :
       {Rows{1000}, Rows{1000, 1000}, Rows{1001, 1000, 1000}, Rows{7, 3}, Rows{1, 1, 1, 1, 1},
        Rows{2, 1, 1}, Rows{0, 0}, Rows{0, 5}, Rows{1, 0, 0, 1}, Rows{3, 2, 2, 2, 2, 2, 2, 2}}) {
    for (std::uint64_t epoch = 1; epoch < 6; ++epoch) ExpectEachRowOnce(rows, 7, epoch);
  }
}

TEST(PlanExchangeTest, AnyNumbersOfRows) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 300; ++round) {
    Rows rows(1 + random() % 9);
    for (std::uint64_t& r : rows) r = random() % (round % 3 == 0 ? 4 : 3000);
    ExpectEachRowOnce(rows, random(), random());
  }
}

TEST(PlanExchangeTest, MoreRowsThanFitIntoSixtyFourBitsWhenMultiplied) {
  const std::uint64_t many = std::uint64_t{1} << 50;
  const std::vector<Move> moves = PlanExchange({many, many + 1, many}, 1, 1);
  std::uint64_t own = 0, all = 0;
  for (const Move& move : moves) {
    if (move.to != 1) continue;
    all += move.rows;
    if (move.from == 1) own += move.rows;
  }
  EXPECT_EQ(all, many + 1);
  EXPECT_NEAR(static_cast<double>(own), static_cast<double>(many) / 3, 2);
}

TEST(PlanExchangeTest, RanksGetRowsOfAllAndOthersInAnotherEpoch) {
  const Rows rows = {4000, 4000, 4000, 4000};
  const auto first = RowsOf(2, PlanExchange(rows, 7, 1));
  const auto second = RowsOf(2, PlanExchange(rows, 7, 2));
  std::vector<int> from(4, 0);
  for (const Place& place : first) ++from[static_cast<std::size_t>(place.first)];
  for (const int n : from) EXPECT_EQ(n, 1000);
  const std::set<Place> before(first.begin(), first.end());
  std::size_t again = 0;
  for (const Place& place : second) again += before.count(place);
  EXPECT_LT(again, 3000u);  // all, if epochs did not differ; a quarter on average
  EXPECT_EQ(first, RowsOf(2, PlanExchange(rows, 7, 1)));
  EXPECT_NE(first, RowsOf(2, PlanExchange(rows, 8, 1)));
}

TEST(PlanExchangeTest, FewSegmentsAreCut) {
  EXPECT_LE(PlanExchange({1'000'000, 1'000'000, 1'000'000}, 3, 4).size(), 9u + 3u);
}

TEST(ExchangePassTest, NamesAreReadAsTheyWereWritten) {
  const ExchangePass pass{"tr@1.2in", UINT64_MAX, 12};
  EXPECT_EQ(pass.Name(), "tr@1.2in@18446744073709551615.12");
  EXPECT_EQ(ExchangePass::FromName(pass.Name()), pass);
  for (const char* wrong : {"", "train", "train@", "train@1", "train@1.", "train@.1", "@1.1",
                            "train@1.1x", "train@-1.1", "train@1. 1", "tra.1@in"}) {
    EXPECT_EQ(ExchangePass::FromName(wrong), std::nullopt) << wrong;
  }
}

}  // namespace
}  // namespace arcflow::feed
