// SPDX-License-Identifier: Apache-2.0
// Barriers of the first ranks and barriers of all ranks do not disturb each other.
#include "arcflow/control/barrier_groups.h"

#include <gtest/gtest.h>

namespace arcflow::control {
namespace {

constexpr std::size_t kPayloads = 1024;

BarrierBook::Waiter Waiter(std::uint64_t id, double timeout_s = 60) {
  return {id, "payload " + std::to_string(id), Deadline::AfterSeconds(timeout_s)};
}

TEST(BarrierGroupsTest, RanksThatWaitForTheEndDoNotMeetThoseThatTrain) {
  BarrierGroups sut(3, kPayloads);
  EXPECT_TRUE(sut.Arrive(2, 0, "exit", Waiter(1)).empty());
  EXPECT_TRUE(sut.Arrive(0, 2, "save", Waiter(2)).empty());
  const auto saved = sut.Arrive(1, 2, "save", Waiter(3));
  ASSERT_EQ(saved.size(), 1U);
  EXPECT_TRUE(saved[0].status.ok());
  EXPECT_EQ(saved[0].waiters.size(), 2U);
  EXPECT_TRUE(sut.Arrive(0, 0, "exit", Waiter(4)).empty());
  const auto over = sut.Arrive(1, 0, "exit", Waiter(5));
  ASSERT_EQ(over.size(), 1U);
  EXPECT_TRUE(over[0].status.ok());
  EXPECT_EQ(over[0].waiters.size(), 3U);
}

TEST(BarrierGroupsTest, ARankOutsideTheGroupIsToldAndDisturbsNobody) {
  BarrierGroups sut(3, kPayloads);
  EXPECT_TRUE(sut.Arrive(0, 2, "save", Waiter(1)).empty());
  const auto refused = sut.Arrive(2, 2, "save", Waiter(2));
  ASSERT_EQ(refused.size(), 1U);
  EXPECT_EQ(refused[0].status.code(), Code::kInvalidArgument);
  EXPECT_EQ(refused[0].waiters.count(2), 1U);
  EXPECT_EQ(sut.Arrive(2, 4, "save", Waiter(3))[0].status.code(), Code::kInvalidArgument);
  EXPECT_TRUE(sut.Arrive(1, 2, "save", Waiter(4))[0].status.ok());
}

TEST(BarrierGroupsTest, AFailureEndsTheBarriersOfEveryGroupThatTheRankBelongsTo) {
  BarrierGroups sut(3, kPayloads);
  EXPECT_TRUE(sut.Arrive(2, 0, "exit", Waiter(1)).empty());
  EXPECT_TRUE(sut.Arrive(0, 2, "save", Waiter(2)).empty());
  EXPECT_EQ(sut.Leave(1, "failed").size(), 2U);
  EXPECT_TRUE(sut.Arrive(0, 1, "alone", Waiter(3))[0].status.ok());  // rank 1 is not asked
  EXPECT_EQ(sut.Arrive(0, 2, "save", Waiter(4))[0].status.code(), Code::kAborted);
}

TEST(BarrierGroupsTest, AnEvaluatorThatFailsLeavesTheBarriersOfTrainingAlone) {
  BarrierGroups sut(3, kPayloads);
  EXPECT_TRUE(sut.Arrive(0, 2, "save", Waiter(1)).empty());
  EXPECT_TRUE(sut.Leave(2, "failed").empty());
  EXPECT_TRUE(sut.Arrive(1, 2, "save", Waiter(2))[0].status.ok());
  EXPECT_EQ(sut.Arrive(0, 0, "exit", Waiter(3))[0].status.code(), Code::kAborted);
}

TEST(BarrierGroupsTest, TheEarliestDeadlineOfAllGroupsCounts) {
  BarrierGroups sut(3, kPayloads);
  EXPECT_TRUE(sut.next_deadline().infinite());
  EXPECT_TRUE(sut.Arrive(2, 0, "exit", Waiter(1, 3600)).empty());
  EXPECT_TRUE(sut.Arrive(0, 2, "save", Waiter(2, 0)).empty());
  EXPECT_TRUE(sut.next_deadline().expired());
  const auto late = sut.Expire();
  ASSERT_EQ(late.size(), 1U);
  EXPECT_EQ(late[0].status.code(), Code::kDeadlineExceeded);
  EXPECT_EQ(late[0].name, "save");
}

TEST(BarrierGroupsTest, AfterTheEndNobodyWaitsInAnyGroup) {
  BarrierGroups sut(3, kPayloads);
  EXPECT_TRUE(sut.Arrive(2, 0, "exit", Waiter(1)).empty());
  EXPECT_EQ(sut.FailAll(Status(Code::kAborted, "over")).size(), 1U);
  EXPECT_EQ(sut.Arrive(0, 2, "new", Waiter(2))[0].status.code(), Code::kAborted);
}

}  // namespace
}  // namespace arcflow::control
