// SPDX-License-Identifier: Apache-2.0
// Tests of the plan by which uneven ranks become even.
#include "arcflow/feed/balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <random>

namespace arcflow::feed {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Rows = std::vector<std::uint64_t>;

/// Checks all that the plan promises.
void Check(const Rows& rows) {
  const Balance plan = PlanBalance(rows);
  ASSERT_EQ(plan.targets.size(), rows.size());
  Rows after = rows;
  Rows given(rows.size());
  for (const Move& move : plan.moves) {
    const auto from = static_cast<std::size_t>(move.from);
    const auto to = static_cast<std::size_t>(move.to);
    ASSERT_GT(move.rows, 0u);
    ASSERT_GT(rows[from], plan.targets[from]) << "who lacks rows gives none";
    ASSERT_EQ(move.first_row, plan.targets[from] + given[from]) << "from the first one not kept on";
    given[from] += move.rows;
    after[from] -= move.rows;
    after[to] += move.rows;
  }
  EXPECT_EQ(after, plan.targets);
  const auto [least, most] = std::minmax_element(after.begin(), after.end());
  EXPECT_LE(*most - *least, 1u);
  EXPECT_EQ(*least, MeanRows(rows));
  EXPECT_TRUE(std::is_sorted(plan.moves.begin(), plan.moves.end(),
                             [](const Move& a, const Move& b) { return a.from < b.from; }));
}

TEST(BalanceTest, NothingMovesBetweenRanksThatDifferByOneRow) {
  EXPECT_THAT(PlanBalance({7}).moves, IsEmpty());
  EXPECT_THAT(PlanBalance({7, 8, 7, 8}).moves, IsEmpty());
  EXPECT_THAT(PlanBalance({0, 0}).moves, IsEmpty());
}

TEST(BalanceTest, TheGiantGivesItsLastRowsInTheOrderOfRanks) {
  const Balance plan = PlanBalance({0, 100, 10, 10});
  EXPECT_THAT(plan.targets, ElementsAre(30u, 30u, 30u, 30u));
  EXPECT_THAT(plan.moves, ElementsAre(Move{1, 0, 30, 30}, Move{1, 2, 60, 20}, Move{1, 3, 80, 20}));
}

TEST(BalanceTest, RowsThatAreLeftOverStayWhereMostRowsWere) {
  const Balance plan = PlanBalance({1, 10, 0});
  EXPECT_THAT(plan.targets, ElementsAre(4u, 4u, 3u));  // 11 rows: rank 1 first, then rank 0
  EXPECT_THAT(plan.moves, ElementsAre(Move{1, 0, 4, 3}, Move{1, 2, 7, 3}));
}

TEST(BalanceTest, AnyRowsBecomeEven) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    Rows rows(1 + random() % 9);
    for (auto& r : rows) r = random() % 4 == 0 ? 0 : random() % (random() % 2 == 0 ? 10 : 10'000);
    Check(rows);
  }
}

TEST(BalanceTest, HugeNumbersDoNotOverflow) {
  const std::uint64_t huge = std::uint64_t{1} << 63;
  Check({huge, huge, huge, 1});
  EXPECT_EQ(MeanRows({huge, huge}), huge);
}

}  // namespace
}  // namespace arcflow::feed
