// SPDX-License-Identifier: Apache-2.0
// Tests of passes over rows that agents have exchanged by TCP: all rows once in each pass, others
// on each rank, within the memory, and what is not wanted any more gives way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/control/hand_over_testing.h"
#include "arcflow/feed/exchange.h"

namespace arcflow::control {
namespace {

using namespace hand_testing;  // NOLINT: hand_over_testing.h

/// Of ranks that have exchanged their rows.
class ExchangeTest : public HandOverTest {
 protected:
  static std::string Pass(std::uint64_t epoch, const std::string& feed = "train") {
    return feed::ExchangePass{feed, 7, epoch}.Name();
  }
  /// What each rank reads in a pass; all ranks read it at the same time.
  std::vector<std::vector<std::uint64_t>> ReadPass(std::uint64_t epoch,
                                                   const std::string& feed = "train") {
    std::vector<std::future<std::vector<std::uint64_t>>> reading;
    for (std::size_t rank = 0; rank < wish_.rows.size(); ++rank)
      reading.push_back(std::async(
          std::launch::async, [this, rank, epoch, feed] { return Read(rank, Pass(epoch, feed)); }));
    std::vector<std::vector<std::uint64_t>> read;
    for (auto& values : reading) read.push_back(values.get());
    return read;
  }
  static std::vector<std::uint64_t> Sorted(const std::vector<std::vector<std::uint64_t>>& read) {
    std::vector<std::uint64_t> all;
    for (const auto& values : read) all.insert(all.end(), values.begin(), values.end());
    std::sort(all.begin(), all.end());
    return all;
  }
  std::vector<std::uint64_t> Everything() const {
    std::vector<std::uint64_t> all;
    for (std::size_t rank = 0; rank < wish_.rows.size(); ++rank)
      for (std::uint64_t i = 0; i < wish_.rows[rank]; ++i) all.push_back(rank * kRank + i);
    return all;
  }
  std::uint64_t SpilledBytes(std::size_t rank) {
    std::uint64_t bytes = 0;
    OnLoop([&] { bytes = agents_[rank]->service->Stats()["spilled_bytes"]; });
    return bytes;
  }
};

TEST_F(ExchangeTest, EveryPassHasAllRowsOnceAndOthersOnEachRank) {
  Start({.rows = {5000, 5000, 5000}, .exchange = true});
  Spool();
  std::vector<std::vector<std::uint64_t>> before;
  for (std::uint64_t epoch = 1; epoch < 4; ++epoch) {
    const auto read = ReadPass(epoch);
    EXPECT_EQ(Sorted(read), Everything());
    for (std::size_t rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(read[rank].size(), 5000u);
      std::map<std::uint64_t, int> from;
      for (const std::uint64_t value : read[rank]) ++from[value / kRank];
      EXPECT_EQ(from.size(), 3u);
      for (const auto& [giver, n] : from) EXPECT_NEAR(n, 1667, 2) << giver;
    }
    EXPECT_NE(read, before);
    before = read;
  }
  EXPECT_EQ(ReadPass(2), ReadPass(2));
  EXPECT_EQ(Read(1), Expected(1)) << "the first pass, which nothing changes";
}

TEST_F(ExchangeTest, UnevenRanksAreEvenedOutFirst) {
  Start({.rows = {9000, 0, 300}, .exchange = true});
  std::vector<std::future<std::vector<std::uint64_t>>> early;  // before any row is there
  for (std::size_t rank = 0; rank < 3; ++rank)
    early.push_back(std::async(std::launch::async, [this, rank] { return Read(rank, Pass(1)); }));
  Spool();
  std::vector<std::vector<std::uint64_t>> read;
  for (auto& values : early) read.push_back(values.get());
  EXPECT_EQ(Sorted(read), Everything());
  for (const auto& values : read) EXPECT_EQ(values.size(), 3100u);
}

/// Rows of the second feed are asked for while the first one's last rows are settled.
TEST_F(ExchangeTest, TwoFeedsBetweenTheSameRanks) {
  Start({.rows = {9000, 0, 300}, .exchange = true, .feeds = {"train", "valid"}});
  Spool();
  for (std::uint64_t epoch = 1; epoch < 3; ++epoch) {
    EXPECT_EQ(Sorted(ReadPass(epoch)), Everything());
    EXPECT_EQ(Sorted(ReadPass(epoch, "valid")), Everything());
  }
  for (std::size_t rank = 0; rank < 3; ++rank) EXPECT_EQ(Failed(rank), "");
}

TEST_F(ExchangeTest, ANodeThatHasEndedTakesWhatTheOthersNeed) {
  hold_offers_ = true;
  Start({.rows = {9000, 0, 300}, .exchange = true});
  Spool();
  OnLoop([this] {
    agents_[1]->service->RefuseMore();
    hold_offers_ = false;
    for (const auto& [from, message] : std::exchange(held_offers_, {})) Relay(from, message);
  });
  auto first = std::async(std::launch::async, [this] { return Read(0, Pass(1)); });
  EXPECT_EQ(Read(2, Pass(1)).size(), 3100u);
  EXPECT_EQ(first.get().size(), 3100u);
}

TEST_F(ExchangeTest, FewerRowsThanRanks) {
  Start({.rows = {1, 0, 1, 0}, .exchange = true});
  Spool();
  for (std::uint64_t epoch = 1; epoch < 4; ++epoch)
    EXPECT_EQ(Sorted(ReadPass(epoch)), Everything());
}

TEST_F(ExchangeTest, MemoryHoldsAndOldPassesGo) {
  Start({.rows = {40 * kRowsPerPage, 40 * kRowsPerPage}, .pages = 16, .exchange = true});
  Spool();
  std::uint64_t most = 0;
  for (std::uint64_t epoch = 1; epoch < 6; ++epoch) {
    EXPECT_EQ(Sorted(ReadPass(epoch)), Everything());
    EXPECT_LE(Train(0)["peak"], 16 * kPage);
    if (epoch == 1) most = SpilledBytes(0);
    EXPECT_LE(SpilledBytes(0), most + 4 * kPage) << "pass " << epoch;
  }
  EXPECT_GT(most, 0u);
  EXPECT_EQ(Train(0)["rows"], 40 * kRowsPerPage);
}

TEST_F(ExchangeTest, UnderMemoryTooManyRowsAreAnError) {
  Start({.rows = {10 * kRowsPerPage, 10 * kRowsPerPage},
         .cache = Cache::kMemory,
         .pages = 14,
         .exchange = true});
  Spool();
  const Fd session = Open(0, Pass(1));
  EXPECT_TRUE(Eventually([&] { return !Failed(0).empty(); }));
  EXPECT_THAT(Failed(0), HasSubstr("feed_memory"));
}

TEST_F(ExchangeTest, APassThatNobodyWantsAnyMoreGivesWayToTheNext) {
  Start({.rows = {60 * kRowsPerPage, 60 * kRowsPerPage}, .exchange = true});
  Spool();
  for (std::uint64_t epoch = 1; epoch < 20; ++epoch) {
    const Fd given_up = Open(0, Pass(epoch));  // closed while its rows are on their way
    std::this_thread::sleep_for(std::chrono::microseconds(300 * epoch));
  }
  EXPECT_EQ(Sorted(ReadPass(20)), Everything());
  EXPECT_EQ(Failed(0), "");
  EXPECT_EQ(Failed(1), "");
}

TEST_F(ExchangeTest, AGiverThatIsGoneIsNamed) {
  Start({.rows = {4000, 4000}, .exchange = true});
  Spool();
  EXPECT_EQ(Sorted(ReadPass(1)), Everything());
  OnLoop([this] { agents_[1]->sut->Close(); });
  const Fd session = Open(0, Pass(2));
  EXPECT_TRUE(Eventually([&] { return !Failed(0).empty(); }));
  EXPECT_THAT(Failed(0), ::testing::StartsWith("1 UNAVAILABLE"));
}

TEST_F(ExchangeTest, APassOfAFeedThatIsNotExchangedIsNoFeed) {
  Start({.rows = {10, 10}});
  Spool();
  OnLoop([this] {
    auto pair = net::PacketPair();
    const auto added = agents_[0]->service->AddReader(Pass(1), std::move(pair->second));
    EXPECT_EQ(added.status().code(), Code::kNotFound);
    EXPECT_EQ(agents_[0]->service->BeginPiece(Pass(1), 1, 0).status().code(), Code::kNotFound);
  });
}

TEST_F(ExchangeTest, RowsThatAPassDoesNotGiveAreRefused) {
  Start({.rows = {1000, 1000}, .exchange = true});
  Spool();
  EXPECT_EQ(Sorted(ReadPass(1)), Everything());
  OnLoop([this] {
    const std::vector<feed::Move> moves = feed::PlanExchange({1000, 1000}, 7, 1);
    for (const feed::Move& move : moves) {
      if (move.from != 0) continue;
      EXPECT_TRUE(agents_[0]->service->BeginPiece(Pass(1), move.to, move.first_row).ok());
      EXPECT_EQ(
          agents_[0]->service->BeginPiece(Pass(1), 1 - move.to, move.first_row).status().code(),
          Code::kInvalidArgument);
    }
    EXPECT_FALSE(agents_[0]->service->BeginPiece(Pass(1), 1, 1000).ok());
  });
}

}  // namespace
}  // namespace arcflow::control
