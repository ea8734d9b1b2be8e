// SPDX-License-Identifier: Apache-2.0
// Tests of Reader when things go wrong: refusals, cancellation, death and lies of the agent; and
// what is counted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <string>
#include <thread>

#include "arcflow/feed/reader.h"
#include "arcflow/feed/reader_testing.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {
namespace {

using namespace testing;  // NOLINT: reader_testing.h
using columnar::Schema;
using ::testing::HasSubstr;

TEST(ReaderTroubleTest, UnknownFeedIsNotFound) {
  FakeAgent agent(Dense());
  const auto sut = Reader::Open(agent.broker_fd(), {"test", 8, Remainder::kPad, nullptr}, Soon());
  ASSERT_FALSE(sut.ok());
  EXPECT_EQ(sut.status().code(), Code::kNotFound);
  EXPECT_THAT(std::string(sut.status().message()), HasSubstr("there is: train"));
}

TEST(ReaderTroubleTest, BatchSizeZeroIsRefused) {
  FakeAgent agent(Dense());
  EXPECT_EQ(Reader::Open(agent.broker_fd(), {"train", 0, Remainder::kPad, nullptr}, Soon())
                .status()
                .code(),
            Code::kInvalidArgument);
}

TEST(ReaderTroubleTest, DeadAgentIsUnavailable) {
  FakeAgent agent(Dense());
  agent.Die();
  EXPECT_EQ(Reader::Open(agent.broker_fd(), {"train", 8, Remainder::kPad, nullptr}, Soon())
                .status()
                .code(),
            Code::kUnavailable);
}

TEST(ReaderTroubleTest, CancelWakesABlockedNext) {
  Node node;
  auto sut = node.Open(8);
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    sut->Cancel();
  });
  ExpectError(*sut, Code::kCancelled, "cancelled");
  canceller.join();
  node.Write(8);
  ExpectError(*sut, Code::kCancelled, "cancelled");
}

TEST(ReaderTroubleTest, AgentDyingWakesABlockedNext) {
  Node node;
  auto sut = node.Open(8);
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    node.agent.Die();
  });
  ExpectError(*sut, Code::kUnavailable, "agent");
  killer.join();
}

TEST(ReaderTroubleTest, TheFeedsFailureReachesTheReader) {
  Node node;
  auto sut = node.Open(8);
  node.agent.FailReaders(Status(Code::kAborted, "the feeder raised ValueError"));
  ExpectError(*sut, Code::kAborted, "ValueError");
}

TEST(ReaderTroubleTest, RowsThatWereDroppedAreAnError) {
  Node node;
  node.agent.SetMaxBuffers(2);
  auto sut = node.Open(64);
  node.Write(64);
  node.Write(64);
  MustNext(*sut);
  MustNext(*sut);
  std::thread producer([&] { node.Write(64 * 2); });
  MustNext(*sut);
  producer.join();
  ASSERT_TRUE(sut->Seek(0).ok());
  ExpectError(*sut, Code::kFailedPrecondition, "dropped");
}

TEST(ReaderTroubleTest, CountersTellWhatHappened) {
  auto page = CounterPage::Create();
  ASSERT_TRUE(page.ok());
  Node node;
  node.Write(100);
  node.End();
  auto sut = node.Open(30, Remainder::kPad, *page);
  for (int i = 0; i < 4; ++i) {
    MustNext(*sut);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  ExpectEnd(*sut);
  const CounterPageLayout& c = (*page)->counters();
  EXPECT_EQ(c.steps, 4u);
  EXPECT_EQ(c.rows_used, 100u);
  EXPECT_EQ(c.rows_padded, 20u);
  EXPECT_EQ(c.bytes_used, 120 * 72u);
  EXPECT_EQ(c.epochs, 1u);
  EXPECT_GE(c.compute_ns, 8'000'000u);
  EXPECT_GT(c.wait_ns, 0u);
  EXPECT_GE(c.batches_copied, 2u);  // one across segments, one padded
  EXPECT_GE(c.heartbeat, 5u);
}

TEST(ReaderTroubleTest, AnAgentThatLiesIsCaught) {
  using Json = nlohmann::json;
  const Json good{{"op", "segment"}, {"segment", 0}, {"first_row", 0}, {"rows", 10},
                  {"closed", false}, {"buffer", 1},  {"bytes", 8192}};
  const auto expect = [](const Json& packet, const std::string& part) {
    Node node;
    node.lies = true;
    node.Write(10);
    auto sut = node.Open(10);
    node.agent.AnswerNextGetWith(packet);
    Result<std::optional<Batch>> batch = sut->Next(Soon());
    ASSERT_FALSE(batch.ok()) << packet.dump();
    EXPECT_TRUE(batch.status().code() == Code::kDataLoss ||
                batch.status().code() == Code::kInvalidArgument)
        << batch.status().ToString();
    EXPECT_THAT(std::string(batch.status().message()), HasSubstr(part));
  };
  const auto with = [&](const char* key, const Json& value) {
    Json packet = good;
    packet[key] = value;
    return packet;
  };
  expect(with("buffer", 99), "without handing it over");
  expect(with("bytes", 1 << 20), "");
  expect(with("rows", 65), "65 rows published, 0 skipped, capacity is 64");
  expect(with("first_row", 5), "asked for row 0, got rows 5");
  expect(with("rows", 0), "");
  expect(with("rows", -1), "no valid 'rows'");
  expect(with("rows", 1e30), "no valid 'rows'");
  expect(with("closed", "yes"), "no valid 'closed'");
  expect(with("segment", nullptr), "no valid 'segment'");
  expect({{"op", "plan"}, {"steps", 1}, {"final", true}}, "unexpected packet 'plan'");
  expect({{"op", "end"}, {"rows", 7}}, "ended at row 7");
}

}  // namespace
}  // namespace arcflow::feed
