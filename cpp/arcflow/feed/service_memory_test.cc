// SPDX-License-Identifier: Apache-2.0
// Tests of FeedMemory through FeedService: each cache mode far beyond the budget, readers that
// stand still, broken disks.
#include "arcflow/feed/service_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
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

class FeedMemoryTest : public testing::FeedServiceTest {};

TEST_F(FeedMemoryTest, AutoKeepsTenTimesTheBudgetByMovingItToDisk) {
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

TEST_F(FeedMemoryTest, DiskMovesEverySegmentAsSoonAsItIsClosed) {
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

TEST_F(FeedMemoryTest, DiskServesAWaitingReaderFromMemoryAndKeepsThatMemoryUntilItIsReleased) {
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

TEST_F(FeedMemoryTest, MemoryRefusesWhatDoesNotFitWithAdviceAndKeepsWhatIsThere) {
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

TEST_F(FeedMemoryTest, MemoryIsNotHeldUpByReadersThatStandStill) {
  auto node = Node(Cache::kMemory, 4);
  auto reader = node->Open("train");
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(node->Write("train"));
    ASSERT_EQ(node->Ask(*reader, static_cast<std::uint64_t>(i) * kRowsPerPage)["op"], "segment");
  }
  EXPECT_EQ(reader->held().size(), 4u) << "leases cost nothing where everything stays";
}

TEST_F(FeedMemoryTest, NoneWaitsForTheReaderAndUsesMemoryAgain) {
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

TEST_F(FeedMemoryTest, NoneDropsNothingWhileThereIsRoom) {
  auto node = Node(Cache::kNone, 8);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(node->Write("train"));
  for (int pass = 0; pass < 3; ++pass) {
    auto reader = node->Open("train");
    EXPECT_EQ(ReadAll(*node, *reader), 8 * kRowsPerPage);
  }
}

/// Keras under tf.distribute opens a second iterator after the first has read one batch; the first
/// stays open for good.
class KerasPatternTest : public FeedMemoryTest,
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

TEST_F(FeedMemoryTest, OneSegmentOfMemoryIsEnoughForWriterAndReader) {
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

TEST_F(FeedMemoryTest, ManyReadersThatHoldEverythingNeverStopTheWriter) {
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

TEST_F(FeedMemoryTest, ReaderOfAnOpenSegmentGetsACopyWhenTheWriterWaitsForRoomToo) {
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

TEST_F(FeedMemoryTest, RequestOverTheWholeBudgetIsRefusedWithBothSizes) {
  auto node = Node(Cache::kAuto, 4);
  node->Acquire("train", 5 * kPage);
  const json refused = node->Answer();
  EXPECT_EQ(refused["op"], "refused");
  EXPECT_EQ(refused["code"], "RESOURCE_EXHAUSTED");
  EXPECT_THAT(refused["message"].get<std::string>(), HasSubstr("20480 bytes"));
  EXPECT_THAT(refused["message"].get<std::string>(), HasSubstr("feed_memory=16384 bytes"));
  EXPECT_TRUE(node->Write("train")) << "the feeder may go on with smaller ones";
}

TEST_F(FeedMemoryTest, LargeSegmentTakesThePlaceOfSmallOnes) {
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

TEST_F(FeedMemoryTest, WhatANodeKeepsMappedOfOneFeedIsToldGoneByAnother) {
  for (const bool open_before : {false, true}) {  // whether a session is there when memory goes
    ServiceOptions options = Options(Cache::kAuto, 4);
    options.feeds["validation"] = {testing::OneColumn(), Cache::kAuto};
    TestNode node(std::move(options));
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(node.Write("train"));
    node.End("train");
    auto pass = node.Open("train");
    EXPECT_EQ(ReadAll(node, *pass), 3 * kRowsPerPage);
    pass->Close();  // the node keeps its mappings for the next pass
    node.Poll();
    ASSERT_EQ(node.sessions(), 0u);
    auto reader = open_before ? node.Open("validation") : nullptr;
    node.Acquire("validation", 4 * kPage);
    const json grant = node.Answer();
    ASSERT_EQ(grant["op"], "segment") << grant.dump();
    const auto gone = grant["drop"].get<std::vector<std::uint64_t>>();
    ASSERT_EQ(gone.size(), 3u);
    node.Publish("validation", grant["buffer"], 0, 0, 4 * kRowsPerPage, true);
    if (reader == nullptr) reader = node.Open("validation");
    const json answer = node.Ask(*reader, 0);
    ASSERT_EQ(answer["op"], "segment");
    EXPECT_THAT(answer.value("drop", std::vector<std::uint64_t>()),
                ::testing::UnorderedElementsAreArray(gone));
    // Once is enough.
    auto other = node.Open("train");
    EXPECT_FALSE(node.Ask(*other, 0).contains("drop"));
  }
}

TEST_F(FeedMemoryTest, FeedsShareTheBudget) {
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

TEST_F(FeedMemoryTest, AFeedThatComesLaterGetsItsShareOfWhatAnEarlierOneHasRead) {
  ServiceOptions options = Options(Cache::kNone, 8);
  options.feeds["validation"] = {testing::OneColumn(), Cache::kNone};
  TestNode node(std::move(options));
  std::map<std::string, std::set<std::uint64_t>> buffers;
  for (const std::string feed : {"train", "validation"}) {
    auto reader = node.Open(feed);
    for (std::uint64_t i = 0; i < 20; ++i) {
      ASSERT_TRUE(node.Write(feed));
      const json segment = node.Ask(*reader, i * kRowsPerPage);
      ASSERT_EQ(segment["op"], "segment");
      node.Release(*reader, segment["segment"]);
      buffers[feed].insert(segment["buffer"].get<std::uint64_t>());
    }
  }
  EXPECT_EQ(buffers["train"].size(), 8u);
  EXPECT_GE(buffers["validation"].size(), 4u);
}

/// Spark's one feeder brings the rows of both feeds mixed; the program reads one feed after the
/// other. Under `none` the feed that is not read yet must not stop the one that is.
TEST_F(FeedMemoryTest, NoneKeepsRowsOnDiskWhileAReaderOfAnotherFeedWaits) {
  for (const Cache other : {Cache::kNone, Cache::kAuto}) {
    ServiceOptions options = Options(other, 4);
    options.feeds["validation"] = {testing::OneColumn(), Cache::kNone};
    TestNode node(std::move(options));
    auto train = node.Open("train");
    EXPECT_EQ(node.Ask(*train, 0), nullptr);
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(node.Write("validation"));
    node.Acquire("validation", kPage);
    EXPECT_EQ(node.Answer(), nullptr) << "its own reader may come";
    node.service().OnTick(std::chrono::steady_clock::now() + FeedService::kStuckAfter);
    json grant = node.Answer();
    for (std::uint64_t i = 4; i < 12; ++i) {
      ASSERT_EQ(grant["op"], "segment") << i;
      node.Publish("validation", grant["buffer"], i * kRowsPerPage, 0, kRowsPerPage, true);
      if (i == 11) break;
      node.Acquire("validation", kPage);
      grant = node.Answer();
    }
    for (std::uint64_t i = 1; i <= 8; ++i) {
      ASSERT_TRUE(node.Write("train")) << i;
      const json segment = train->Receive();
      ASSERT_EQ(segment["op"], "segment");
      node.Release(*train, segment["segment"]);
      EXPECT_EQ(node.Ask(*train, i * kRowsPerPage), nullptr);
    }
    node.End("train");
    EXPECT_EQ(train->Receive()["op"], "end");
    node.End("validation");
    EXPECT_LE(node.feeder_bytes(), 4 * kPage);
    EXPECT_GT(node.service().Stats()["feeds"]["validation"]["spilled_segments"], 0);
    auto validation = node.Open("validation");
    EXPECT_EQ(ReadAll(node, *validation), 12 * kRowsPerPage);
  }
}

TEST_F(FeedMemoryTest, OpenSegmentsThatFillTheBudgetAreAnErrorAndNoHang) {
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

TEST_F(FeedMemoryTest, DiskThatTakesNothingIsAnErrorForTheWriterWithThePath) {
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

TEST_F(FeedMemoryTest, WriterWithoutDiskIsRefusedEvenIfReadersHoldEverything) {
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

}  // namespace
}  // namespace arcflow::feed
