// SPDX-License-Identifier: Apache-2.0
// Tests of DecideSteps: against brute force over random feeds, and what each remainder promises
// while ranks are open.
#include "arcflow/feed/steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace arcflow::feed {
namespace {

using ::testing::HasSubstr;
using Ranks = std::vector<RankRows>;

/// Counts steps one by one, by the words of docs/design/spine.md, for ranks that have all ended.
std::uint64_t BruteForceSteps(const Ranks& ranks, int own, std::uint64_t batch,
                              Remainder remainder) {
  const auto exists = [&](std::uint64_t k) {
    const auto has_row = [&](const RankRows& r) { return r.rows > k * batch; };
    const auto has_batch = [&](const RankRows& r) { return r.rows >= (k + 1) * batch; };
    switch (remainder) {
      case Remainder::kPad:
      case Remainder::kRefuse:
        return std::any_of(ranks.begin(), ranks.end(), has_row);
      case Remainder::kDrop:
        return std::all_of(ranks.begin(), ranks.end(), has_batch);
      case Remainder::kPartial:
        return has_row(ranks[static_cast<std::size_t>(own)]);
    }
    return false;
  };
  std::uint64_t k = 0;
  while (exists(k)) ++k;
  return k;
}

/// Random totals, grown in random order until all have ended; checks every answer on the way
/// against the last one.
TEST(StepsTest, AnswersGrowTowardsWhatBruteForceCountsAndFinalOnesNeverChange) {
  std::mt19937 random(20240607);
  const auto upto = [&](std::uint64_t n) { return random() % (n + 1); };
  for (int round = 0; round < 4000; ++round) {
    const std::size_t size = 1 + upto(4);
    const std::uint64_t batch = 1 + upto(7);
    const int own = static_cast<int>(upto(size - 1));
    const auto remainder = static_cast<Remainder>(upto(3));
    Ranks totals(size);
    const std::uint64_t common = upto(40);
    for (RankRows& r : totals) r = {remainder == Remainder::kRefuse ? common : upto(40), true};
    const std::uint64_t expected = BruteForceSteps(totals, own, batch, remainder);

    Ranks now(size);
    KnownSteps before;
    while (true) {
      const Result<KnownSteps> known = DecideSteps("f", now, own, batch, remainder);
      ASSERT_TRUE(known.ok()) << known.status().ToString();
      ASSERT_GE(known->steps, before.steps) << "a step was taken back";
      ASSERT_LE(known->steps, expected) << "a step was promised that does not exist";
      if (before.final) {
        ASSERT_EQ(*known, before);
      }
      if (known->final) {
        ASSERT_EQ(known->steps, expected);
      }
      before = *known;
      std::vector<std::size_t> open;
      for (std::size_t i = 0; i < size; ++i) {
        if (!now[i].ended) open.push_back(i);
      }
      if (open.empty()) break;
      const std::size_t i = open[upto(open.size() - 1)];
      now[i].rows = std::min(totals[i].rows, now[i].rows + upto(9));
      now[i].ended = now[i].rows == totals[i].rows && upto(1) == 0;
    }
    ASSERT_TRUE(before.final);
    ASSERT_EQ(before.steps, expected);
  }
}

TEST(StepsTest, PadLetsARankWithAFullBatchGoOnAlone) {
  const Result<KnownSteps> known =
      DecideSteps("f", Ranks{{10, false}, {0, false}}, 0, 4, Remainder::kPad);
  ASSERT_TRUE(known.ok());
  EXPECT_EQ(*known, (KnownSteps{3, false}));
}

TEST(StepsTest, PadIsFinalOnlyWhenEveryRankHasEnded) {
  EXPECT_FALSE(DecideSteps("f", Ranks{{9, true}, {1, false}}, 0, 4, Remainder::kPad)->final);
  EXPECT_EQ(*DecideSteps("f", Ranks{{9, true}, {1, true}}, 0, 4, Remainder::kPad),
            (KnownSteps{3, true}));
}

TEST(StepsTest, DropIsFinalAsSoonAsAnEndedRankCannotFillAnotherBatch) {
  EXPECT_EQ(*DecideSteps("f", Ranks{{9, true}, {100, false}}, 1, 4, Remainder::kDrop),
            (KnownSteps{2, true}));
  EXPECT_EQ(*DecideSteps("f", Ranks{{9, true}, {4, false}}, 1, 4, Remainder::kDrop),
            (KnownSteps{1, false}));
}

TEST(StepsTest, RefuseNamesTheRowsOfEveryRank) {
  const Result<KnownSteps> known =
      DecideSteps("train", Ranks{{9, true}, {8, true}, {9, true}}, 0, 4, Remainder::kRefuse);
  ASSERT_FALSE(known.ok());
  EXPECT_EQ(known.status().code(), Code::kFailedPrecondition);
  const std::string message(known.status().message());
  EXPECT_THAT(message, HasSubstr("'train'"));
  EXPECT_THAT(message, HasSubstr("rank 0: 9, rank 1: 8, rank 2: 9"));
}

TEST(StepsTest, RefuseFailsEarlyWhenAnEndedRankIsBehind) {
  const Result<KnownSteps> known =
      DecideSteps("f", Ranks{{5, true}, {6, false}}, 0, 4, Remainder::kRefuse);
  ASSERT_FALSE(known.ok());
  EXPECT_THAT(std::string(known.status().message()), HasSubstr("rank 1: 6 so far"));
  EXPECT_TRUE(DecideSteps("f", Ranks{{5, false}, {6, true}}, 0, 4, Remainder::kRefuse).ok())
      << "an open rank may still catch up";
}

TEST(StepsTest, RefuseAllowsAShortLastBatchWhenAllAreEqual) {
  EXPECT_EQ(*DecideSteps("f", Ranks{{9, true}, {9, true}}, 0, 4, Remainder::kRefuse),
            (KnownSteps{3, true}));
}

TEST(StepsTest, PartialLooksAtTheOwnRankOnly) {
  const Ranks ranks{{100, true}, {9, false}};
  EXPECT_EQ(*DecideSteps("f", ranks, 1, 4, Remainder::kPartial), (KnownSteps{2, false}));
  EXPECT_EQ(*DecideSteps("f", Ranks{{100, false}, {9, true}}, 1, 4, Remainder::kPartial),
            (KnownSteps{3, true}));
}

TEST(StepsTest, EmptyFeedsHaveNoSteps) {
  for (const auto remainder :
       {Remainder::kPad, Remainder::kDrop, Remainder::kRefuse, Remainder::kPartial}) {
    EXPECT_EQ(*DecideSteps("f", Ranks{{0, true}, {0, true}}, 0, 4, remainder),
              (KnownSteps{0, true}));
  }
}

TEST(StepsTest, HugeNumbersDoNotOverflow) {
  const std::uint64_t huge = UINT64_MAX - 1;
  EXPECT_EQ(DecideSteps("f", Ranks{{huge, true}}, 0, huge, Remainder::kPad)->steps, 1u);
  EXPECT_EQ(DecideSteps("f", Ranks{{5, true}}, 0, huge, Remainder::kDrop)->steps, 0u);
}

TEST(StepsTest, BadArgumentsAreRefused) {
  EXPECT_EQ(DecideSteps("f", Ranks{{1, true}}, 0, 0, Remainder::kPad).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(DecideSteps("f", Ranks{{1, true}}, 1, 4, Remainder::kPad).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(DecideSteps("f", Ranks{}, 0, 4, Remainder::kPad).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(DecideSteps("f", Ranks{{1, true}}, 0, 4, static_cast<Remainder>(9)).status().code(),
            Code::kInvalidArgument);
}

TEST(StepsTest, RemainderNamesComeBack) {
  EXPECT_EQ(*RemainderFromName("pad"), Remainder::kPad);
  EXPECT_EQ(*RemainderFromName("drop"), Remainder::kDrop);
  EXPECT_EQ(*RemainderFromName("refuse"), Remainder::kRefuse);
  EXPECT_EQ(*RemainderFromName("partial"), Remainder::kPartial);
  EXPECT_EQ(RemainderFromName("half").status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace arcflow::feed
