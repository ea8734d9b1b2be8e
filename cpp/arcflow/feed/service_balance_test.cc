// SPDX-License-Identifier: Apache-2.0
// Tests of uneven ranks in one service: which rows a reader sees before the plan, and what becomes
// of those that are given away or taken.
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/feed/reader_session.h"
#include "arcflow/feed/service.h"
#include "arcflow/feed/service_testing.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;
using testing::FeedServiceTest;
using testing::kPage;
using testing::kRowsPerPage;
using testing::OneColumn;
using testing::TestNode;
using testing::TestReader;

class ServiceBalanceTest : public FeedServiceTest {
 protected:
  std::unique_ptr<TestNode> Balanced(int rank, int size, Cache cache = Cache::kAuto,
                                     std::size_t pages = 16) {
    ServiceOptions options = Options(cache, pages);
    options.rank = rank;
    options.size = size;
    options.feeds["train"].balance = true;
    return std::make_unique<TestNode>(options);
  }
  static void Others(TestNode& node, const std::vector<RankRows>& ranks) {
    node.service().SetRanks("train", ranks);
  }
  static json Plan(TestNode& node, TestReader& reader, const char* remainder, int step = 0) {
    EXPECT_TRUE(
        reader.Send({{"op", "plan"}, {"step", step}, {"batch", 100}, {"remainder", remainder}})
            .ok());
    node.Poll();
    return reader.Receive();
  }
  /// As a rank that takes: asks for room, fills it with these values, hands it in.
  static void Take(TestNode& node, std::uint64_t first, std::uint64_t rows,
                   std::uint64_t skip = 0) {
    ASSERT_TRUE(node.service().AskRoom("train", kPage).ok());
    const json room = node.Answer();
    ASSERT_EQ(room["op"], "segment") << room;
    EXPECT_EQ(room["handed"], true);
    EXPECT_EQ(room["create"], true);
    Fd memory = std::move(*CreateMemfd("taken", room["bytes"]));
    for (std::uint64_t i = 0; i < skip + rows; ++i) {
      const std::uint64_t value = first + i - skip;
      ASSERT_EQ(
          ::pwrite(memory.get(), &value, sizeof(value), static_cast<off_t>(i * sizeof(value))),
          static_cast<ssize_t>(sizeof(value)));
    }
    ASSERT_TRUE(SealForReaders(memory).ok());
    const Status added =
        node.service().AddPiece("train", room["buffer"], std::move(memory), rows, skip);
    ASSERT_TRUE(added.ok()) << added.ToString();
  }
};

TEST_F(ServiceBalanceTest, RowsAboveTheMeanAreNotSeenUntilTheyAreSureToStay) {
  auto node = Balanced(0, 2);
  auto reader = node->Open("train");
  ASSERT_TRUE(node->Write("train", 100));
  const json first = node->Ask(*reader, 0);
  EXPECT_EQ(first["rows"], 50);
  EXPECT_EQ(first["closed"], false) << "more of this segment may come";
  EXPECT_TRUE(node->Ask(*reader, 50).is_null());
  Others(*node, {{0, false}, {20, false}});
  const json grown = reader->Receive();
  EXPECT_EQ(grown["segment"], first["segment"]);
  EXPECT_EQ(grown["rows"], 60);
  EXPECT_EQ(grown["fds"], 0);
  EXPECT_TRUE(node->Ask(*reader, 60).is_null());
  Others(*node, {{0, false}, {500, false}});
  EXPECT_EQ(reader->Receive()["rows"], 100);
}

TEST_F(ServiceBalanceTest, StepsFollowFromTheMeanAndAreNeverTakenBack) {
  auto node = Balanced(0, 2);
  auto reader = node->Open("train");
  ASSERT_TRUE(node->Write("train", 500));
  EXPECT_TRUE(Plan(*node, *reader, "pad", 3).is_null()) << "250 rows for each are 3 steps so far";
  Others(*node, {{0, false}, {102, false}});
  const json more = reader->Receive();
  EXPECT_EQ(more["steps"], 4);
  EXPECT_EQ(more["final"], false);
  node->End("train");
  Others(*node, {{500, true}, {102, true}});  // 301 for each
  const json last = Plan(*node, *reader, "pad", 4);
  EXPECT_EQ(last["steps"], 4);
  EXPECT_EQ(last["final"], true);
  EXPECT_EQ(Plan(*node, *reader, "drop", 3)["steps"], 3);
}

TEST_F(ServiceBalanceTest, WhoGivesEndsAtOnceAndForgetsTheRowsWhenTheyAreTaken) {
  auto node = Balanced(0, 2, Cache::kAuto, 8);
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(node->Write("train"));
  node->End("train");
  Others(*node, {{0, false}, {kRowsPerPage, true}});  // 7 pages of rows, 3.5 for each
  auto reader = node->Open("train");
  EXPECT_EQ(ReadAll(*node, *reader), 7 * kRowsPerPage / 2);
  const json end = reader->Receive();
  EXPECT_TRUE(end.is_null());
  EXPECT_EQ(Train(*node)["rows"], 7 * kRowsPerPage / 2);
  EXPECT_EQ(Train(*node)["given"], 5 * kRowsPerPage / 2);
  EXPECT_EQ(node->service().Local("train").rows, 6 * kRowsPerPage) << "the coordinator's view";
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 6 * kPage);

  const std::vector<Move> moves = node->service().Moves("train");
  ASSERT_EQ(moves.size(), 1u);
  std::uint64_t row = moves[0].first_row;
  auto piece = node->service().BeginPiece("train", 1, row);
  ASSERT_TRUE(piece.ok()) << piece.status().ToString();
  EXPECT_EQ(piece->skip, kRowsPerPage / 2);
  EXPECT_EQ(piece->rows, kRowsPerPage / 2);
  node->service().EndPiece("train", 1, piece->segment);
  EXPECT_FALSE(node->service().BeginPiece("train", 1, 0).ok());
  EXPECT_FALSE(node->service().BeginPiece("train", 2, row).ok());
  EXPECT_EQ(node->service().BeginPiece("train", 1, row + piece->rows)->skip, 0u);
  node->service().EndPiece("train", 1, piece->segment + 1);
  node->service().Given("train", 1);
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 4 * kPage);
  EXPECT_EQ(Train(*node)["rows"], 7 * kRowsPerPage / 2);
  EXPECT_EQ(Train(*node)["segments"], 4);
  EXPECT_FALSE(node->service().BeginPiece("train", 1, row).ok());
  auto again = node->Open("train");
  EXPECT_EQ(ReadAll(*node, *again), 7 * kRowsPerPage / 2);
}

TEST_F(ServiceBalanceTest, ASegmentThatIsBeingTakenStaysWhereItIs) {
  auto node = Balanced(0, 2, Cache::kAuto, 4);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(node->Write("train"));
  node->End("train");
  Others(*node, {{0, false}, {0, true}});
  auto piece = node->service().BeginPiece("train", 1, 3 * kRowsPerPage);
  ASSERT_TRUE(piece.ok());
  std::uint64_t value = 0;
  ASSERT_EQ(::pread(piece->memory.get(), &value, sizeof(value), 0), 8);
  EXPECT_EQ(value, 3 * kRowsPerPage);
  node->service().EndPiece("train", 1, piece->segment);
}

TEST_F(ServiceBalanceTest, WhoTakesSeesTheRowsAsTheyComeAndEndsWithTheLast) {
  auto node = Balanced(1, 2);
  ASSERT_TRUE(node->Write("train", 100));
  node->End("train");
  auto reader = node->Open("train");
  EXPECT_EQ(node->Ask(*reader, 0)["rows"], 50);
  Others(*node, {{300, true}, {0, false}});  // 200 for each
  EXPECT_EQ(node->Ask(*reader, 50)["rows"], 100);
  EXPECT_TRUE(node->Ask(*reader, 100).is_null());
  EXPECT_TRUE(node->service().WaitsForRows()) << "so it does not stall";
  Take(*node, 100, 60);
  EXPECT_EQ(reader->Receive()["rows"], 60);
  EXPECT_TRUE(node->Ask(*reader, 160).is_null());
  EXPECT_FALSE(Train(*node)["rows"] != 200);
  EXPECT_EQ(node->service().AddPiece("train", 999, Fd(), 1, 0).code(), Code::kInvalidArgument);
  ASSERT_TRUE(node->service().AskRoom("train", kPage).ok());
  const json room = node->Answer();
  EXPECT_FALSE(node->service()
                   .AddPiece("train", room["buffer"], std::move(*CreateMemfd("x", kPage)), 41, 0)
                   .ok())
      << "more than there is to come";
  ASSERT_TRUE(node->service()
                  .AddPiece("train", room["buffer"], std::move(*CreateMemfd("x", kPage)), 40, 3)
                  .ok());
  EXPECT_EQ(Train(*node)["taken"], 100);
  auto second = node->Open("train");
  EXPECT_TRUE(second->Get(200).ok());
  node->Poll();
  EXPECT_EQ(second->Receive()["op"], "end");
}

TEST_F(ServiceBalanceTest, TheFeederMayNotGoOnAfterItsEnd) {
  auto node = Balanced(0, 2);
  ASSERT_TRUE(node->Write("train", 10));
  node->End("train");
  EXPECT_EQ(node->Try({{"op", "acquire"}, {"feed", "train"}, {"bytes", 8}}).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(node->service().AskRoom("train", kPage).code(), Code::kInvalidArgument)
      << "nor does anybody before the plan";
  node->End("train");
}

TEST_F(ServiceBalanceTest, EvenRanksEndWithoutAnybody) {
  auto node = Balanced(0, 3);
  ASSERT_TRUE(node->Write("train", 10));
  node->End("train");
  Others(*node, {{0, false}, {10, true}, {9, true}});
  EXPECT_TRUE(node->service().Moves("train").empty());
  auto reader = node->Open("train");
  EXPECT_EQ(node->Ask(*reader, 0)["closed"], true);
  EXPECT_EQ(node->Ask(*reader, 10)["op"], "end");
}

TEST_F(ServiceBalanceTest, RowsThatAreReadOnceAndLoneRanksAreLeftAlone) {
  for (const auto& node : {Balanced(0, 2, Cache::kNone), Balanced(0, 1)}) {
    ASSERT_TRUE(node->Write("train", 100));
    node->End("train");
    auto reader = node->Open("train");
    EXPECT_EQ(node->Ask(*reader, 0)["rows"], 100);
    EXPECT_EQ(node->Ask(*reader, 100)["op"], "end");
  }
}

}  // namespace
}  // namespace arcflow::feed
