// SPDX-License-Identifier: Apache-2.0
// Tests of FeedService with real packets and memory: what readers and the feeder are told, bad
// packets, failure, accounting.
#include "arcflow/feed/service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/feed/log.h"
#include "arcflow/feed/service_testing.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::FeedServiceTest;
using ::testing::HasSubstr;
using testing::kPage;
using testing::kRowsPerPage;
using testing::TestNode;
using testing::TestReader;

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

TEST_F(FeedServiceTest, PassesAreCounted) {
  auto node = Node(Cache::kAuto, 4);
  auto reader = node->Open("train");
  ASSERT_TRUE(node->Write("train"));
  json told{{"op", "stats"}, {"used", 500},  {"padded", 12},    {"dropped", 0},
            {"steps", 8},    {"wait_ns", 7}, {"complete", true}};
  ASSERT_TRUE(reader->Send(told).ok());  // a reader may leave `skipped` out
  told["skipped"] = 40;
  told["bytes"] = 4000;
  told["compute_ns"] = 30;
  told["duration_ns"] = 50;
  told["complete"] = false;
  ASSERT_TRUE(reader->Send(told).ok());
  node->Poll();
  const json stats = Train(*node);
  EXPECT_EQ(stats["rows"], kRowsPerPage);
  EXPECT_EQ(stats["bytes"], kPage);
  EXPECT_EQ(stats["ended"], false);
  ASSERT_EQ(stats["passes"].size(), 2u);
  json first = stats["passes"][0];
  EXPECT_EQ(first["peak_depth_bytes"], kPage);  // nobody has read what was written
  first.erase("peak_depth_bytes");
  first.erase("acquire_wait_ns");
  EXPECT_EQ(first, (json{{"used", 500},
                         {"padded", 12},
                         {"dropped", kRowsPerPage - 500},  // of which the reader knew nothing
                         {"skipped", 0},
                         {"steps", 8},
                         {"bytes", 0},
                         {"wait_ns", 7},
                         {"compute_ns", 0},
                         {"duration_ns", 0},
                         {"complete", true}}));
  const json second = stats["passes"][1];
  EXPECT_EQ(second["complete"], false);
  EXPECT_EQ(second["skipped"], 40);
  EXPECT_EQ(second["bytes"], 4000);
  EXPECT_EQ(second["compute_ns"], 30);
  EXPECT_EQ(second["duration_ns"], 50);
}

TEST_F(FeedServiceTest, PassesThatAreTooManyToTellStayInTheSums) {
  auto node = Node(Cache::kAuto, 4);
  auto reader = node->Open("train");
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(reader
                    ->Send({{"op", "stats"},
                            {"used", 10},
                            {"padded", 1},
                            {"dropped", 2},
                            {"steps", 1},
                            {"wait_ns", 0},
                            {"complete", i % 3 > 0}})
                    .ok());
    node->Poll();
  }
  const json stats = Train(*node);
  EXPECT_EQ(stats["passes_count"], 300);
  ASSERT_EQ(stats["passes"].size(), 256u);
  EXPECT_EQ(stats["older"], (json{{"used", 290},  // 29 of the first 44 were whole
                                  {"padded", 29},
                                  {"dropped", 58},
                                  {"skipped", 0},
                                  {"unfinished", 150}}));
}

TEST_F(FeedServiceTest, TheFeedersWaitIsToldWhileItWaitsAndByPass) {
  constexpr std::uint64_t kWaited = 30'000'000;
  auto node = Node(Cache::kNone, 1);
  auto reader = node->Open("train");
  ASSERT_TRUE(node->Write("train"));
  node->Acquire("train", kPage);  // no room before the reader goes on
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_GE(node->service().Levels("train")["acquire_wait_ns"].get<std::uint64_t>(), kWaited);
  EXPECT_EQ(node->service().Levels("train")["rows"], kRowsPerPage);
  EXPECT_EQ(node->service().Levels("nothing"), json::object());
  json told{{"op", "stats"}, {"used", 1},    {"padded", 0},     {"dropped", 0},
            {"steps", 1},    {"wait_ns", 0}, {"complete", true}};
  ASSERT_TRUE(reader->Send(told).ok());
  node->Poll();
  EXPECT_GE(Train(*node)["passes"][0]["acquire_wait_ns"].get<std::uint64_t>(), kWaited);
}

TEST_F(FeedServiceTest, WaitingForTheEndReadsNothing) {
  auto node = Node(Cache::kAuto, 4);
  auto reader = node->Open("train");
  ASSERT_TRUE(node->Write("train"));
  ASSERT_TRUE(reader->Send({{"op", "get"}, {"row", FeedLog::kMaxRows}}).ok());
  node->Poll();
  EXPECT_EQ(Train(*node)["depth_bytes"], kPage);
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
