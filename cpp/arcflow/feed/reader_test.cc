// SPDX-License-Identifier: Apache-2.0
// Tests of Reader against a fake agent: batches, ends, leases, cancellation, seeking, and an agent
// that lies.
#include "arcflow/feed/reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/feed/fake_agent_testing.h"
#include "arcflow/feed/rows_testing.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {
namespace {

using namespace testing;  // NOLINT: rows_testing.h, fake_agent_testing.h
using columnar::Schema;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Deadline Soon() { return Deadline::AfterSeconds(20); }

/// An agent, a writer of 72-byte rows in segments of 64 rows, and readers.
struct Node {
  explicit Node(const Schema& s = Dense(), std::size_t max_leases = 1000,
                std::size_t segment_bytes = 72 * 100)
      : schema(s), agent(s, max_leases), writer({"train", s, segment_bytes}, agent) {}

  void Write(std::size_t rows) {
    const bool dense = schema == Dense();
    const auto batch = dense ? DenseBatch(written, rows) : EveryTypeBatch(written, rows);
    const Status status = writer.Append(batch->type, batch->array, Soon());
    EXPECT_TRUE(status.ok()) << status.ToString();
    written += rows;
  }
  void End() {
    EXPECT_TRUE(writer.Finish().ok());
    agent.End();
  }
  std::unique_ptr<Reader> Open(std::size_t batch, Remainder remainder = Remainder::kPad,
                               std::shared_ptr<CounterPage> counters = nullptr) {
    auto reader =
        Reader::Open(agent.broker_fd(), {"train", batch, remainder, std::move(counters)}, Soon());
    EXPECT_TRUE(reader.ok()) << reader.status().ToString();
    return std::move(*reader);
  }
  ~Node() {
    if (!lies) {
      EXPECT_THAT(agent.complaints(), IsEmpty());
    }
  }

  Schema schema;
  FakeAgent agent;
  Writer writer;
  std::uint64_t written = 0;
  bool lies = false;  // the agent: it may then get answers that it did not expect
};

Batch MustNext(Reader& reader) {
  Result<std::optional<Batch>> batch = reader.Next(Soon());
  EXPECT_TRUE(batch.ok()) << batch.status().ToString();
  if (!batch.ok() || !*batch) {
    ADD_FAILURE() << "no batch at step " << reader.position();
    return {};
  }
  return std::move(**batch);
}

void ExpectEnd(Reader& reader) {
  Result<std::optional<Batch>> batch = reader.Next(Soon());
  ASSERT_TRUE(batch.ok()) << batch.status().ToString();
  EXPECT_FALSE(batch->has_value());
}

void ExpectError(Reader& reader, Code code, const std::string& part) {
  Result<std::optional<Batch>> batch = reader.Next(Soon());
  ASSERT_FALSE(batch.ok());
  EXPECT_EQ(batch.status().code(), code) << batch.status().ToString();
  EXPECT_THAT(std::string(batch.status().message()), HasSubstr(part));
}

/// Waits until `condition`, which another thread makes true.
template <typename F>
void Eventually(F condition) {
  const Deadline deadline = Soon();
  while (!condition()) {
    ASSERT_FALSE(deadline.expired()) << "waited in vain";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(ReaderTest, UnknownFeedIsNotFound) {
  FakeAgent agent(Dense());
  const auto sut = Reader::Open(agent.broker_fd(), {"test", 8, Remainder::kPad, nullptr}, Soon());
  ASSERT_FALSE(sut.ok());
  EXPECT_EQ(sut.status().code(), Code::kNotFound);
  EXPECT_THAT(std::string(sut.status().message()), HasSubstr("there is: train"));
}

TEST(ReaderTest, BatchSizeZeroIsRefused) {
  FakeAgent agent(Dense());
  EXPECT_EQ(Reader::Open(agent.broker_fd(), {"train", 0, Remainder::kPad, nullptr}, Soon())
                .status()
                .code(),
            Code::kInvalidArgument);
}

TEST(ReaderTest, DeadAgentIsUnavailable) {
  FakeAgent agent(Dense());
  agent.Die();
  EXPECT_EQ(Reader::Open(agent.broker_fd(), {"train", 8, Remainder::kPad, nullptr}, Soon())
                .status()
                .code(),
            Code::kUnavailable);
}

TEST(ReaderTest, BatchesOfEveryTypeComeBack) {
  Node node(EveryType(), 1000, 1 << 15);
  node.Write(500);
  node.Write(300);
  node.End();
  auto sut = node.Open(37);
  EXPECT_EQ(sut->schema(), EveryType());
  for (std::uint64_t row = 0; row < 800; row += 37) {
    const Batch batch = MustNext(*sut);
    EXPECT_EQ(batch.step, row / 37);
    EXPECT_EQ(batch.rows(), 37u);
    EXPECT_EQ(Compare(batch, EveryType(), row), "") << "row " << row;
  }
  ExpectEnd(*sut);
  ExpectEnd(*sut);
  EXPECT_EQ(sut->position(), 22u);
}

TEST(ReaderTest, ABatchWithinASegmentIsOneAlignedPiece) {
  Node node;
  node.Write(200);
  node.End();
  auto sut = node.Open(32);
  for (int i = 0; i < 6; ++i) {
    const Batch batch = MustNext(*sut);
    ASSERT_EQ(batch.pieces.size(), 1u);
    const auto x = DenseView(batch, 0);
    const auto y = DenseView(batch, 1);
    EXPECT_EQ(x.size(), 32 * 64u);
    EXPECT_EQ(y.size(), 32 * 8u);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.data()) % 64, 0u);
    EXPECT_TRUE(DenseView(batch, 2).empty());
  }
}

TEST(ReaderTest, ABatchAcrossSegmentsHasSeveralPiecesAndNoView) {
  Node node;
  node.Write(300);
  node.End();
  auto sut = node.Open(150);
  const Batch batch = MustNext(*sut);
  EXPECT_EQ(batch.pieces.size(), 3u);
  EXPECT_EQ(batch.real_rows(), 150u);
  EXPECT_TRUE(DenseView(batch, 0).empty());
  EXPECT_EQ(Compare(batch, Dense(), 0), "");
  EXPECT_EQ(Compare(MustNext(*sut), Dense(), 150), "");
  ExpectEnd(*sut);
}

TEST(ReaderTest, MisalignedRowsHaveNoView) {
  Node node;
  node.Write(64);
  node.End();
  auto sut = node.Open(3);
  MustNext(*sut);
  const Batch batch = MustNext(*sut);
  EXPECT_FALSE(DenseView(batch, 0).empty());  // 3 rows of 64 bytes
  EXPECT_TRUE(DenseView(batch, 1).empty());   // 3 rows of 8 bytes
}

TEST(ReaderTest, RowsBecomeVisibleWhileTheSegmentIsOpen) {
  Node node;
  node.Write(10);
  auto sut = node.Open(10);
  EXPECT_EQ(Compare(MustNext(*sut), Dense(), 0), "");
  const auto waiting = sut->Next(Deadline::AfterSeconds(0.05));
  ASSERT_FALSE(waiting.ok());
  EXPECT_EQ(waiting.status().code(), Code::kDeadlineExceeded);
  node.Write(5);
  EXPECT_EQ(sut->Next(Deadline::AfterSeconds(0.05)).status().code(), Code::kDeadlineExceeded);
  node.Write(7);
  EXPECT_EQ(Compare(MustNext(*sut), Dense(), 10), "");
  EXPECT_EQ(node.agent.segments().size(), 1u);
  node.End();
  const Batch last = MustNext(*sut);
  EXPECT_EQ(last.real_rows(), 2u);
  EXPECT_EQ(last.padding, 8u);
  EXPECT_EQ(Compare(last, Dense(), 20), "");
  ExpectEnd(*sut);
}

TEST(ReaderTest, ACopyOfAnOpenSegmentIsReplacedWhenItGrows) {
  Node node;
  node.agent.LendCopies(true);
  auto sut = node.Open(10);
  std::vector<Batch> kept;
  for (std::uint64_t row = 0; row < 200; row += 10) {
    node.Write(10);
    kept.push_back(MustNext(*sut));
  }
  for (std::size_t i = 0; i < kept.size(); ++i) EXPECT_EQ(Compare(kept[i], Dense(), i * 10), "");
  node.End();
  ExpectEnd(*sut);
  EXPECT_EQ(node.agent.leases(), 4);
  kept.clear();
  Eventually([&] { return node.agent.leases() == 0; });
}

TEST(ReaderTest, EmptyFeedEndsAtOnce) {
  for (Remainder r : {Remainder::kPad, Remainder::kDrop, Remainder::kRefuse, Remainder::kPartial}) {
    Node node;
    node.End();
    auto sut = node.Open(8, r);
    ExpectEnd(*sut);
    EXPECT_EQ(sut->position(), 0u);
  }
}

TEST(ReaderTest, TheNextSegmentIsAskedForBeforeItIsNeeded) {
  Node node;
  node.Write(64 * 4);
  node.End();
  auto sut = node.Open(32);
  MustNext(*sut);
  Eventually([&] { return node.agent.gets() == 2; });  // one answered, one ahead
  Eventually([&] { return node.agent.leases() == 2; });
  MustNext(*sut);
  MustNext(*sut);
  Eventually([&] { return node.agent.gets() == 3; });
}

TEST(ReaderTest, PadMakesAsManyStepsAsTheLongestRank) {
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

TEST(ReaderTest, PadWithFullBatchesNeverWaitsForOthers) {
  Node node;
  node.Write(40);
  node.agent.SetOthers({{0, false}});
  auto sut = node.Open(10);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(MustNext(*sut).padding, 0u);
}

TEST(ReaderTest, PadOfStringsAndOthersRepeatsTheLastRow) {
  Node node(EveryType(), 1000, 1 << 15);
  node.Write(5);
  node.End();
  auto sut = node.Open(8);
  const Batch batch = MustNext(*sut);
  EXPECT_EQ(batch.padding, 3u);
  EXPECT_EQ(Compare(batch, EveryType(), 0), "");
}

TEST(ReaderTest, DropMakesAsManyFullBatchesAsTheShortestRank) {
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

TEST(ReaderTest, DropWaitsForTheRankBehind) {
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

TEST(ReaderTest, RefuseFailsWhenRanksDiffer) {
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

TEST(ReaderTest, RefuseHandsOutAShortLastBatchWhenRanksAgree) {
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

TEST(ReaderTest, PartialLooksAtOwnRowsOnly) {
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

TEST(ReaderTest, SegmentsAreReleasedOnceTheLastTensorIsGone) {
  Node node;
  node.Write(64 * 5);
  node.End();
  auto sut = node.Open(64);
  std::optional<Batch> kept = MustNext(*sut);
  for (int i = 1; i < 5; ++i) MustNext(*sut);
  ExpectEnd(*sut);
  Eventually([&] { return node.agent.leases() == 1; });
  EXPECT_EQ(node.agent.segments()[0].leases, 1);
  EXPECT_EQ(Compare(*kept, Dense(), 0), "");
  kept.reset();
  Eventually([&] { return node.agent.leases() == 0; });
}

TEST(ReaderTest, TensorsOutliveTheReader) {
  Node node;
  node.Write(64);
  node.End();
  auto sut = node.Open(32);
  std::optional<Batch> kept = MustNext(*sut);
  sut.reset();
  Eventually([&] { return node.agent.stats().size() == 1; });
  EXPECT_EQ(node.agent.stats()[0]["complete"], false);
  EXPECT_EQ(node.agent.sessions(), 1u);  // its lease still counts
  EXPECT_EQ(node.agent.leases(), 1);
  EXPECT_EQ(Compare(*kept, Dense(), 0), "");
  kept.reset();
  Eventually([&] { return node.agent.sessions() == 0; });
  EXPECT_EQ(node.agent.leases(), 0);
}

TEST(ReaderTest, TensorsOutliveTheAgent) {
  Node node;
  node.Write(64);
  auto sut = node.Open(32);
  const Batch kept = MustNext(*sut);
  node.agent.Die();
  EXPECT_EQ(Compare(kept, Dense(), 0), "");
  MustNext(*sut);
  ExpectError(*sut, Code::kUnavailable, "agent");
}

TEST(ReaderTest, AHoardingConsumerIsToldToCopy) {
  Node node(Dense(), /*max_leases=*/2);
  node.Write(64 * 6);
  node.End();
  auto sut = node.Open(64);
  std::vector<Batch> hoard;
  std::vector<bool> views;
  for (int i = 0; i < 6; ++i) {
    Batch batch = MustNext(*sut);
    views.push_back(!DenseView(batch, 0).empty());
    EXPECT_EQ(Compare(batch, Dense(), static_cast<std::uint64_t>(i) * 64), "");
    if (views.back()) hoard.push_back(std::move(batch));
  }
  // Two are kept beyond the one being read; from then on there is no view, and the segment is let
  // go.
  EXPECT_THAT(views, ElementsAre(true, true, false, false, false, false));
  Eventually([&] { return node.agent.leases() <= 4; });
  hoard.clear();
}

TEST(ReaderTest, AWriterNeverStarvesBehindAHoardingConsumer) {
  Node node(Dense(), /*max_leases=*/2);
  node.agent.SetMaxBuffers(5);
  auto sut = node.Open(64);
  std::thread producer([&] {
    for (int i = 0; i < 100; ++i) node.Write(64);
    node.End();
  });
  std::vector<Batch> hoard;
  for (std::uint64_t i = 0; i < 100; ++i) {
    Batch batch = MustNext(*sut);
    EXPECT_EQ(Compare(batch, Dense(), i * 64), "");
    if (!DenseView(batch, 0).empty()) hoard.push_back(std::move(batch));
  }
  producer.join();
  ExpectEnd(*sut);
  EXPECT_LE(node.agent.buffers(), 5u);
  for (const Batch& b : hoard) EXPECT_EQ(Compare(b, Dense(), b.step * 64), "");
}

TEST(ReaderTest, RecycledMemoryIsReadThroughTheSameMapping) {
  Node node;
  node.agent.SetMaxBuffers(3);
  auto sut = node.Open(32);
  std::thread producer([&] {
    for (int i = 0; i < 50; ++i) node.Write(61);
    node.End();
  });
  const std::size_t steps = (50 * 61 + 31) / 32;
  std::set<const std::byte*> addresses;
  for (std::uint64_t i = 0; i < steps; ++i) {
    const Batch batch = MustNext(*sut);
    EXPECT_EQ(Compare(batch, Dense(), i * 32), "") << i;
    addresses.insert(batch.pieces[0].segment->Dense(0, 0, 1).data());
  }
  producer.join();
  ExpectEnd(*sut);
  EXPECT_LE(addresses.size(), 3u);
}

TEST(ReaderTest, TwoReadersSeeEveryRow) {
  Node node(EveryType(), 1000, 1 << 15);
  auto first = node.Open(16);
  auto second = node.Open(33);
  std::thread producer([&] {
    for (int i = 0; i < 20; ++i) node.Write(50);
    node.End();
  });
  std::thread other([&] {
    for (std::uint64_t row = 0; row < 1000; row += 33)
      EXPECT_EQ(Compare(MustNext(*second), EveryType(), row), "");
    ExpectEnd(*second);
  });
  for (std::uint64_t row = 0; row < 1000; row += 16)
    EXPECT_EQ(Compare(MustNext(*first), EveryType(), row), "");
  ExpectEnd(*first);
  producer.join();
  other.join();
}

TEST(ReaderTest, SeekGoesAnywhereAndStartsANewPass) {
  Node node;
  node.Write(640);
  node.End();
  auto sut = node.Open(10);
  ASSERT_TRUE(sut->Seek(30).ok());
  EXPECT_EQ(Compare(MustNext(*sut), Dense(), 300), "");
  EXPECT_EQ(sut->position(), 31u);
  ASSERT_TRUE(sut->Seek(2).ok());
  EXPECT_EQ(Compare(MustNext(*sut), Dense(), 20), "");
  ASSERT_TRUE(sut->Seek(63).ok());
  EXPECT_EQ(Compare(MustNext(*sut), Dense(), 630), "");
  ExpectEnd(*sut);
  ASSERT_TRUE(sut->Seek(0).ok());
  for (std::uint64_t i = 0; i < 64; ++i) EXPECT_EQ(Compare(MustNext(*sut), Dense(), i * 10), "");
  ExpectEnd(*sut);
  ASSERT_TRUE(sut->Seek(1000).ok());
  ExpectEnd(*sut);
  EXPECT_EQ(sut->Seek(~std::uint64_t{0}).code(), Code::kOutOfRange);
  sut.reset();
  Eventually([&] { return node.agent.sessions() == 0; });
  EXPECT_EQ(node.agent.leases(), 0);
}

TEST(ReaderTest, SeekWhileAQuestionIsOpenDoesNotMixAnswers) {
  Node node;
  node.Write(20);
  auto sut = node.Open(10);
  MustNext(*sut);
  MustNext(*sut);
  EXPECT_EQ(sut->Next(Deadline::AfterSeconds(0.02)).status().code(), Code::kDeadlineExceeded);
  ASSERT_TRUE(sut->Seek(1).ok());
  node.Write(100);
  node.End();
  for (std::uint64_t i = 1; i < 12; ++i) EXPECT_EQ(Compare(MustNext(*sut), Dense(), i * 10), "");
  ExpectEnd(*sut);
}

TEST(ReaderTest, ALaterReaderFindsTheSegmentsMapped) {
  Node node;
  node.Write(64 * 3);
  node.End();
  std::vector<std::vector<const std::byte*>> seen;
  for (int epoch = 0; epoch < 3; ++epoch) {
    auto sut = node.Open(64);
    seen.emplace_back();
    for (int i = 0; i < 3; ++i) seen.back().push_back(DenseView(MustNext(*sut), 0).data());
    ExpectEnd(*sut);
  }
  EXPECT_EQ(seen[1], seen[0]);
  EXPECT_EQ(seen[2], seen[0]);
}

TEST(ReaderTest, AnotherAgentsMemoryIsNotMistakenForAnEarlierOnes) {
  for (std::uint64_t first : {0, 64, 128}) {
    Node node;
    node.written = first;
    node.Write(64);
    node.End();
    auto sut = node.Open(64);
    EXPECT_EQ(Compare(MustNext(*sut), Dense(), first), "");
    ExpectEnd(*sut);
  }
}

TEST(ReaderTest, TensorsOfBeforeASeekStayValid) {
  Node node;
  node.Write(64 * 3);
  node.End();
  auto sut = node.Open(64);
  const Batch a = MustNext(*sut);
  const Batch b = MustNext(*sut);
  ASSERT_TRUE(sut->Seek(0).ok());
  const Batch again = MustNext(*sut);
  EXPECT_EQ(Compare(a, Dense(), 0), "");
  EXPECT_EQ(Compare(b, Dense(), 64), "");
  EXPECT_EQ(DenseView(again, 0).data(), DenseView(a, 0).data());  // not mapped twice
}

TEST(ReaderTest, CancelWakesABlockedNext) {
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

TEST(ReaderTest, AgentDyingWakesABlockedNext) {
  Node node;
  auto sut = node.Open(8);
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    node.agent.Die();
  });
  ExpectError(*sut, Code::kUnavailable, "agent");
  killer.join();
}

TEST(ReaderTest, TheFeedsFailureReachesTheReader) {
  Node node;
  auto sut = node.Open(8);
  node.agent.FailReaders(Status(Code::kAborted, "the feeder raised ValueError"));
  ExpectError(*sut, Code::kAborted, "ValueError");
}

TEST(ReaderTest, RowsThatWereDroppedAreAnError) {
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

TEST(ReaderTest, CountersTellWhatHappened) {
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

TEST(ReaderTest, AnAgentThatLiesIsCaught) {
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
  expect(with("rows", 65), "65 rows published, capacity is 64");
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
