// SPDX-License-Identifier: Apache-2.0
// Collectives of ranks in threads: every kind, type and size gives what it should, whatever the
// order in which ranks submit; disagreement, time limits and failure reach all.
#include "arcflow/collective/group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "arcflow/collective/float_bits.h"
#include "arcflow/collective/group_testing.h"
#include "arcflow/collective/reduce.h"

namespace arcflow::collective {
namespace {

using namespace testing;  // NOLINT: group_testing.h
using ::testing::HasSubstr;

constexpr std::size_t kBig = 500'000;  // float32: above one block a rank, with a short last one

class GroupRanksTest : public ::testing::TestWithParam<int> {
 protected:
  int ranks() const { return GetParam(); }
  std::size_t Ranks() const { return static_cast<std::size_t>(ranks()); }
};
INSTANTIATE_TEST_SUITE_P(Ranks, GroupRanksTest, ::testing::Values(2, 3, 4, 8),
                         [](const auto& one) { return std::to_string(one.param); });

TEST_P(GroupRanksTest, AllReduceAddsAllSizes) {
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count :
         {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{16384}, std::size_t{16385},
          std::size_t{70001}, kBig, std::size_t{1'200'003}}) {
      const auto in = InputOf<float>(r, count);
      std::vector<float> out(count, -1);
      const Status status = groups[static_cast<std::size_t>(r)]->Run(AddFloats(count + 1, in, out));
      ASSERT_TRUE(status.ok()) << status.ToString();
      ASSERT_EQ(out, SumOf(ranks(), count)) << "rank " << r << " count " << count;
    }
  });
}

TEST_P(GroupRanksTest, AllReduceInPlaceAndDivided) {
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{77}, kBig}) {
      auto values = InputOf<float>(r, count);
      Operation operation = AddFloats(count, values, values);
      operation.what.divide = 1;
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      auto want = SumOf(ranks(), count);
      for (float& v : want) v /= static_cast<float>(ranks());
      ASSERT_EQ(values, want);
    }
  });
}

TEST_P(GroupRanksTest, PiecesAreReducedWhereTheyLie) {
  auto groups = MakeRanks(ranks());
  const std::vector<std::size_t> sizes = {3, 0, 100'001, 1, 64, 250'000, 17};
  OnEachRank(ranks(), [&](int r) {
    for (const bool small : {true, false}) {
      std::vector<std::vector<float>> in, out;
      std::vector<Piece> pieces;
      std::size_t total = 0;
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        const std::size_t n = small ? sizes[i] % 1000 : sizes[i];
        in.push_back(InputOf<float>(r, n, static_cast<int>(i)));
        out.emplace_back(n);
        total += n;
      }
      for (std::size_t i = 0; i < sizes.size(); ++i)
        pieces.push_back({In(in[i]), Out(out[i]), in[i].size() * 4});
      Operation operation;
      operation.key = small ? 1 : 2;
      operation.what.count = total;
      operation.pieces = pieces;
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        ASSERT_EQ(out[i], SumOf(ranks(), out[i].size(), static_cast<int>(i)));
      }
    }
  });
}

TEST_P(GroupRanksTest, BroadcastFromEveryRoot) {
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    for (int root = 0; root < ranks(); ++root) {
      for (const std::size_t count : {std::size_t{5}, std::size_t{20'000}, kBig}) {
        const auto in = InputOf<std::int64_t>(r, r == root ? count : 0);
        std::vector<std::int64_t> out(count, -77);
        Operation operation;
        operation.key = count + static_cast<std::size_t>(root);
        operation.what = {Kind::kBroadcast,
                          Element::kInt64,
                          Merge::kAdd,
                          0,
                          static_cast<std::uint32_t>(root),
                          0,
                          count,
                          0};
        operation.in = r == root ? In(in) : nullptr;
        operation.out = Out(out);
        ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
        ASSERT_EQ(out, InputOf<std::int64_t>(root, count));
      }
    }
  });
}

TEST_P(GroupRanksTest, AllGatherPutsPartsInOrderOfRank) {
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{3}, std::size_t{10'000}, kBig}) {
      const auto in = InputOf<std::uint8_t>(r, count);
      std::vector<std::uint8_t> out(count * Ranks());
      Operation operation;
      operation.key = count;
      operation.what = {Kind::kAllGather, Element::kByte, Merge::kAdd, 0, 0, 0, count, 0};
      operation.in = In(in);
      operation.out = Out(out);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (int p = 0; p < ranks(); ++p) {
        const auto want = InputOf<std::uint8_t>(p, count);
        ASSERT_EQ(
            0, std::memcmp(out.data() + static_cast<std::size_t>(p) * count, want.data(), count));
      }
    }
  });
}

TEST_P(GroupRanksTest, AllToAllSendsEachPartToItsRank) {
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{2}, std::size_t{9'000}, std::size_t{150'001}}) {
      const auto in = InputOf<std::int32_t>(r, count * Ranks());
      std::vector<std::int32_t> out(count * Ranks());
      Operation operation;
      operation.key = count;
      operation.what = {Kind::kAllToAll, Element::kInt32, Merge::kAdd, 0, 0, 0, count, 0};
      operation.in = In(in);
      operation.out = Out(out);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (int p = 0; p < ranks(); ++p) {
        const auto theirs = InputOf<std::int32_t>(p, count * Ranks());
        ASSERT_EQ(0, std::memcmp(out.data() + static_cast<std::size_t>(p) * count,
                                 theirs.data() + static_cast<std::size_t>(r) * count, count * 4));
      }
    }
  });
}

TEST_P(GroupRanksTest, ReduceScatterGivesEachRankItsPart) {
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{3}, std::size_t{9'000}, std::size_t{150'001}}) {
      const auto in = InputOf<double>(r, count * Ranks());
      std::vector<double> out(count);
      Operation operation;
      operation.key = count;
      operation.what = {Kind::kReduceScatter, Element::kFloat64, Merge::kMax, 0, 0, 0, count, 0};
      operation.in = In(in);
      operation.out = Out(out);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (std::size_t i = 0; i < count; ++i) {
        int want = -100;
        for (int p = 0; p < ranks(); ++p)
          want = std::max(want, ValueAt(p, static_cast<std::size_t>(r) * count + i));
        ASSERT_EQ(out[i], want);
      }
    }
  });
}

TEST_P(GroupRanksTest, EveryTypeMergesInOrderOfRank) {
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    for (std::size_t e = 0; e < kReducible; ++e) {
      for (std::size_t m = 0; m < kMerges; ++m) {
        const auto element = static_cast<Element>(e);
        const std::size_t count = 20'000;
        std::vector<std::vector<std::byte>> all;  // bits of any value but NaN for floats
        for (int p = 0; p < ranks(); ++p) {
          std::vector<std::byte> bytes(count * SizeOf(element));
          std::uint32_t state = static_cast<std::uint32_t>(p) * 977 + static_cast<std::uint32_t>(e);
          for (std::byte& b : bytes) {
            state = state * 1664525 + 1013904223;
            b = static_cast<std::byte>(state >> 24 & 0x3f);
          }
          all.push_back(std::move(bytes));
        }
        std::vector<std::byte> out(all[0].size()), want(all[0].size());
        std::vector<const void*> sources;
        for (const auto& bytes : all) sources.push_back(bytes.data());
        ReduceInto(element, static_cast<Merge>(m), 0, sources.data(), Ranks(), want.data(), count);
        Operation operation;
        operation.key = e * 10 + m;
        operation.what = {Kind::kAllReduce, element, static_cast<Merge>(m), 0, 0, 0, count, 0};
        operation.in = all[static_cast<std::size_t>(r)].data();
        operation.out = out.data();
        ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
        ASSERT_EQ(out, want) << NameOf(element) << " " << NameOf(static_cast<Merge>(m));
      }
    }
  });
}

/// Submits without waiting and collects the answers.
class Answers {
 public:
  explicit Answers(std::size_t count) : left_(count), statuses_(count) {}
  std::function<void(const Status&)> For(std::size_t i) {
    return [this, i](const Status& status) {
      const std::lock_guard lock(mutex_);
      statuses_[i] = status;
      --left_;
      changed_.notify_all();
    };
  }
  std::vector<Status> Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return left_ == 0; });
    return statuses_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t left_;
  std::vector<Status> statuses_;
};

TEST_P(GroupRanksTest, RanksMaySubmitInAnyOrderFromManyThreads) {
  constexpr std::size_t kOperations = 25;
  auto groups = MakeRanks(ranks());
  OnEachRank(ranks(), [&](int r) {
    Group& sut = *groups[static_cast<std::size_t>(r)];
    std::vector<std::size_t> order(kOperations);
    for (std::size_t i = 0; i < kOperations; ++i) order[i] = i;
    std::mt19937 random(static_cast<unsigned>(r));
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::vector<float>> in(kOperations), out(kOperations);
    for (std::size_t i = 0; i < kOperations; ++i) {
      in[i] = InputOf<float>(r, 1 + i * i * 100, static_cast<int>(i));
      out[i].resize(in[i].size());
    }
    Answers answers(kOperations);
    std::vector<std::thread> threads;  // one for each: whoever works for the group is held up
    for (const std::size_t i : order) {
      threads.emplace_back([&, i] {
        Operation operation = AddFloats(i, in[i], out[i]);
        operation.done = answers.For(i);
        sut.Submit(std::move(operation));
      });
    }
    const auto statuses = answers.Wait();
    for (std::thread& thread : threads) thread.join();
    for (const Status& status : statuses) ASSERT_TRUE(status.ok()) << status.ToString();
    for (std::size_t i = 0; i < kOperations; ++i) {
      ASSERT_EQ(out[i], SumOf(ranks(), in[i].size(), static_cast<int>(i)));
    }
  });
}

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
