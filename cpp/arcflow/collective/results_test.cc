// SPDX-License-Identifier: Apache-2.0
// Results in one place for all ranks of a host: what they hold, when the place is used again, and
// what happens when ranks do not do alike.
#include "arcflow/collective/results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/collective/group_testing.h"

namespace arcflow::collective {
namespace {

using namespace testing;  // NOLINT: group_testing.h
using ::testing::HasSubstr;
using testing_support::UnlessThreadSanitizer;

constexpr std::size_t kLargeCount = UnlessThreadSanitizer<std::size_t>(1'500'001, 300'001);

/// An all-reduce whose result is shared; nothing when there is no place for it.
std::optional<SharedResult> RunShared(Group& group, std::uint64_t key, int salt,
                                      std::size_t count = kLargeCount) {
  const auto in = InputOf<float>(group.rank(), count, salt);
  std::vector<float> none;
  Operation operation = AddFloats(key, in, none);
  auto shared = group.Reserve(key, operation.what, count * sizeof(float));
  if (!shared) return std::nullopt;
  operation.out = shared->write;
  operation.result_shared = true;
  const Status status = group.Run(std::move(operation));
  EXPECT_TRUE(status.ok()) << status.ToString();
  return shared;
}

std::vector<float> Read(const SharedResult& shared, std::size_t count = kLargeCount) {
  std::vector<float> values(count);
  std::memcpy(values.data(), shared.read.get(), count * sizeof(float));
  return values;
}

TEST(SharedResultTest, AllRanksReadTheSumInOnePlace) {
  for (const int ranks : {2, 3, 8}) {
    auto groups = MakeRanks(ranks);
    std::vector<const std::byte*> places(static_cast<std::size_t>(ranks));
    OnEachRank(ranks, [&](int r) {
      const auto i = static_cast<std::size_t>(r);
      // Below and above where stores go past the caches; less than a block; a short last block.
      for (const std::size_t count : {std::size_t{17'000}, std::size_t{262'144}, kLargeCount}) {
        const auto shared = RunShared(*groups[i], count, 1, count);
        ASSERT_TRUE(shared.has_value());
        ASSERT_EQ(Read(*shared, count), SumOf(ranks, count, 1));
        places[i] = shared->read.get();
      }
    });
    // The test's ranks have one mapping, so one place is one address.
    EXPECT_THAT(places, ::testing::Each(places[0]));
    std::uint64_t in_slots = 0;
    for (const auto& group : groups) in_slots += group->counters().bytes_shared;
    EXPECT_GT(in_slots, 0u);
  }
}

TEST(SharedResultTest, PiecesLieInIt) {
  auto groups = MakeRanks(3);
  constexpr std::array<std::size_t, 4> kCounts = {5, 100'000, 70'001, 1};
  OnEachRank(3, [&](int r) {
    std::size_t total = 0;
    std::vector<std::size_t> at;
    for (const std::size_t count : kCounts) {
      at.push_back(total);
      total += (count * sizeof(float) + 63) / 64 * 64;
    }
    Operation operation;
    operation.key = 7;
    for (const std::size_t count : kCounts) operation.what.count += count;
    Group& group = *groups[static_cast<std::size_t>(r)];
    const auto shared = group.Reserve(7, operation.what, total);
    ASSERT_TRUE(shared.has_value());
    std::vector<std::vector<float>> inputs;
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < kCounts.size(); ++i) {
      inputs.push_back(InputOf<float>(r, kCounts[i], static_cast<int>(i)));
      pieces.push_back({In(inputs.back()), shared->write + at[i], kCounts[i] * sizeof(float)});
    }
    operation.pieces = pieces;
    operation.result_shared = true;
    ASSERT_TRUE(group.Run(std::move(operation)).ok());
    for (std::size_t i = 0; i < kCounts.size(); ++i) {
      std::vector<float> values(kCounts[i]);
      std::memcpy(values.data(), shared->read.get() + at[i], kCounts[i] * sizeof(float));
      EXPECT_EQ(values, SumOf(3, kCounts[i], static_cast<int>(i))) << i;
    }
  });
}

TEST(SharedResultTest, APlaceIsUsedAgainWhenAllRanksHaveLetGo) {
  auto groups = MakeRanks(2);
  std::array<std::vector<const std::byte*>, 2> places;
  OnEachRank(2, [&](int r) {
    Group& group = *groups[static_cast<std::size_t>(r)];
    auto& mine = places[static_cast<std::size_t>(r)];
    std::optional<SharedResult> kept;
    for (int step = 0; step < 6; ++step) {
      auto shared = RunShared(group, 1, step);
      ASSERT_TRUE(shared.has_value());
      mine.push_back(shared->read.get());
      // Rank 1 keeps what it got at the third step; what it reads there stays.
      if (r == 1 && step == 2) kept = std::move(shared);
      if (kept) {
        ASSERT_EQ(Read(*kept), SumOf(2, kLargeCount, 2));
      }
      shared.reset();
      std::vector<float> one(1), sum(1);  // both have let go before the next begins
      ASSERT_TRUE(group.Run(AddFloats(2, one, sum)).ok());
    }
  });
  EXPECT_EQ(places[0], places[1]);
  EXPECT_EQ(places[0][1], places[0][0]);
  EXPECT_EQ(places[0][2], places[0][0]);
  EXPECT_NE(places[0][3], places[0][2]);
  EXPECT_EQ(places[0][4], places[0][3]);
}

TEST(SharedResultTest, OutlivesItsGroup) {
  auto groups = MakeRanks(2);
  std::array<std::optional<SharedResult>, 2> kept;
  OnEachRank(2, [&](int r) {
    const auto i = static_cast<std::size_t>(r);
    kept[i] = RunShared(*groups[i], 1, 0);
  });
  groups.clear();
  EXPECT_EQ(Read(*kept[0]), SumOf(2, kLargeCount));
  kept[0].reset();
  EXPECT_EQ(Read(*kept[1]), SumOf(2, kLargeCount));
}

TEST(SharedResultTest, WithoutRoomAllRanksAreToldSo) {
  auto groups = MakeRanks(2);
  const std::size_t too_much = Geometry::For(2).result_bytes + 1;
  Signature what;
  what.count = kLargeCount;
  for (auto& group : groups) EXPECT_FALSE(group->Reserve(1, what, too_much).has_value());
  std::vector<SharedResult> held;
  for (std::size_t i = 0; i < kMaxResults; ++i) {
    for (auto& group : groups) {
      auto shared = group->Reserve(100 + i, what, 4096);
      ASSERT_TRUE(shared.has_value()) << i;
      held.push_back(std::move(*shared));
    }
  }
  for (auto& group : groups) EXPECT_FALSE(group->Reserve(2, what, 4096).has_value());
  // Those go on without.
  OnEachRank(2, [&](int r) {
    const auto in = InputOf<float>(r, kLargeCount);
    std::vector<float> out(kLargeCount);
    ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(AddFloats(2, in, out)).ok());
    EXPECT_EQ(out, SumOf(2, kLargeCount));
  });
}

TEST(SharedResultTest, ARankThatDoesWithoutFailsTheGroupInsteadOfSpoilingIt) {
  auto groups = MakeRanks(2);
  OnEachRank(2, [&](int r) {
    Group& group = *groups[static_cast<std::size_t>(r)];
    const auto in = InputOf<float>(r, kLargeCount);
    std::vector<float> out(kLargeCount);
    Operation operation = AddFloats(1, in, out);
    std::optional<SharedResult> shared;
    if (r == 0) {
      shared = group.Reserve(1, operation.what, kLargeCount * sizeof(float));
      ASSERT_TRUE(shared.has_value());
      operation.out = shared->write;
      operation.result_shared = true;
    }
    const Status status = group.Run(std::move(operation));
    EXPECT_EQ(status.code(), Code::kInternal);
    EXPECT_THAT(std::string(status.message()), HasSubstr("where the result"));
  });
}

TEST(SharedResultTest, RanksThatDisagreeGiveTheirPlacesBack) {
  auto groups = MakeRanks(2);
  std::array<const std::byte*, 2> places{};
  OnEachRank(2, [&](int r) {
    const auto i = static_cast<std::size_t>(r);
    Group& group = *groups[i];
    const std::size_t count = kLargeCount + i;
    const auto in = InputOf<float>(r, count);
    std::vector<float> out(count);
    Operation operation = AddFloats(1, in, out);
    {
      const auto shared = group.Reserve(1, operation.what, count * sizeof(float));
      if (shared) {
        operation.out = shared->write;
        operation.result_shared = true;
      }
      EXPECT_EQ(group.Run(std::move(operation)).code(), Code::kInvalidArgument);
    }
    std::vector<float> one(1), sum(1);
    ASSERT_TRUE(group.Run(AddFloats(2, one, sum)).ok());
    const auto shared = RunShared(group, 3, 0);
    ASSERT_TRUE(shared.has_value());
    EXPECT_EQ(Read(*shared), SumOf(2, kLargeCount));
    places[i] = shared->read.get();
  });
  // The first of all places: nothing is left of the one before.
  const auto again = groups[0]->Reserve(9, Signature{.count = kLargeCount}, 4096);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(places[0], again->read.get());
}

TEST(SharedResultTest, OnlyOfAllReduceAndOfWhatTakesMoreThanOneRound) {
  auto groups = MakeRanks(2);
  EXPECT_FALSE(groups[0]->Reserve(1, Signature{.count = 16'384}, 65'536).has_value());
  std::vector<float> values(4);
  Operation operation = AddFloats(1, values, values);
  operation.what.kind = Kind::kBroadcast;
  operation.result_shared = true;
  EXPECT_EQ(groups[0]->Run(operation).code(), Code::kInvalidArgument);
}

TEST(RegionsTest, TheLowestPlaceThatIsFree) {
  std::array<ResultRegion, 4> regions{};
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 5000, 3), 0u);  // 0 to 8 KiB
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 4096, 3), 1u);  // 8 to 12
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 4096, 3), 2u);  // 12 to 16
  EXPECT_EQ(regions[1].offset, 8u << 10);
  regions[1].holders = 0;
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 4097, 3), 1u);  // does not fit between
  EXPECT_EQ(regions[1].offset, 16u << 10);
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 4096, 3), 3u);
  EXPECT_EQ(regions[3].offset, 8u << 10);
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 1, 3), kNoRegion);  // all are held
  regions[3].holders = 0;
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 80 << 10, 3), kNoRegion);
  EXPECT_EQ(ReserveRegion(regions, 100 << 10, 76 << 10, 3), 3u);
}

TEST(RegionsTest, NumbersThatAPeerSpoiledDoNotOverflow) {
  std::array<ResultRegion, 3> regions{};
  regions[0].holders = 1;
  regions[0].offset = ~std::uint64_t{0} - 10;
  regions[0].bytes = ~std::uint64_t{0};
  EXPECT_EQ(ReserveRegion(regions, 8192, 4096, 1), 1u);
  EXPECT_EQ(regions[1].offset, 0u);
  EXPECT_EQ(ReserveRegion(regions, 8192, ~std::uint64_t{0}, 1), kNoRegion);
}

}  // namespace
}  // namespace arcflow::collective
