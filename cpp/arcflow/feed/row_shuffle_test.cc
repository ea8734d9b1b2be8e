// SPDX-License-Identifier: Apache-2.0
// Tests of RowShuffle: a permutation for every size, the same for ever, fair, and different by
// seed, epoch and rank.
#include "arcflow/feed/row_shuffle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace arcflow::feed {
namespace {

using ::testing::ElementsAre;

std::vector<std::uint64_t> Order(std::uint64_t n, std::uint64_t seed, std::uint64_t epoch = 0,
                                 std::uint64_t rank = 0) {
  const RowShuffle sut(n, seed, epoch, rank);
  std::vector<std::uint64_t> out(n);
  for (std::uint64_t i = 0; i < n; ++i) out[i] = sut(i);
  return out;
}

TEST(RowShuffleTest, EverySizeIsAPermutation) {
  constexpr std::uint64_t kTable = RowShuffle::kMaxTable;
  for (const std::uint64_t n :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{3}, std::uint64_t{1000},
        kTable, kTable + 1, 2 * kTable, 2 * kTable + 1, std::uint64_t{300000}}) {
    std::vector<bool> seen(n);
    for (const std::uint64_t row : Order(n, 7)) {
      ASSERT_LT(row, n);
      ASSERT_FALSE(seen[row]) << n;
      seen[row] = true;
    }
  }
}

TEST(RowShuffleTest, OrdersAreTheSameOnEveryMachineForEver) {
  EXPECT_THAT(Order(8, 42), ElementsAre(4, 2, 6, 0, 3, 5, 7, 1));
  const auto large = Order(100000, 42, 3, 1);
  EXPECT_THAT(std::vector<std::uint64_t>(large.begin(), large.begin() + 5),
              ElementsAre(40868, 95538, 61882, 80106, 56188));
}

TEST(RowShuffleTest, SeedEpochAndRankEachChangeTheOrder) {
  for (const std::uint64_t n : {std::uint64_t{1000}, std::uint64_t{100000}}) {
    const auto base = Order(n, 1);
    for (const auto& other : {Order(n, 2), Order(n, 1, 1), Order(n, 1, 0, 1)}) {
      std::uint64_t same = 0;
      for (std::uint64_t i = 0; i < n; ++i) same += base[i] == other[i] ? 1 : 0;
      EXPECT_LT(same, 12u) << n;  // one is to be expected
    }
  }
}

/// Chi square of where rows of 16 equal parts come to lie: 225 degrees of freedom.
TEST(RowShuffleTest, RowsComeToLieAnywhereAsLikely) {
  for (const std::uint64_t n : {std::uint64_t{64000}, std::uint64_t{160001}}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      const RowShuffle sut(n, seed, 0, 0);
      std::vector<double> counts(256);
      for (std::uint64_t i = 0; i < n; ++i) counts[i * 16 / n * 16 + sut(i) * 16 / n] += 1;
      double chi = 0;
      const double expected = static_cast<double>(n) / 256;
      for (const double count : counts) chi += (count - expected) * (count - expected) / expected;
      EXPECT_LT(chi, 330) << n << " " << seed;  // one in a hundred thousand
      EXPECT_GT(chi, 140) << n << " " << seed;
    }
  }
}

/// Neighbours must not stay near one another, or batches would be runs of the data.
TEST(RowShuffleTest, NeighboursAreFarApart) {
  for (const std::uint64_t n : {std::uint64_t{64000}, std::uint64_t{500009}}) {
    const RowShuffle sut(n, 3, 0, 0);
    double sum = 0;
    for (std::uint64_t i = 0; i + 1 < n; ++i) {
      const auto a = static_cast<double>(sut(i));
      const auto b = static_cast<double>(sut(i + 1));
      sum += a < b ? b - a : a - b;
    }
    EXPECT_NEAR(sum / static_cast<double>(n) / static_cast<double>(n), 1.0 / 3, 0.01);
  }
}

}  // namespace
}  // namespace arcflow::feed
