// SPDX-License-Identifier: Apache-2.0
// Groups of one host, ranks in threads: disagreement, time limits and failure reach all; what is
// moved is counted. Results: engine_test.cc.
#include "arcflow/collective/group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "arcflow/collective/group_testing.h"

namespace arcflow::collective {
namespace {

using namespace testing;  // NOLINT: group_testing.h
using ::testing::HasSubstr;

TEST(GroupTest, TheSameKeyServesEveryStep) {
  auto groups = MakeRanks(2);
  OnEachRank(2, [&](int r) {
    for (int step = 0; step < 3000; ++step) {  // goes round the order several times
      const auto in = InputOf<float>(r, 10, step);
      std::vector<float> out(10);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(AddFloats(5, in, out)).ok());
      ASSERT_EQ(out, SumOf(2, 10, step));
    }
  });
  const GroupCounters counters = groups[0]->counters();
  EXPECT_EQ(counters.operations, 3000u);
  EXPECT_EQ(counters.small_operations, 3000u);
  EXPECT_EQ(counters.bytes_in, 3000u * 40);
  EXPECT_EQ(counters.mappings, 1u);
}

TEST(GroupTest, AllReduceSharesWhatTheAlgorithmSays) {
  for (const int ranks : {2, 4}) {
    auto groups = MakeRanks(ranks);
    const std::size_t count = 1 << 20;
    OnEachRank(ranks, [&](int r) {
      const auto in = InputOf<float>(r, count);
      std::vector<float> out(count);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(AddFloats(1, in, out)).ok());
    });
    std::uint64_t shared = 0;
    for (const auto& group : groups) shared += group->counters().bytes_shared;
    // Each rank: n(p-1)/p for others to merge, n/p merged for others to take.
    EXPECT_EQ(shared, static_cast<std::uint64_t>(ranks) * count * 4);
    // Between pairs: 2n(p-1)/p for each rank, and what one sent is what the other received.
    for (std::size_t r = 0; r < groups.size(); ++r) {
      std::uint64_t sent = 0;
      for (std::size_t p = 0; p < groups.size(); ++p) {
        const PairBytes pair = groups[r]->counters().pairs[p];
        EXPECT_EQ(pair.sent, groups[p]->counters().pairs[r].received);
        sent += pair.sent;
      }
      EXPECT_EQ(sent, 2 * count * 4 * (groups.size() - 1) / groups.size());
    }
  }
}

TEST(GroupTest, RanksThatDisagreeAllGetTheErrorAndTheGroupLivesOn) {
  auto groups = MakeRanks(3);
  OnEachRank(3, [&](int r) {
    Group& sut = *groups[static_cast<std::size_t>(r)];
    const auto in = InputOf<float>(r, r == 1 ? 8 : 9);
    std::vector<float> out(in.size());
    const Status status = sut.Run(AddFloats(1, in, out));
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("all-reduce add of 8 float32"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("all-reduce add of 9 float32"));
    const auto good = InputOf<float>(r, 100);
    std::vector<float> sum(100);
    EXPECT_TRUE(sut.Run(AddFloats(2, good, sum)).ok());
    EXPECT_EQ(sum, SumOf(3, 100));
  });
}

TEST(GroupTest, MistakesOfOneRankAreFoundBeforeOthersAreTold) {
  auto groups = MakeRanks(2);
  std::vector<float> values(4);
  Operation operation = AddFloats(1, values, values);
  operation.what.element = Element::kByte;
  EXPECT_EQ(groups[0]->Run(operation).code(), Code::kInvalidArgument);
  operation = AddFloats(1, values, values);
  operation.what.kind = Kind::kBroadcast;
  operation.what.root = 2;
  EXPECT_EQ(groups[0]->Run(operation).code(), Code::kInvalidArgument);
  operation = AddFloats(1, values, values);
  const Piece piece{In(values), Out(values), 12};
  operation.pieces = std::span(&piece, 1);
  EXPECT_EQ(groups[0]->Run(operation).code(), Code::kInvalidArgument);
  EXPECT_TRUE(groups[0]->failure().ok());
}

TEST(GroupTest, ARankThatDoesNotComeIsNamedWhenTimeIsUp) {
  auto groups = MakeRanks(3);
  std::vector<float> values(4);
  OnEachRank(2, [&](int r) {
    std::vector<float> own(4);
    Operation operation = AddFloats(9, own, own);
    operation.deadline = r == 0 ? Deadline::AfterSeconds(0.3) : Deadline::AfterSeconds(30);
    const Status status = groups[static_cast<std::size_t>(r)]->Run(std::move(operation));
    EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
    EXPECT_THAT(std::string(status.message()), HasSubstr("ranks 2"));
  });
  EXPECT_EQ(groups[2]->Run(AddFloats(9, values, values)).code(), Code::kDeadlineExceeded);
  EXPECT_FALSE(groups[0]->failure().ok());
}

TEST(GroupTest, AFailureEndsWhatIsUnderWayEverywhere) {
  auto groups = MakeRanks(2);
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    groups[1]->Fail(Status(Code::kAborted, "the step was aborted"));
  });
  std::vector<float> a(4), b(100'000);
  Answers answers(2);
  std::thread second([&] {
    Operation operation = AddFloats(2, b, b);
    operation.done = answers.For(1);
    groups[0]->Submit(std::move(operation));
  });
  Operation operation = AddFloats(1, a, a);
  operation.done = answers.For(0);
  groups[0]->Submit(std::move(operation));
  for (const Status& status : answers.Wait()) {
    EXPECT_EQ(status.code(), Code::kAborted);
    EXPECT_EQ(status.message(), "the step was aborted");
  }
  second.join();
  stopper.join();
  EXPECT_EQ(groups[1]->Run(AddFloats(3, a, a)).code(), Code::kAborted);
}

TEST(GroupTest, ARankThatLeavesEndsTheGroup) {
  auto groups = MakeRanks(2);
  groups[1].reset();
  std::vector<float> values(4);
  const Status status = groups[0]->Run(AddFloats(1, values, values));
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_EQ(status.message(), "rank 1 has left the group");
}

TEST(GroupTest, ManyOperationsUnderWayAreBounded) {
  auto groups = MakeRanks(2);
  std::vector<float> values(1);
  std::atomic<int> refused{0};
  std::atomic<std::size_t> ended{0};
  std::thread worker([&] {  // waits for rank 1, which comes to nothing
    Operation operation = AddFloats(0, values, values);
    operation.done = [&](const Status&) { ++ended; };
    groups[0]->Submit(std::move(operation));
  });
  for (std::size_t i = 1; i < kMaxPending + 10; ++i) {
    Operation operation = AddFloats(i, values, values);
    operation.done = [&](const Status& status) {
      refused += status.code() == Code::kResourceExhausted;
      ++ended;
    };
    if (i == 1) std::this_thread::sleep_for(std::chrono::milliseconds(100));
    groups[0]->Submit(std::move(operation));
  }
  EXPECT_GE(refused, 10);
  groups[0]->Fail(Status(Code::kAborted, "enough"));
  worker.join();
  EXPECT_EQ(ended, kMaxPending + 10);
}

TEST(BoardTest, MemoryThatIsNoBoardOrOfOtherSizesIsRefused) {
  const Geometry two = Geometry::For(2);
  auto memfd = CreateMemfd("test", two.total_bytes());
  ASSERT_TRUE(memfd.ok());
  EXPECT_EQ(Board::Map(*memfd, two).status().code(), Code::kInvalidArgument);
  auto board = Board::Create(two);
  ASSERT_TRUE(board.ok());
  EXPECT_TRUE(Board::Map(*board, two).ok());
  Geometry other = two;
  other.slots = 3;
  EXPECT_EQ(Board::Map(*board, other).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Board::Map(*board, Geometry::For(8)).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(Board::Create(Geometry::For(1)).ok());
  EXPECT_FALSE(Board::Create(Geometry::For(kMaxRanks + 1)).ok());
}

}  // namespace
}  // namespace arcflow::collective
