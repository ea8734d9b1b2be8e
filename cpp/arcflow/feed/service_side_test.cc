// SPDX-License-Identifier: Apache-2.0
// Tests of feeds that come and go, and of stages that become rows of a feed.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

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

/// Rows of a stage hold numbers that continue those of the target, as TestReader checks.
void WriteStage(TestNode& node, const std::string& stage, std::uint64_t first_row, int segments) {
  for (int i = 0; i < segments; ++i) {
    node.Acquire(stage, kPage);
    const json answer = node.Answer();
    ASSERT_EQ(answer["op"], "segment") << answer;
    node.Publish(stage, answer["buffer"], first_row + static_cast<std::uint64_t>(i) * kRowsPerPage,
                 0, kRowsPerPage, true);
  }
  ASSERT_TRUE(node.service().EndFeed(stage).ok());
}

class ServiceSideTest : public FeedServiceTest {
 protected:
  void AddStage(TestNode& node, const std::string& name, Cache cache = Cache::kAuto) {
    ASSERT_TRUE(node.service().AddFeed(name, {OneColumn(), cache}).ok());
  }
};

TEST_F(ServiceSideTest, RowsOfAStageAreSeenWhenItIsSplicedAndNotBefore) {
  auto node = Node(Cache::kAuto, 16);
  AddStage(*node, "stage");
  auto reader = node->Open("train");
  ASSERT_TRUE(reader->Get(0).ok());
  WriteStage(*node, "stage", 0, 2);
  node->Poll();
  EXPECT_TRUE(reader->Receive().is_null());
  EXPECT_EQ(node->service().Local("train").rows, 0u);
  ASSERT_TRUE(node->service().Splice("stage", "train").ok());
  node->service().RemoveFeed("stage");
  EXPECT_TRUE(node->TakeChanged().contains("train"));
  const json first = reader->Receive();
  EXPECT_EQ(first["rows"], kRowsPerPage);
  const json second = node->Ask(*reader, kRowsPerPage);
  EXPECT_EQ(second["first_row"], kRowsPerPage);
  EXPECT_EQ(second["closed"], true);
  EXPECT_EQ(node->service().Local("train").rows, 2 * kRowsPerPage);
}

TEST_F(ServiceSideTest, AStageThatIsRemovedGivesItsMemoryBack) {
  auto node = Node(Cache::kAuto, 4);
  AddStage(*node, "stage");
  WriteStage(*node, "stage", 0, 3);
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 3 * kPage);
  node->service().RemoveFeed("stage");
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 0u);
  EXPECT_FALSE(node->service().Splice("stage", "train").ok());
}

TEST_F(ServiceSideTest, StagesBeyondTheBudgetGoToDiskAndComeBackWhole) {
  auto node = Node(Cache::kAuto, 4);
  for (int stage = 0; stage < 3; ++stage) {
    const std::string name = "stage " + std::to_string(stage);
    AddStage(*node, name);
    WriteStage(*node, name, static_cast<std::uint64_t>(stage) * 4 * kRowsPerPage, 4);
  }
  EXPECT_LE(node->service().Stats()["buffers_bytes"], 4 * kPage);
  for (int stage = 0; stage < 3; ++stage) {
    const std::string name = "stage " + std::to_string(stage);
    ASSERT_TRUE(node->service().Splice(name, "train").ok());
    node->service().RemoveFeed(name);
  }
  node->End("train");
  auto reader = node->Open("train");
  std::uint64_t row = 0;
  for (json answer = node->Ask(*reader, row); answer["op"] == "segment";
       answer = node->Ask(*reader, row)) {
    row += answer["rows"].get<std::uint64_t>();  // the reader has checked the values
    node->Release(*reader, answer["segment"]);
  }
  EXPECT_EQ(row, 12 * kRowsPerPage);
}

TEST_F(ServiceSideTest, AFeedThatHasEndedTakesNoStage) {
  auto node = Node(Cache::kAuto, 4);
  AddStage(*node, "stage");
  WriteStage(*node, "stage", 0, 1);
  ASSERT_TRUE(node->service().EndFeed("train").ok());
  EXPECT_EQ(node->service().Splice("stage", "train").code(), Code::kInvalidArgument);
  EXPECT_EQ(node->service().Local("stage").rows, kRowsPerPage);
}

TEST_F(ServiceSideTest, AReaderMayLookAtAFeedThatIsRemovedUntilItCloses) {
  auto node = Node(Cache::kAuto, 4);
  AddStage(*node, "block");
  WriteStage(*node, "block", 0, 1);
  auto reader = node->Open("block");
  EXPECT_EQ(node->Ask(*reader, 0)["op"], "segment");
  node->service().RemoveFeed("block");
  EXPECT_EQ(node->Ask(*reader, kRowsPerPage)["op"], "end");
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], kPage);
  reader->Close();
  node->Poll();
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 0u);
}

TEST_F(ServiceSideTest, ARefusedFeedRefusesItsWriterAlone) {
  auto node = Node(Cache::kAuto, 4);
  AddStage(*node, "a");
  AddStage(*node, "b");
  node->service().RefuseFeed("a", Cancelled("enough"));
  node->Acquire("a", kPage);
  EXPECT_EQ(node->Answer()["code"], "CANCELLED");
  node->Acquire("b", kPage);
  EXPECT_EQ(node->Answer()["op"], "segment");
}

TEST_F(ServiceSideTest, ANameIsTakenOnce) {
  auto node = Node(Cache::kAuto, 4);
  EXPECT_EQ(node->service().AddFeed("train", {OneColumn(), Cache::kAuto}).code(),
            Code::kAlreadyExists);
}

}  // namespace
}  // namespace arcflow::feed
