// SPDX-License-Identifier: Apache-2.0
// Tests of Reader against a fake agent: batches, growth, leases, recycling, several passes.
#include "arcflow/feed/reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/feed/reader_testing.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {
namespace {

using namespace testing;  // NOLINT: reader_testing.h
using ::testing::ElementsAre;

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

}  // namespace
}  // namespace arcflow::feed
