// SPDX-License-Identifier: Apache-2.0
// Tests of shuffled passes of a Reader: every row once, the same order by seed, whatever the
// segments; positions, padding, and what waits for the end of the feed.
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "arcflow/feed/reader_testing.h"
#include "arcflow/feed/row_shuffle.h"

namespace arcflow::feed {
namespace {

using namespace testing;  // NOLINT: the fixtures of reader_testing.h
using std::chrono::milliseconds;

std::unique_ptr<Reader> OpenShuffled(Node& node, std::size_t batch, std::uint64_t seed,
                                     Remainder remainder = Remainder::kPartial) {
  ReaderOptions options{"train", batch, remainder, nullptr};
  options.shuffle_seed = seed;
  auto reader = Reader::Open(node.agent.broker_fd(), std::move(options), Soon());
  EXPECT_TRUE(reader.ok()) << reader.status().ToString();
  return std::move(*reader);
}

/// The row that place `i` of a batch of Dense() holds, by its label and its sixteen floats.
std::vector<std::uint64_t> RowsOf(const Batch& batch, std::uint64_t written) {
  std::vector<std::int64_t> labels(batch.rows());
  std::vector<float> floats(batch.rows() * 16);
  EXPECT_TRUE(CopyColumn(batch, Dense(), 1, std::as_writable_bytes(std::span(labels))).ok());
  EXPECT_TRUE(CopyColumn(batch, Dense(), 0, std::as_writable_bytes(std::span(floats))).ok());
  std::vector<std::uint64_t> rows;
  for (std::size_t i = 0; i < batch.real_rows(); ++i) {
    // Values repeat after 101 rows: any of those rows may be meant, and the caller knows which.
    EXPECT_LT(labels[i], 101);
    std::uint64_t row = 0;
    while (row < written && Value(row, 0) != labels[i]) ++row;
    EXPECT_EQ(std::memcmp(&floats[i * 16], Values<float>(row, 1, 16).data(), 64), 0) << i;
    rows.push_back(row);
  }
  return rows;
}

std::vector<std::uint64_t> Pass(Reader& reader, std::uint64_t written) {
  std::vector<std::uint64_t> out;
  for (;;) {
    Result<std::optional<Batch>> batch = reader.Next(Soon());
    EXPECT_TRUE(batch.ok()) << batch.status().ToString();
    if (!batch.ok() || !*batch) return out;
    for (const std::uint64_t row : RowsOf(**batch, written)) out.push_back(row);
  }
}

std::vector<std::uint64_t> Expected(std::uint64_t n, std::uint64_t seed, std::uint64_t epoch) {
  const RowShuffle order(n, seed, epoch, 0);
  std::vector<std::uint64_t> out;
  for (std::uint64_t i = 0; i < n; ++i) out.push_back(order(i) % 101);
  return out;
}

TEST(ReaderShuffleTest, EveryRowComesOnceInTheOrderOfTheSeedWhateverTheSegments) {
  for (const std::size_t segment_bytes : {72 * 20, 72 * 100, 72 * 5000}) {
    Node node(Dense(), 1000, segment_bytes);
    node.Write(700);
    node.Write(301);
    node.End();
    auto sut = OpenShuffled(node, 32, 5);
    EXPECT_EQ(Pass(*sut, 101), Expected(1001, 5, 0));
    ExpectEnd(*sut);
  }
}

TEST(ReaderShuffleTest, EpochsAndSeedsHaveTheirOwnOrderAndPositionsAreExact) {
  Node node;
  node.Write(1000);
  node.End();
  auto sut = OpenShuffled(node, 64, 9);
  EXPECT_EQ(Pass(*sut, 101), Expected(1000, 9, 0));
  ASSERT_TRUE(sut->Seek(0, 1).ok());
  const auto second = Pass(*sut, 101);
  EXPECT_EQ(second, Expected(1000, 9, 1));
  ASSERT_TRUE(sut->Seek(7, 1).ok());
  EXPECT_EQ(sut->position(), 7u);
  const auto rest = Pass(*sut, 101);
  EXPECT_EQ(rest, std::vector<std::uint64_t>(second.begin() + 7 * 64, second.end()));
  auto fresh = OpenShuffled(node, 64, 9);
  ASSERT_TRUE(fresh->Seek(15, 1).ok());  // the last, short one
  EXPECT_EQ(Pass(*fresh, 101), std::vector<std::uint64_t>(second.begin() + 15 * 64, second.end()));
  ASSERT_TRUE(fresh->Seek(99, 1).ok());
  ExpectEnd(*fresh);
}

TEST(ReaderShuffleTest, TheFirstBatchWaitsForTheEndOfTheFeedAndHoldsNothingMeanwhile) {
  Node node;
  node.Write(500);
  auto sut = OpenShuffled(node, 64, 1);
  const auto early = sut->Next(Deadline::After(milliseconds(50)));
  ASSERT_FALSE(early.ok());
  EXPECT_EQ(early.status().code(), Code::kDeadlineExceeded);
  EXPECT_EQ(node.agent.leases(), 0);
  node.Write(100);
  node.End();
  EXPECT_EQ(Pass(*sut, 101), Expected(600, 1, 0));
  Eventually([&] { return node.agent.leases() == 0; });
}

TEST(ReaderShuffleTest, CancelEndsTheWait) {
  Node node;
  node.Write(10);
  auto sut = OpenShuffled(node, 4, 1);
  std::thread other([&] {
    std::this_thread::sleep_for(milliseconds(20));
    sut->Cancel();
  });
  ExpectError(*sut, Code::kCancelled, "cancelled");
  other.join();
}

TEST(ReaderShuffleTest, PadAndDropKeepRanksInStep) {
  Node node;
  node.agent.SetOthers({{200, true}});
  node.Write(130);
  node.End();
  auto padded = OpenShuffled(node, 64, 3, Remainder::kPad);
  std::size_t real = 0;
  std::size_t padding = 0;
  for (int step = 0; step < 4; ++step) {  // the other has 200 rows
    const Batch batch = MustNext(*padded);
    EXPECT_EQ(batch.rows(), 64u);
    real += batch.real_rows();
    padding += batch.padding;
    if (batch.real_rows() > 0 && batch.padding > 0) {
      std::vector<std::int64_t> labels(64);
      ASSERT_TRUE(CopyColumn(batch, Dense(), 1, std::as_writable_bytes(std::span(labels))).ok());
      EXPECT_EQ(labels.back(), labels[batch.real_rows() - 1]);
    }
  }
  ExpectEnd(*padded);
  EXPECT_EQ(real, 130u);
  EXPECT_EQ(padding, 4 * 64 - 130u);
  auto dropped = OpenShuffled(node, 64, 3, Remainder::kDrop);
  EXPECT_EQ(Pass(*dropped, 101).size(), 128u);
}

TEST(ReaderShuffleTest, WhatIsTakenAheadCountsWhenItIsHandedOut) {
  auto page = CounterPage::Create();
  ASSERT_TRUE(page.ok());
  Node node;
  node.Write(25);
  node.End();
  ReaderOptions options{"train", 10, Remainder::kPartial, *page};
  options.shuffle_seed = 5;
  auto opened = Reader::Open(node.agent.broker_fd(), std::move(options), Soon());
  ASSERT_TRUE(opened.ok());
  Reader& sut = **opened;
  std::vector<Batch> batches;
  std::thread ahead([&] {  // while the other thread hands out
    for (;;) {
      auto batch = sut.Take(Soon());
      ASSERT_TRUE(batch.ok());
      if (!*batch) return;
      batches.push_back(*std::move(*batch));
    }
  });
  ahead.join();
  ASSERT_EQ(batches.size(), 3u);
  const CounterPageLayout& c = (*page)->counters();
  EXPECT_EQ(c.steps, 0u);
  EXPECT_EQ(c.epochs, 0u);
  EXPECT_TRUE(node.agent.stats().empty());
  sut.HandOut(&batches[0], milliseconds(3));
  EXPECT_EQ(c.steps, 1u);
  EXPECT_EQ(c.rows_used, 10u);
  EXPECT_EQ(c.wait_ns, 3'000'000u);
  std::this_thread::sleep_for(milliseconds(5));
  sut.HandOut(&batches[1], milliseconds(1));
  EXPECT_GE(c.compute_ns, 4'000'000u);
  sut.HandOut(&batches[2], milliseconds(0));
  EXPECT_EQ(c.epochs, 0u);
  sut.HandOut(nullptr, milliseconds(0));
  EXPECT_EQ(c.epochs, 1u);
  Eventually([&] { return node.agent.stats().size() == 1; });
  EXPECT_EQ(node.agent.stats()[0]["used"], 25);
  EXPECT_EQ(node.agent.stats()[0]["steps"], 3);
  EXPECT_EQ(node.agent.stats()[0]["complete"], true);
}

TEST(ReaderShuffleTest, WhatIsTakenAndNeverHandedOutIsNotUsed) {
  Node node;
  node.Write(25);
  node.End();
  {
    auto sut = OpenShuffled(node, 10, 5);
    const auto first = sut->Take(Soon());
    ASSERT_TRUE(first.ok() && *first);
    while (*sut->Take(Soon())) continue;
    sut->HandOut(&**first, milliseconds(0));
  }
  Eventually([&] { return node.agent.stats().size() == 1; });
  EXPECT_EQ(node.agent.stats()[0]["used"], 10);
  EXPECT_EQ(node.agent.stats()[0]["complete"], false);
}

TEST(ReaderShuffleTest, RowsOfEveryTypeStayWhole) {
  Node node(EveryType(), 1000, 1 << 14);
  node.Write(300);
  node.End();
  auto sut = OpenShuffled(node, 1, 11);
  const RowShuffle order(300, 11, 0, 0);
  for (std::uint64_t place = 0; place < 300; ++place) {
    EXPECT_EQ(Compare(MustNext(*sut), EveryType(), order(place)), "") << place;
  }
  ExpectEnd(*sut);
}

TEST(ReaderShuffleTest, AnEmptyFeedIsAnEmptyPass) {
  Node node;
  node.End();
  auto sut = OpenShuffled(node, 8, 1);
  ExpectEnd(*sut);
}

TEST(ReaderShuffleTest, BatchesOutliveTheReader) {
  Node node;
  node.Write(200);
  node.End();
  auto sut = OpenShuffled(node, 50, 2);
  const Batch batch = MustNext(*sut);
  sut.reset();
  EXPECT_EQ(RowsOf(batch, 101).size(), 50u);
}

}  // namespace
}  // namespace arcflow::feed
