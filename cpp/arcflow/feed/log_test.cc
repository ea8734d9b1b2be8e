// SPDX-License-Identifier: Apache-2.0
// Tests of FeedLog: finding rows, leases and orphaned buffers, victims to spill and to drop.
#include "arcflow/feed/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace arcflow::feed {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Holds = FeedLog::Holds;
using Where = FeedLog::Where;

constexpr std::size_t kBytes = 4096;
constexpr FeedLog::ReaderId kAnn = 1, kBob = 2;

/// A log of closed segments of `rows` rows each, in buffers 100, 101, ….
FeedLog Filled(int segments, std::uint64_t rows = 10) {
  FeedLog log;
  for (int i = 0; i < segments; ++i) {
    EXPECT_TRUE(log.Publish(100 + static_cast<std::uint64_t>(i), kBytes, rows, true).ok());
  }
  return log;
}

TEST(FeedLogTest, FindsEveryRowInItsSegment) {
  FeedLog sut = Filled(5);
  for (std::uint64_t row = 0; row < 50; ++row) {
    const FeedLog::Found found = sut.Find(row);
    ASSERT_EQ(found.where, Where::kHere);
    EXPECT_EQ(found.segment->number, row / 10);
    EXPECT_EQ(found.segment->first_row, row / 10 * 10);
    EXPECT_EQ(found.segment->buffer, 100 + row / 10);
  }
  EXPECT_EQ(sut.Find(50).where, Where::kBeyond);
  sut.End();
  EXPECT_EQ(sut.Find(50).where, Where::kEnd);
}

TEST(FeedLogTest, OpenSegmentGrowsUntilClosed) {
  FeedLog sut;
  EXPECT_TRUE(sut.Publish(7, kBytes, 3, false)->grew);
  EXPECT_FALSE(sut.Find(2).segment->closed);
  EXPECT_EQ(sut.Find(3).where, Where::kBeyond);
  EXPECT_FALSE(sut.Publish(7, kBytes, 3, false)->grew);
  const auto done = sut.Publish(7, kBytes, 8, true);
  EXPECT_TRUE(done->grew);
  EXPECT_EQ(done->number, 0u);
  EXPECT_TRUE(sut.Find(7).segment->closed);
  EXPECT_EQ(sut.rows(), 8u);
}

TEST(FeedLogTest, EndClosesTheOpenSegmentAndForbidsMore) {
  FeedLog sut;
  ASSERT_TRUE(sut.Publish(7, kBytes, 3, false).ok());
  EXPECT_EQ(sut.End(), 0u);
  EXPECT_EQ(sut.End(), std::nullopt);
  EXPECT_TRUE(sut.Find(0).segment->closed);
  EXPECT_EQ(sut.Publish(7, kBytes, 4, false).status().code(), Code::kInvalidArgument);
}

TEST(FeedLogTest, BadPublishesAreRefusedAndChangeNothing) {
  FeedLog sut;
  ASSERT_TRUE(sut.Publish(7, kBytes, 3, false).ok());
  EXPECT_EQ(sut.Publish(7, kBytes, 2, false).status().code(), Code::kInvalidArgument)
      << "backwards";
  EXPECT_EQ(sut.Publish(8, kBytes, 5, false).status().code(), Code::kInvalidArgument) << "two open";
  EXPECT_EQ(sut.Publish(7, kBytes, FeedLog::kMaxRows + 1, false).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(sut.rows(), 3u);
  EXPECT_EQ(sut.segments(), 1u);
}

TEST(FeedLogTest, SegmentWithoutRowsIsNone) {
  FeedLog sut;
  EXPECT_FALSE(sut.Publish(7, kBytes, 0, false)->unused);
  EXPECT_TRUE(sut.Publish(7, kBytes, 0, true)->unused);
  EXPECT_EQ(sut.segments(), 0u);
  ASSERT_TRUE(sut.Publish(8, kBytes, 1, true).ok());
  EXPECT_EQ(sut.Find(0).segment->number, 0u);
}

TEST(FeedLogTest, OldestClosedSegmentWithoutLeaseIsSpilled) {
  FeedLog sut = Filled(3);
  ASSERT_TRUE(sut.Publish(200, kBytes, 1, false).ok());
  sut.Lease(kAnn, 0, Holds::kSegment);
  EXPECT_EQ(sut.SpillVictim(), 1u);
  EXPECT_EQ(sut.MoveToFile(1, 900), 101u) << "the buffer is orphaned";
  EXPECT_EQ(sut.SpillVictim(), 2u);
  EXPECT_EQ(sut.MoveToFile(2, 901), 102u);
  EXPECT_EQ(sut.SpillVictim(), std::nullopt) << "leased and open ones stay";
  EXPECT_TRUE(sut.Find(15).segment->in_file);
  EXPECT_EQ(sut.Find(15).segment->buffer, 900u);
  EXPECT_EQ(sut.segments_in_file(), 2u);
}

TEST(FeedLogTest, BufferOfAMovedSegmentIsOrphanedByItsLastLease) {
  FeedLog sut = Filled(1);
  sut.Lease(kAnn, 0, Holds::kSegment);
  sut.Lease(kBob, 0, Holds::kSegment);
  EXPECT_EQ(sut.leased_bytes(), kBytes) << "two leases on one buffer count once";
  EXPECT_EQ(sut.MoveToFile(0, 900), std::nullopt) << "readers still see the old content";
  EXPECT_TRUE(sut.Leased(100));
  EXPECT_THAT(*sut.Release(kAnn, 0), IsEmpty());
  EXPECT_THAT(*sut.Release(kBob, 0), ElementsAre(100));
  EXPECT_EQ(sut.leased_bytes(), 0u);
}

TEST(FeedLogTest, LeaseOnAFileKeepsNoMemoryBusy) {
  FeedLog sut = Filled(1);
  ASSERT_EQ(sut.MoveToFile(0, 900), 100u);
  sut.Lease(kAnn, 0, Holds::kSegment);
  EXPECT_EQ(sut.leased_bytes(), 0u);
  EXPECT_THAT(*sut.Release(kAnn, 0), IsEmpty());
}

TEST(FeedLogTest, LeaseOnACopyDoesNotKeepTheSegmentInMemory) {
  FeedLog sut = Filled(1);
  sut.Lease(kAnn, 0, Holds::kCopy);
  EXPECT_EQ(sut.SpillVictim(), 0u);
  EXPECT_EQ(sut.MoveToFile(0, 900), 100u);
  EXPECT_THAT(*sut.Release(kAnn, 0), IsEmpty());
}

TEST(FeedLogTest, ReleaseOfWhatIsNotHeldIsRefused) {
  FeedLog sut = Filled(1);
  EXPECT_EQ(sut.Release(kAnn, 0).status().code(), Code::kInvalidArgument);
  sut.Lease(kAnn, 0, Holds::kSegment);
  EXPECT_EQ(sut.Release(kBob, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(sut.Release(kAnn, 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(sut.Release(kAnn, 0, 2).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(sut.Release(kAnn, 0, 0).status().code(), Code::kInvalidArgument);
  EXPECT_TRUE(sut.Release(kAnn, 0).ok());
  EXPECT_EQ(sut.Release(kAnn, 0).status().code(), Code::kInvalidArgument);
}

TEST(FeedLogTest, ReleaseThatCrossesANewAnswerKeepsTheLease) {
  FeedLog sut = Filled(1);
  sut.Lease(kAnn, 0, Holds::kSegment);
  sut.Lease(kAnn, 0,
            Holds::kSegment);  // answered again while the release of the first was on its way
  ASSERT_TRUE(sut.Release(kAnn, 0, 1).ok());
  EXPECT_TRUE(sut.Leased(100));
  ASSERT_TRUE(sut.Release(kAnn, 0, 1).ok());
  EXPECT_FALSE(sut.Leased(100));
}

TEST(FeedLogTest, DeadReaderGivesBackAllItsLeasesAndOnlyIts) {
  FeedLog sut = Filled(3);
  for (std::uint64_t i = 0; i < 3; ++i) sut.Lease(kAnn, i, Holds::kSegment);
  sut.Lease(kBob, 2, Holds::kSegment);
  for (std::uint64_t i = 0; i < 3; ++i) sut.MoveToFile(i, 900 + i);
  EXPECT_THAT(sut.ReleaseAll(kAnn), ElementsAre(100, 101));
  EXPECT_THAT(sut.ReleaseAll(kAnn), IsEmpty());
  EXPECT_THAT(sut.ReleaseAll(kBob), ElementsAre(102));
}

TEST(FeedLogTest, NothingIsDroppedThatNoReaderHasPassed) {
  FeedLog sut = Filled(3);
  EXPECT_EQ(sut.DropVictim(), std::nullopt);
  sut.Passed(9);
  EXPECT_EQ(sut.DropVictim(), std::nullopt) << "one row of segment 0 is left";
  sut.Passed(10);
  EXPECT_EQ(sut.DropVictim(), 0u);
  sut.Passed(5);
  EXPECT_EQ(sut.DropVictim(), 0u) << "the furthest reader counts";
  EXPECT_EQ(sut.Drop(0).buffer, 100u);
  EXPECT_EQ(sut.DropVictim(), std::nullopt);
  EXPECT_EQ(sut.Find(3).where, Where::kDropped);
  EXPECT_EQ(sut.Find(10).where, Where::kHere);
  EXPECT_EQ(sut.segments(), 2u);
}

TEST(FeedLogTest, LeasedSegmentIsSkippedAndLaterOnesAreDropped) {
  FeedLog sut = Filled(4);
  sut.Lease(kAnn, 0, Holds::kSegment);  // a reader that stands still
  sut.Passed(30);
  EXPECT_EQ(sut.DropVictim(), 1u);
  sut.Drop(1);
  EXPECT_EQ(sut.DropVictim(), 2u);
  sut.Drop(2);
  EXPECT_EQ(sut.Find(0).where, Where::kHere);
  EXPECT_EQ(sut.Find(15).where, Where::kDropped) << "a hole";
  EXPECT_EQ(sut.Find(35).where, Where::kHere);
  EXPECT_THAT(*sut.Release(kAnn, 0), IsEmpty()) << "the segment still lives in its buffer";
  EXPECT_EQ(sut.DropVictim(), 0u);
  sut.Drop(0);
  EXPECT_EQ(sut.Get(2), nullptr);
  EXPECT_EQ(sut.Get(3)->number, 3u);
}

TEST(FeedLogTest, HeldFileIsNotDropped) {
  FeedLog sut = Filled(2);
  sut.Lease(kAnn, 0, Holds::kSegment);
  sut.MoveToFile(0, 900);
  sut.Passed(10);
  EXPECT_EQ(sut.DropVictim(), std::nullopt);
  EXPECT_THAT(*sut.Release(kAnn, 0), ElementsAre(100)) << "the old memory comes back";
  EXPECT_EQ(sut.DropVictim(), 0u);
  EXPECT_TRUE(sut.Drop(0).in_file);
}

TEST(FeedLogTest, LeaseOnACopyOutlivesADroppedSegment) {
  FeedLog sut = Filled(2);
  sut.Lease(kAnn, 0, Holds::kCopy);
  sut.Passed(10);
  ASSERT_EQ(sut.DropVictim(), 0u);
  EXPECT_EQ(sut.Drop(0).buffer, 100u);
  EXPECT_EQ(sut.Get(0), nullptr);
  EXPECT_THAT(*sut.Release(kAnn, 0), IsEmpty());
}

TEST(FeedLogTest, DepthIsWhatNoReaderHasPassed) {
  FeedLog sut = Filled(4);
  EXPECT_EQ(sut.depth_bytes(), 4 * kBytes);
  sut.Passed(20);
  EXPECT_EQ(sut.depth_bytes(), 2 * kBytes);
  EXPECT_EQ(sut.total_bytes(), 4 * kBytes);
}

/// Random publishes, leases, moves, drops and releases against a plain model of "which buffers are
/// in use".
TEST(FeedLogTest, BuffersAreOrphanedExactlyOnceAndNeverWhileInUse) {
  std::mt19937 random(7);
  FeedLog sut;
  std::map<std::uint64_t, std::set<FeedLog::ReaderId>> leased;  // buffer → readers
  std::map<std::pair<FeedLog::ReaderId, std::uint64_t>, std::set<std::uint64_t>> held;
  std::set<std::uint64_t> home;  // buffers in which a segment lives
  std::set<std::uint64_t> orphans;
  std::uint64_t next = 1;
  const auto orphan = [&](std::uint64_t b) {
    ASSERT_TRUE(orphans.insert(b).second) << "orphaned twice";
    ASSERT_TRUE(leased[b].empty()) << "orphaned while leased";
    ASSERT_FALSE(home.contains(b)) << "orphaned while a segment lives there";
  };
  for (int i = 0; i < 20000; ++i) {
    const FeedLog::ReaderId reader = 1 + random() % 4;
    const std::uint64_t row = sut.rows() == 0 ? 0 : random() % sut.rows();
    switch (random() % 6) {
      case 0: {
        home.insert(next);
        ASSERT_TRUE(sut.Publish(next++, kBytes, 1 + random() % 5, true).ok());
        break;
      }
      case 1:
      case 2: {
        const auto found = sut.Find(row);
        if (found.where != Where::kHere) break;
        const Segment s = *found.segment;
        sut.Lease(reader, s.number, Holds::kSegment);
        auto& mine = held[{reader, s.number}];
        if (s.in_file) break;
        mine.insert(s.buffer);
        leased[s.buffer].insert(reader);
        break;
      }
      case 3: {
        if (held.empty()) break;
        auto it = std::next(held.begin(), static_cast<long>(random() % held.size()));
        for (const auto b : it->second) leased[b].erase(it->first.first);
        const auto freed = sut.Release(it->first.first, it->first.second);
        ASSERT_TRUE(freed.ok());
        held.erase(it);
        for (const auto b : *freed) orphan(b);
        break;
      }
      case 4: {
        const auto found = sut.Find(row);
        if (found.where != Where::kHere || found.segment->in_file) break;
        const std::uint64_t buffer = found.segment->buffer;
        home.erase(buffer);
        if (const auto freed = sut.MoveToFile(found.segment->number, next++)) orphan(*freed);
        break;
      }
      case 5: {
        sut.Passed(row);
        const auto victim = sut.DropVictim();
        if (!victim) break;
        const Segment gone = sut.Drop(*victim);
        if (gone.in_file) break;
        home.erase(gone.buffer);
        orphan(gone.buffer);
        break;
      }
    }
  }
  for (FeedLog::ReaderId reader = 1; reader <= 4; ++reader) {
    for (auto& [b, readers] : leased) readers.erase(reader);
    for (const auto b : sut.ReleaseAll(reader)) orphan(b);
  }
  EXPECT_EQ(sut.leased_bytes(), 0u);
  for (const auto& [buffer, readers] : leased) {
    EXPECT_TRUE(home.contains(buffer) || orphans.contains(buffer))
        << "buffer " << buffer << " leaked";
  }
}

}  // namespace
}  // namespace arcflow::feed
