// SPDX-License-Identifier: Apache-2.0
// Tests of where a pass of a Reader ends: pad, drop, refuse and partial, with other ranks behind
// and ahead.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>

#include "arcflow/feed/reader.h"
#include "arcflow/feed/reader_testing.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {
namespace {

using namespace testing;  // NOLINT: reader_testing.h

TEST(ReaderStepsTest, EmptyFeedEndsAtOnce) {
  for (Remainder r : {Remainder::kPad, Remainder::kDrop, Remainder::kRefuse, Remainder::kPartial}) {
    Node node;
    node.End();
    auto sut = node.Open(8, r);
    ExpectEnd(*sut);
    EXPECT_EQ(sut->position(), 0u);
  }
}

TEST(ReaderStepsTest, PadMakesAsManyStepsAsTheLongestRank) {
  Node node;
  node.Write(20);
  node.agent.SetOthers({{45, false}});
  node.End();
  auto sut = node.Open(10);
  EXPECT_EQ(MustNext(*sut).real_rows(), 10u);
  EXPECT_EQ(MustNext(*sut).real_rows(), 10u);
  const Batch third = MustNext(*sut);
  EXPECT_EQ(third.real_rows(), 0u);
  EXPECT_EQ(third.padding, 10u);
  EXPECT_EQ(Compare(third, Dense(), 20), "");  // zeros
  MustNext(*sut);
  EXPECT_EQ(MustNext(*sut).step, 4u);
  EXPECT_EQ(sut->Next(Deadline::AfterSeconds(0.05)).status().code(), Code::kDeadlineExceeded);
  node.agent.SetOthers({{61, true}});
  MustNext(*sut);
  MustNext(*sut);
  ExpectEnd(*sut);
  Eventually([&] { return node.agent.stats().size() == 1; });
  const auto stats = node.agent.stats()[0];
  EXPECT_EQ(stats["used"], 20);
  EXPECT_EQ(stats["padded"], 50);
  EXPECT_EQ(stats["steps"], 7);
  EXPECT_EQ(stats["dropped"], 0);
  EXPECT_EQ(stats["complete"], true);
}

TEST(ReaderStepsTest, RowsBeforeTheFirstStepAreSkippedNotUsed) {
  Node node;
  node.Write(35);
  node.End();
  auto sut = node.Open(10, Remainder::kPartial);
  ASSERT_TRUE(sut->Seek(2).ok());
  EXPECT_EQ(Compare(MustNext(*sut), Dense(), 20), "");
  EXPECT_EQ(MustNext(*sut).real_rows(), 5u);
  ExpectEnd(*sut);
  ASSERT_TRUE(sut->Seek(9).ok());  // beyond the end
  ExpectEnd(*sut);
  Eventually([&] { return node.agent.stats().size() == 2; });
  EXPECT_EQ(node.agent.stats()[0]["skipped"], 20);
  EXPECT_EQ(node.agent.stats()[0]["used"], 15);
  EXPECT_EQ(node.agent.stats()[1]["skipped"], 35);
  EXPECT_EQ(node.agent.stats()[1]["used"], 0);
}

TEST(ReaderStepsTest, PadWithFullBatchesNeverWaitsForOthers) {
  Node node;
  node.Write(40);
  node.agent.SetOthers({{0, false}});
  auto sut = node.Open(10);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(MustNext(*sut).padding, 0u);
}

TEST(ReaderStepsTest, PadOfStringsAndOthersRepeatsTheLastRow) {
  Node node(EveryType(), 1000, 1 << 15);
  node.Write(5);
  node.End();
  auto sut = node.Open(8);
  const Batch batch = MustNext(*sut);
  EXPECT_EQ(batch.padding, 3u);
  EXPECT_EQ(Compare(batch, EveryType(), 0), "");
}

TEST(ReaderStepsTest, DropMakesAsManyFullBatchesAsTheShortestRank) {
  Node node;
  node.Write(60);
  node.agent.SetOthers({{35, true}, {100, true}});
  node.End();
  auto sut = node.Open(10, Remainder::kDrop);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(MustNext(*sut).rows(), 10u);
  ExpectEnd(*sut);
  Eventually([&] { return node.agent.stats().size() == 1; });
  EXPECT_EQ(node.agent.stats()[0]["used"], 30);
  EXPECT_EQ(node.agent.stats()[0]["dropped"], 30);
}

TEST(ReaderStepsTest, DropWaitsForTheRankBehind) {
  Node node;
  node.Write(60);
  node.agent.SetOthers({{5, false}});
  auto sut = node.Open(10, Remainder::kDrop);
  EXPECT_EQ(sut->Next(Deadline::AfterSeconds(0.05)).status().code(), Code::kDeadlineExceeded);
  node.agent.SetOthers({{25, false}});
  MustNext(*sut);
  MustNext(*sut);
  EXPECT_EQ(sut->Next(Deadline::AfterSeconds(0.05)).status().code(), Code::kDeadlineExceeded);
  node.agent.SetOthers({{29, true}});
  ExpectEnd(*sut);
}

TEST(ReaderStepsTest, RefuseFailsWhenRanksDiffer) {
  Node node;
  node.Write(25);
  node.agent.SetOthers({{26, true}});
  node.End();
  auto sut = node.Open(10, Remainder::kRefuse);
  MustNext(*sut);
  MustNext(*sut);
  ExpectError(*sut, Code::kFailedPrecondition, "");
  ExpectError(*sut, Code::kFailedPrecondition, "");
}

TEST(ReaderStepsTest, RefuseHandsOutAShortLastBatchWhenRanksAgree) {
  Node node;
  node.Write(25);
  node.agent.SetOthers({{25, true}});
  node.End();
  auto sut = node.Open(10, Remainder::kRefuse);
  MustNext(*sut);
  MustNext(*sut);
  const Batch last = MustNext(*sut);
  EXPECT_EQ(last.real_rows(), 5u);
  EXPECT_EQ(last.padding, 0u);
  ExpectEnd(*sut);
}

TEST(ReaderStepsTest, PartialLooksAtOwnRowsOnly) {
  Node node;
  node.Write(25);
  node.agent.SetOthers({{1000, false}});
  node.End();
  auto sut = node.Open(10, Remainder::kPartial);
  MustNext(*sut);
  MustNext(*sut);
  EXPECT_EQ(MustNext(*sut).rows(), 5u);
  ExpectEnd(*sut);
}

}  // namespace
}  // namespace arcflow::feed
