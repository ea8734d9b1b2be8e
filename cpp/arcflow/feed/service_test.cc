// SPDX-License-Identifier: Apache-2.0
// Tests of FeedService with real packets and memory: each cache mode far beyond the budget, readers
// that stand still or die, bad packets, and what is told about it all.
#include "arcflow/feed/service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "arcflow/feed/service_testing.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::kPage;
using testing::kRowsPerPage;
using testing::TestNode;
using testing::TestReader;

class FeedServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string path = ::testing::TempDir() + "/arcflow-service-test-XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    dir_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  ServiceOptions Options(Cache cache, std::size_t pages) {
    ServiceOptions options;
    options.feeds["train"] = {testing::OneColumn(), cache};
    options.feed_memory_bytes = pages * kPage;
    options.local_dirs = {dir_};
    return options;
  }
  std::unique_ptr<TestNode> Node(Cache cache, std::size_t pages) {
    return std::make_unique<TestNode>(Options(cache, pages));
  }
  /// Reads all rows from `row` on, one segment at a time; returns the row after the last.
  static std::uint64_t ReadAll(TestNode& node, TestReader& reader, std::uint64_t row = 0) {
    for (;;) {
      const json answer = node.Ask(reader, row);
      if (answer.is_null() || answer["op"] != "segment") return row;
      const std::uint64_t end =
          answer["first_row"].get<std::uint64_t>() + answer["rows"].get<std::uint64_t>();
      EXPECT_GT(end, row);
      row = end;
      node.Release(reader, answer["segment"]);
    }
  }
  static json Train(const TestNode& node) {
    return const_cast<TestNode&>(node).service().Stats()["feeds"]["train"];
  }

  std::string dir_;
};

TEST_F(FeedServiceTest, ReaderGetsSchemaRankAndLeases) {
  ServiceOptions options = Options(Cache::kAuto, 16);
  options.rank = 1;
  options.size = 3;
  options.segment_bytes = kPage;
  TestNode node(std::move(options));
  node.Open("train");
  EXPECT_EQ(node.schema["schema"], testing::OneColumn().ToJson());
  EXPECT_EQ(node.schema["rank"], 1);
  EXPECT_EQ(node.schema["size"], 3);
  EXPECT_EQ(node.schema["max_leases"], 4);
}

TEST_F(FeedServiceTest, SchemaTooLargeForAPacketComesInAMemfd) {
  ServiceOptions options = Options(Cache::kAuto, 16);
  columnar::Schema& schema = options.feeds["train"].schema;
  for (int i = 0; i < 3000; ++i) {
    schema.columns.push_back({"column number " + std::to_string(i),
                              columnar::DType::kInt64,
                              columnar::Source::kScalar,
                              {}});
  }
  TestNode node(options);
  node.Open("train");
  EXPECT_FALSE(node.schema.contains("schema"));
  EXPECT_EQ(node.schema["fds"], 1);
}

TEST_F(FeedServiceTest, UnknownFeedIsAnErrorThatListsTheFeeds) {
  auto node = Node(Cache::kAuto, 4);
  auto pair = net::PacketPair();
  EXPECT_EQ(node->service().AddReader("test", std::move(pair->second)).status().code(),
            Code::kNotFound);
  TestReader reader(std::move(pair->first));
  const json error = reader.Receive();
  EXPECT_EQ(error["op"], "error");
  EXPECT_EQ(error["code"], "NOT_FOUND");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("'train'"));
  EXPECT_EQ(reader.Receive()["op"], "closed");
}

TEST_F(FeedServiceTest, RowsBecomeVisibleAsTheyArePublished) {
  auto node = Node(Cache::kAuto, 4);
  auto reader = node->Open("train");
  EXPECT_EQ(node->Ask(*reader, 0), nullptr);
  node->Acquire("train", kPage);
  const std::uint64_t buffer = node->Answer()["buffer"];
  node->Publish("train", buffer, 0, 0, 5, false);
  json answer = reader->Receive();
  EXPECT_EQ(answer["rows"], 5);
  EXPECT_EQ(answer["closed"], false);
  EXPECT_EQ(answer["fds"], 1);
  EXPECT_EQ(node->Ask(*reader, 5), nullptr);
  node->Publish("train", buffer, 0, 5, 9, true);
  answer = reader->Receive();
  EXPECT_EQ(answer["segment"], 0);
  EXPECT_EQ(answer["rows"], 9);
  EXPECT_EQ(answer["closed"], true);
  EXPECT_EQ(answer["fds"], 0);
  EXPECT_EQ(node->Ask(*reader, 9), nullptr);
  node->End("train");
  answer = reader->Receive();
  EXPECT_EQ(answer["op"], "end");
  EXPECT_EQ(answer["rows"], 9);
  EXPECT_THAT(node->TakeChanged(), ElementsAre("train"));
  EXPECT_EQ(node->service().Local("train"), (RankRows{9, true}));
}

TEST_F(FeedServiceTest, EmptyFeedEndsAtOnce) {
  auto node = Node(Cache::kNone, 4);
  auto reader = node->Open("train");
  EXPECT_EQ(node->Ask(*reader, 0), nullptr);
  node->End("train");
  const json end = reader->Receive();
  EXPECT_EQ(end["op"], "end");
  EXPECT_EQ(end["rows"], 0);
}

TEST_F(FeedServiceTest, AutoKeepsTenTimesTheBudgetByMovingItToDisk) {
  auto node = Node(Cache::kAuto, 8);
  for (int i = 0; i < 80; ++i) ASSERT_TRUE(node->Write("train")) << i << node->last.dump();
  node->End("train");
  EXPECT_EQ(Train(*node)["segments"], 80);
  EXPECT_EQ(Train(*node)["spilled_segments"], 72);
  EXPECT_EQ(node->service().Stats()["spilled_bytes"], 72 * kPage);
  EXPECT_EQ(node->service().Stats()["peak_buffers_bytes"], 8 * kPage);
  EXPECT_TRUE(std::filesystem::is_empty(dir_)) << "spilled files have no names";
  for (int pass = 0; pass < 2; ++pass) {
    auto reader = node->Open("train");
    EXPECT_EQ(ReadAll(*node, *reader), 80 * kRowsPerPage);
  }
}

TEST_F(FeedServiceTest, DiskMovesEverySegmentAsSoonAsItIsClosed) {
  auto node = Node(Cache::kDisk, 2);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(node->Write("train"));
    EXPECT_EQ(Train(*node)["spilled_segments"], i + 1);
  }
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], kPage) << "one buffer, again and again";
  node->End("train");
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 0);
  auto reader = node->Open("train");
  EXPECT_EQ(ReadAll(*node, *reader), 20 * kRowsPerPage);
}

TEST_F(FeedServiceTest, DiskServesAWaitingReaderFromMemoryAndKeepsThatMemoryUntilItIsReleased) {
  auto node = Node(Cache::kDisk, 4);
  auto reader = node->Open("train");
  EXPECT_EQ(node->Ask(*reader, 0), nullptr);
  ASSERT_TRUE(node->Write("train"));
  const std::uint64_t first = node->last["buffer"];
  EXPECT_EQ(reader->Receive()["buffer"], first);
  EXPECT_EQ(Train(*node)["spilled_segments"], 1);
  ASSERT_TRUE(node->Write("train"));
  EXPECT_NE(node->last["buffer"], first) << "the reader still looks at it";
  reader->Check(0);
  node->Release(*reader, 0);
  ASSERT_TRUE(node->Write("train"));
  ASSERT_TRUE(node->Write("train"));
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 2 * kPage) << "both buffers are in use again";
}

TEST_F(FeedServiceTest, MemoryRefusesWhatDoesNotFitWithAdviceAndKeepsWhatIsThere) {
  auto node = Node(Cache::kMemory, 8);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(node->Write("train"));
  EXPECT_FALSE(node->Write("train"));
  EXPECT_EQ(node->last["op"], "refused");
  EXPECT_EQ(node->last["code"], "RESOURCE_EXHAUSTED");
  const std::string message = node->last["message"];
  EXPECT_THAT(message, HasSubstr("feed_memory=32768 bytes"));
  EXPECT_THAT(message, HasSubstr("cache='auto'"));
  auto reader = node->Open("train");
  EXPECT_EQ(ReadAll(*node, *reader), 8 * kRowsPerPage);
  EXPECT_EQ(Train(*node)["spilled_segments"], 0);
}

TEST_F(FeedServiceTest, MemoryIsNotHeldUpByReadersThatStandStill) {
  auto node = Node(Cache::kMemory, 4);
  auto reader = node->Open("train");
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(node->Write("train"));
    ASSERT_EQ(node->Ask(*reader, static_cast<std::uint64_t>(i) * kRowsPerPage)["op"], "segment");
  }
  EXPECT_EQ(reader->held().size(), 4u) << "leases cost nothing where everything stays";
}

TEST_F(FeedServiceTest, NoneWaitsForTheReaderAndUsesMemoryAgain) {
  auto node = Node(Cache::kNone, 4);
  auto reader = node->Open("train");
  std::uint64_t written = 0, row = 0;
  int parked = 0;
  while (written < 40) {
    node->Acquire("train", kPage);
    json grant = node->Answer();
    while (grant.is_null()) {  // full: read on
      ++parked;
      const json answer = node->Ask(*reader, row);
      ASSERT_EQ(answer["op"], "segment");
      row += answer["rows"].get<std::uint64_t>();
      reader->Check(answer["segment"]);
      node->Release(*reader, answer["segment"]);
      grant = node->Answer();
    }
    ASSERT_EQ(grant["op"], "segment");
    node->Publish("train", grant["buffer"], written++ * kRowsPerPage, 0, kRowsPerPage, true);
  }
  node->End("train");
  EXPECT_EQ(ReadAll(*node, *reader, row), 40 * kRowsPerPage);
  EXPECT_GT(parked, 0);
  EXPECT_EQ(Train(*node)["spilled_segments"], 0);
  EXPECT_GT(Train(*node)["acquire_wait_ns"], 0);
  auto late = node->Open("train");
  const json error = node->Ask(*late, 0);
  EXPECT_EQ(error["code"], "FAILED_PRECONDITION");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("cache='none'"));
  EXPECT_EQ(node->Ask(*late, 39 * kRowsPerPage)["op"], "segment") << "the session goes on";
}

TEST_F(FeedServiceTest, NoneDropsNothingWhileThereIsRoom) {
  auto node = Node(Cache::kNone, 8);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(node->Write("train"));
  for (int pass = 0; pass < 3; ++pass) {
    auto reader = node->Open("train");
    EXPECT_EQ(ReadAll(*node, *reader), 8 * kRowsPerPage);
  }
}

/// Keras under tf.distribute opens a second iterator after the first has read one batch; the first
/// stays open for good.
class KerasPatternTest : public FeedServiceTest,
                         public ::testing::WithParamInterface<std::tuple<Cache, std::size_t>> {};

TEST_P(KerasPatternTest, SecondReaderLosesNothingWhileTheFirstStandsStill) {
  const auto [cache, pages] = GetParam();
  auto node = Node(cache, pages);
  const std::uint64_t total = cache == Cache::kMemory ? pages : 10 * pages;
  auto first = node->Open("train");
  auto second = node->Open("train");
  ASSERT_TRUE(first->Get(0).ok());
  ASSERT_TRUE(first->Get(kRowsPerPage).ok());  // and the look-ahead of a real reader
  std::uint64_t written = 0, row = 0;
  bool asked = false;
  json grant;
  node->Acquire("train", kPage);
  for (int idle = 0; row < total * kRowsPerPage; ++idle) {
    ASSERT_LT(idle, 100) << "nobody goes on: " << written << " written, " << row << " rows read";
    node->Poll();
    if (written < total && !(grant = node->Answer()).is_null()) {
      ASSERT_EQ(grant["op"], "segment") << grant.dump();
      const std::uint64_t at = written * kRowsPerPage;
      node->Publish("train", grant["buffer"], at, 0, kRowsPerPage / 2, false);
      node->Publish("train", grant["buffer"], at, kRowsPerPage / 2, kRowsPerPage, true);
      if (++written < total) {
        node->Acquire("train", kPage);
      } else {
        node->End("train");
      }
      idle = 0;
    }
    first->Receive();  // answers are taken, nothing is ever released
    if (written < 2) continue;
    if (!asked) {
      ASSERT_TRUE(second->Get(row).ok());
    }
    asked = true;
    node->Poll();
    const json answer = second->Receive();
    if (answer.is_null()) continue;
    asked = false;
    ASSERT_EQ(answer["op"], "segment") << answer.dump();
    row = answer["first_row"].get<std::uint64_t>() + answer["rows"].get<std::uint64_t>();
    if (answer["closed"]) {
      second->Check(answer["segment"]);
      node->Release(*second, answer["segment"]);
    }
    idle = 0;
  }
  for (const auto& [segment, held] : first->held()) first->Check(segment);
  EXPECT_LE(node->service().Stats()["peak_buffers_bytes"], pages * kPage);
}

INSTANTIATE_TEST_SUITE_P(CachesAndBudgets, KerasPatternTest,
                         ::testing::Combine(::testing::Values(Cache::kAuto, Cache::kMemory,
                                                              Cache::kDisk, Cache::kNone),
                                            ::testing::Values(2, 3, 4, 8)));

TEST_F(FeedServiceTest, OneSegmentOfMemoryIsEnoughForWriterAndReader) {
  for (const Cache cache : {Cache::kAuto, Cache::kDisk, Cache::kNone}) {
    auto node = Node(cache, 1);
    auto reader = node->Open("train");
    std::uint64_t row = 0;
    for (std::uint64_t i = 0; i < 10; ++i) {
      ASSERT_TRUE(node->Write("train")) << i << " " << node->last.dump();
      row = ReadAll(*node, *reader, row);
      EXPECT_EQ(row, (i + 1) * kRowsPerPage);
      node->Poll();
      EXPECT_EQ(reader->Receive(), nullptr);
      reader->Close();  // a look-ahead is open: begin anew
      node->Poll();
      reader = node->Open("train");
    }
  }
}

TEST_F(FeedServiceTest, ManyReadersThatHoldEverythingNeverStopTheWriter) {
  auto node = Node(Cache::kAuto, 8);
  std::vector<std::unique_ptr<TestReader>> readers;
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(node->Write("train")) << i << node->last.dump();
    if (i % 2 == 0) readers.push_back(node->Open("train"));
    for (auto& reader : readers) {  // each hoards the newest segment and one old one
      ASSERT_EQ(node->Ask(*reader, static_cast<std::uint64_t>(i) * kRowsPerPage)["op"], "segment");
      ASSERT_EQ(node->Ask(*reader, static_cast<std::uint64_t>(i / 2) * kRowsPerPage)["op"],
                "segment");
    }
  }
  EXPECT_LE(Train(*node)["leased_bytes"], 6 * kPage) << "the reserve stays free";
  for (auto& reader : readers) {
    for (const auto& [segment, held] : reader->held()) reader->Check(segment);
  }
}

TEST_F(FeedServiceTest, ReaderOfAnOpenSegmentGetsACopyWhenTheWriterWaitsForRoomToo) {
  ServiceOptions options = Options(Cache::kAuto, 2);
  options.feeds["other"] = {testing::OneColumn(), Cache::kNone};
  TestNode node(std::move(options));
  node.Acquire("train", kPage);
  const std::uint64_t buffer = node.Answer()["buffer"];
  node.Publish("train", buffer, 0, 0, 10, false);
  auto reader = node.Open("train");
  EXPECT_EQ(node.Ask(*reader, 0), nullptr) << "leasing it would take the other writer's room";
  ASSERT_TRUE(node.Write("other"));
  EXPECT_FALSE(node.Write("other"));  // its rows were not read: parked
  const json answer = reader->Receive();
  ASSERT_EQ(answer["op"], "segment");
  EXPECT_EQ(answer["rows"], 10);
  EXPECT_NE(answer["buffer"], buffer);
  EXPECT_EQ(Train(node)["leased_bytes"], 0);
  // The log goes on where it was, and the copy is dropped with the next answer.
  auto other = node.Open("other");
  node.Ask(*other, 0);
  node.Release(*other, 0);
  EXPECT_EQ(node.Ask(*other, kRowsPerPage), nullptr);
  EXPECT_EQ(node.Answer()["op"], "segment");
  node.Publish("train", buffer, 0, 10, 20, true);
  const json grown = node.Ask(*reader, 10);
  EXPECT_EQ(grown["segment"], 0);
  EXPECT_EQ(grown["rows"], 20);
  EXPECT_THAT(grown["drop"].get<std::vector<std::uint64_t>>(),
              ElementsAre(answer["buffer"].get<std::uint64_t>()));
}

TEST_F(FeedServiceTest, DeadReaderGivesBackItsLeases) {
  auto node = Node(Cache::kNone, 4);
  auto reader = node->Open("train");
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(node->Write("train"));
  for (std::uint64_t i = 0; i < 3; ++i)
    ASSERT_EQ(node->Ask(*reader, i * kRowsPerPage)["op"], "segment");
  EXPECT_EQ(Train(*node)["leased_bytes"], 3 * kPage);
  EXPECT_FALSE(node->Write("train"));
  EXPECT_EQ(node->Answer(), nullptr);
  reader->Close();
  node->Poll();
  EXPECT_EQ(node->sessions(), 0u);
  EXPECT_EQ(Train(*node)["leased_bytes"], 0);
  EXPECT_EQ(node->Answer()["op"], "segment") << "the parked writer goes on";
}

TEST_F(FeedServiceTest, BadPacketEndsThatReaderOnly) {
  auto node = Node(Cache::kAuto, 4);
  auto good = node->Open("train");
  auto bad = node->Open("train");
  ASSERT_TRUE(node->Write("train"));
  ASSERT_EQ(node->Ask(*bad, 0)["op"], "segment");
  ASSERT_TRUE(bad->Send({{"op", "release"}, {"segment", 55}}).ok());
  node->Poll();
  EXPECT_EQ(bad->Receive()["code"], "INVALID_ARGUMENT");
  EXPECT_EQ(bad->Receive()["op"], "closed");
  EXPECT_EQ(node->sessions(), 1u);
  EXPECT_EQ(Train(*node)["leased_bytes"], 0);
  EXPECT_EQ(node->Ask(*good, 0)["op"], "segment");
  EXPECT_FALSE(node->service().OnReaderReadable(12345)) << "no such session";
}

TEST_F(FeedServiceTest, RequestOverTheWholeBudgetIsRefusedWithBothSizes) {
  auto node = Node(Cache::kAuto, 4);
  node->Acquire("train", 5 * kPage);
  const json refused = node->Answer();
  EXPECT_EQ(refused["op"], "refused");
  EXPECT_EQ(refused["code"], "RESOURCE_EXHAUSTED");
  EXPECT_THAT(refused["message"].get<std::string>(), HasSubstr("20480 bytes"));
  EXPECT_THAT(refused["message"].get<std::string>(), HasSubstr("feed_memory=16384 bytes"));
  EXPECT_TRUE(node->Write("train")) << "the feeder may go on with smaller ones";
}

TEST_F(FeedServiceTest, LargeSegmentTakesThePlaceOfSmallOnes) {
  auto node = Node(Cache::kAuto, 4);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(node->Write("train"));
  auto reader = node->Open("train");
  ASSERT_EQ(node->Ask(*reader, 0)["fds"], 1);
  node->Release(*reader, 0);
  node->Acquire("train", 4 * kPage);
  const json grant = node->Answer();
  ASSERT_EQ(grant["op"], "segment") << grant.dump();
  EXPECT_EQ(grant["drop"].size(), 4u);
  EXPECT_EQ(node->feeder_bytes(), 4 * kPage);
  node->Publish("train", grant["buffer"], 4 * kRowsPerPage, 0, 4 * kRowsPerPage, true);
  EXPECT_EQ(ReadAll(*node, *reader), 8 * kRowsPerPage);
  EXPECT_FALSE(reader->maps(1)) << "the reader was told that the first buffer is gone";
}

TEST_F(FeedServiceTest, FeedsShareTheBudget) {
  ServiceOptions options = Options(Cache::kAuto, 4);
  options.feeds["validation"] = {testing::OneColumn(), Cache::kAuto};
  TestNode node(std::move(options));
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(node.Write("train"));
  node.End("train");
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(node.Write("validation"));
  node.End("validation");
  auto train = node.Open("train");
  auto validation = node.Open("validation");
  EXPECT_EQ(ReadAll(node, *validation), 10 * kRowsPerPage);
  EXPECT_EQ(ReadAll(node, *train), 10 * kRowsPerPage);
}

TEST_F(FeedServiceTest, OpenSegmentsThatFillTheBudgetAreAnErrorAndNoHang) {
  ServiceOptions options = Options(Cache::kAuto, 2);
  options.feeds["a"] = options.feeds["b"] = {testing::OneColumn(), Cache::kAuto};
  TestNode node(std::move(options));
  for (const char* feed : {"a", "b"}) {
    node.Acquire(feed, kPage);
    node.Publish(feed, node.Answer()["buffer"], 0, 0, 1, false);
  }
  node.Acquire("train", kPage);
  const json refused = node.Answer();
  ASSERT_EQ(refused["op"], "refused");
  EXPECT_EQ(refused["code"], "RESOURCE_EXHAUSTED");
  EXPECT_THAT(refused["message"].get<std::string>(), HasSubstr("'a' 4096 bytes (being filled)"));
}

TEST_F(FeedServiceTest, AcquiresAreAnsweredInOrder) {
  auto node = Node(Cache::kNone, 4);
  ASSERT_TRUE(node->Write("train"));
  ASSERT_TRUE(node->Write("train"));
  node->Acquire("train", 3 * kPage);
  node->Acquire("train", kPage);
  EXPECT_EQ(node->Answer(), nullptr) << "the small one waits behind the large one";
  auto reader = node->Open("train");
  EXPECT_EQ(ReadAll(*node, *reader), 2 * kRowsPerPage);
  EXPECT_EQ(node->Answer()["bytes"], 3 * kPage);
  EXPECT_EQ(node->Answer()["bytes"], kPage);
}

TEST_F(FeedServiceTest, RefuseMoreAnswersParkedAndLaterAcquiresWithCancelled) {
  auto node = Node(Cache::kNone, 1);
  ASSERT_TRUE(node->Write("train"));
  EXPECT_FALSE(node->Write("train"));
  EXPECT_EQ(node->Answer(), nullptr);
  node->service().RefuseMore();
  EXPECT_EQ(node->Answer()["code"], "CANCELLED");
  EXPECT_FALSE(node->Write("train"));
  EXPECT_EQ(node->last["code"], "CANCELLED");
  auto reader = node->Open("train");
  EXPECT_EQ(node->Ask(*reader, 0)["op"], "segment") << "readers go on";
}

TEST_F(FeedServiceTest, FailReachesParkedAndLaterRequestsOfReadersAndTheFeeder) {
  auto node = Node(Cache::kNone, 1);
  auto reader = node->Open("train");
  EXPECT_EQ(node->Ask(*reader, 0), nullptr);
  ASSERT_TRUE(reader->Send({{"op", "plan"}, {"step", 0}, {"batch", 4}, {"remainder", 0}}).ok());
  node->Poll();
  node->service().Fail(Unavailable("the executor is lost"));
  node->service().Fail(Internal("later, and of no interest"));
  EXPECT_EQ(reader->Receive()["message"], "the executor is lost");
  EXPECT_EQ(reader->Receive()["message"], "the executor is lost");
  EXPECT_EQ(node->Ask(*reader, 0)["code"], "UNAVAILABLE");
  EXPECT_FALSE(node->Write("train"));
  EXPECT_EQ(node->last["code"], "UNAVAILABLE");
}

TEST_F(FeedServiceTest, PlanFollowsWhatOtherRanksHave) {
  ServiceOptions options = Options(Cache::kAuto, 4);
  options.rank = 1;
  options.size = 2;
  TestNode node(std::move(options));
  auto reader = node.Open("train");
  ASSERT_TRUE(node.Write("train", 10));
  ASSERT_TRUE(
      reader->Send({{"op", "plan"}, {"step", 0}, {"batch", 4}, {"remainder", "drop"}}).ok());
  node.Poll();
  EXPECT_EQ(reader->Receive(), nullptr) << "rank 0 has nothing yet";
  node.service().SetRanks("train", {{9, false}, {0, false}});
  json plan = reader->Receive();
  EXPECT_EQ(plan["steps"], 2);
  EXPECT_EQ(plan["final"], false);
  ASSERT_TRUE(
      reader->Send({{"op", "plan"}, {"step", 2}, {"batch", 4}, {"remainder", "drop"}}).ok());
  node.Poll();
  EXPECT_EQ(reader->Receive(), nullptr);
  node.End("train");
  plan = reader->Receive();
  EXPECT_EQ(plan["steps"], 2);
  EXPECT_EQ(plan["final"], true);
  node.service().SetRanks("train", {{9, true}, {0, true}});
  ASSERT_TRUE(
      reader->Send({{"op", "plan"}, {"step", 0}, {"batch", 4}, {"remainder", "refuse"}}).ok());
  node.Poll();
  const json error = reader->Receive();
  EXPECT_EQ(error["code"], "FAILED_PRECONDITION");
  EXPECT_THAT(error["message"].get<std::string>(), HasSubstr("rank 0: 9, rank 1: 10"));
}

TEST_F(FeedServiceTest, DiskThatTakesNothingIsAnErrorForTheWriterWithThePath) {
  for (const Cache cache : {Cache::kAuto, Cache::kDisk}) {
    ServiceOptions options = Options(cache, 4);
    options.local_dirs = {dir_ + "/missing"};
    TestNode node(std::move(options));
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(node.Write("train"));
    EXPECT_FALSE(node.Write("train"));
    ASSERT_EQ(node.last["op"], "refused") << node.last.dump();
    EXPECT_THAT(node.last["message"].get<std::string>(), HasSubstr(dir_ + "/missing"));
    EXPECT_THAT(node.last["message"].get<std::string>(), HasSubstr("feed_memory"));
    auto reader = node.Open("train");
    EXPECT_EQ(ReadAll(node, *reader), 4 * kRowsPerPage) << "what is there can be read";
  }
}

TEST_F(FeedServiceTest, WriterWithoutDiskIsRefusedEvenIfReadersHoldEverything) {
  ServiceOptions options = Options(Cache::kAuto, 4);
  options.local_dirs = {};
  TestNode node(std::move(options));
  auto reader = node.Open("train");
  for (std::uint64_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(node.Write("train"));
    ASSERT_EQ(node.Ask(*reader, i * kRowsPerPage)["op"], "segment");
  }
  EXPECT_FALSE(node.Write("train"));
  ASSERT_EQ(node.last["op"], "refused") << "parked for ever";
  EXPECT_THAT(node.last["message"].get<std::string>(), HasSubstr("spark.local.dir"));
}

TEST_F(FeedServiceTest, PassesAreCounted) {
  auto node = Node(Cache::kAuto, 4);
  auto reader = node->Open("train");
  ASSERT_TRUE(node->Write("train"));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(reader
                    ->Send({{"op", "stats"},
                            {"used", 500},
                            {"padded", 12},
                            {"dropped", 0},
                            {"steps", 8},
                            {"wait_ns", 7},
                            {"complete", i == 0}})
                    .ok());
  }
  node->Poll();
  const json stats = Train(*node);
  EXPECT_EQ(stats["rows"], kRowsPerPage);
  EXPECT_EQ(stats["bytes"], kPage);
  EXPECT_EQ(stats["ended"], false);
  ASSERT_EQ(stats["passes"].size(), 2u);
  EXPECT_EQ(stats["passes"][0], (json{{"used", 500},
                                      {"padded", 12},
                                      {"dropped", 0},
                                      {"steps", 8},
                                      {"wait_ns", 7},
                                      {"complete", true}}));
  EXPECT_EQ(stats["passes"][1]["complete"], false);
}

TEST_F(FeedServiceTest, SegmentWithoutRowsGivesItsMemoryBack) {
  auto node = Node(Cache::kAuto, 1);
  node->Acquire("train", kPage);
  const std::uint64_t buffer = node->Answer()["buffer"];
  node->Publish("train", buffer, 0, 0, 0, true);
  node->Acquire("train", kPage);
  EXPECT_EQ(node->Answer()["buffer"], buffer);
  node->End("train");
  EXPECT_EQ(node->service().Stats()["buffers_bytes"], 0) << "granted memory goes with its writer";
}

TEST_F(FeedServiceTest, BadPacketsOfTheFeederAreRefused) {
  auto node = Node(Cache::kAuto, 4);
  const auto refused = [&](const json& packet, std::vector<Fd> fds = {}) {
    const Status status = node->Try(packet, std::move(fds));
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << packet.dump();
    return std::string(status.message());
  };
  refused({{"op", "acquire"}});
  refused({{"op", "acquire"}, {"feed", "test"}, {"bytes", 1}});
  refused({{"op", "acquire"}, {"feed", "train"}, {"bytes", 0}});
  refused({{"op", "acquire"}, {"feed", "train"}, {"bytes", -4}});
  refused({{"op", "acquire"}, {"feed", "train"}, {"bytes", UINT64_MAX}});
  refused({{"op", "acquire"}, {"feed", 3}, {"bytes", 1}});
  refused({{"op", "grow"}, {"feed", "train"}});
  refused(json::array());
  const json publish{
      {"op", "publish"}, {"feed", "train"}, {"buffer", 1}, {"rows", 1}, {"closed", false}};
  EXPECT_THAT(refused(publish), HasSubstr("not granted"));
  node->Acquire("train", kPage);
  ASSERT_EQ(node->Answer()["buffer"], 1);
  EXPECT_THAT(refused(publish), HasSubstr("without its memory"));
  std::vector<Fd> small;
  small.push_back(std::move(*CreateMemfd("x", 2 * kPage)));
  EXPECT_THAT(refused(publish, std::move(small)), HasSubstr("8192 bytes instead of 4096"));
  node->Publish("train", 1, 0, 0, 4, false);
  EXPECT_THAT(refused(publish), HasSubstr("takes back rows"));
  json other = publish;
  other["rows"] = 5;
  other["closed"] = "yes";
  refused(other);
  node->End("train");
  node->End("train");
  EXPECT_THAT(refused({{"op", "acquire"}, {"feed", "train"}, {"bytes", 1}}),
              HasSubstr("after its end"));
  EXPECT_THAT(refused(publish), HasSubstr("not granted"));
  EXPECT_EQ(Train(*node)["rows"], 4);
}

}  // namespace
}  // namespace arcflow::feed
