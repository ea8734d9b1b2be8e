// SPDX-License-Identifier: Apache-2.0
// Soak of FeedService: random feeds, cache modes, sizes and readers, some of which hoard and stand
// still; somebody always goes on, no row is lost, and none changes while it is held.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/feed/service_testing.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;
using testing::kPage;
using testing::TestNode;
using testing::TestReader;

/// A feed with its writer and the reader that does the work: it asks one segment ahead and holds a
/// few.
struct Track {
  std::string name;
  Cache cache = Cache::kAuto;
  std::uint64_t segments_left = 0;
  // writer
  std::uint64_t rows = 0;       // published
  std::uint64_t first_row = 0;  // of the open segment
  std::uint64_t filled = 0;     // rows of it
  std::uint64_t capacity = 0;
  std::uint64_t buffer = 0;  // 0: none granted
  bool ended = false;
  // reader
  std::unique_ptr<TestReader> reader;
  std::uint64_t next_row = 0;
  bool asked = false;
  bool done = false;
  std::vector<std::unique_ptr<TestReader>> idlers;
};

class Soak {
 public:
  Soak(unsigned seed, const std::string& dir) : random_(seed) {
    ServiceOptions options;
    options.segment_bytes = 2 * kPage;
    options.local_dirs = {dir};
    const std::uint64_t feeds = 1 + Upto(2);
    options.feed_memory_bytes = (2 * feeds + Upto(8)) * kPage;
    for (std::uint64_t i = 0; i < feeds; ++i) {
      Track track;
      track.name = "feed" + std::to_string(i);
      constexpr Cache kModes[] = {Cache::kAuto, Cache::kDisk, Cache::kNone};
      track.cache = kModes[Upto(2)];
      track.segments_left = 5 + Upto(35);
      options.feeds[track.name] = {testing::OneColumn(), track.cache};
      tracks_.push_back(std::move(track));
    }
    node_ = std::make_unique<TestNode>(std::move(options));
    for (Track& track : tracks_) track.reader = node_->Open(track.name);
  }

  void Run() {
    for (int idle = 0; !AllDone(); ++idle) {
      ASSERT_LT(idle, 2000) << "nobody goes on: " << node_->service().Stats().dump(1);
      if (StepWriter()) idle = 0;
      Track& track = tracks_[Upto(tracks_.size() - 1)];
      if (StepReader(track)) idle = 0;
      if (Upto(3) == 0) StepIdlers(track);
      node_->Poll();
      if (::testing::Test::HasFatalFailure()) return;
    }
    for (Track& track : tracks_) {
      EXPECT_EQ(track.next_row, track.rows);
      for (auto& idler : track.idlers) {
        for (const auto& [segment, held] : idler->held()) idler->Check(segment);
      }
    }
  }

 private:
  std::uint64_t Upto(std::uint64_t n) { return random_() % (n + 1); }

  bool AllDone() const {
    return std::all_of(tracks_.begin(), tracks_.end(), [](const Track& t) { return t.done; });
  }

  /// The one feeder: fills what it has, or waits for what it asked for.
  bool StepWriter() {
    if (waiting_ != nullptr) return TakeGrant();
    Track& track = tracks_[Upto(tracks_.size() - 1)];
    if (track.ended) return false;
    if (track.buffer != 0) return Fill(track);
    if (track.segments_left == 0) {
      track.ended = true;
      node_->End(track.name);
      return true;
    }
    --track.segments_left;
    waiting_ = &track;
    node_->Acquire(track.name, (1 + Upto(1)) * kPage);
    return true;
  }
  bool TakeGrant() {
    const json grant = node_->Answer();
    if (grant.is_null()) return false;
    EXPECT_EQ(grant["op"], "segment") << grant.dump();
    if (grant["op"] != "segment") return false;
    Track& track = *std::exchange(waiting_, nullptr);
    track.buffer = grant["buffer"];
    track.capacity = grant["bytes"].get<std::uint64_t>() / sizeof(std::uint64_t);
    track.first_row = track.rows;
    track.filled = 0;
    return true;
  }
  bool Fill(Track& track) {
    const std::uint64_t to = std::min(track.capacity, track.filled + 1 + Upto(track.capacity));
    const bool close = to == track.capacity || Upto(4) == 0;
    node_->Publish(track.name, track.buffer, track.first_row, track.filled, to, close);
    track.filled = to;
    track.rows = track.first_row + to;
    if (close) track.buffer = 0;
    return true;
  }

  bool StepReader(Track& track) {
    if (track.done) return false;
    if (!track.asked) {
      track.asked = true;
      EXPECT_TRUE(track.reader->Get(track.next_row).ok());
      return true;
    }
    node_->Poll();
    const json answer = track.reader->Receive();
    if (answer.is_null()) return false;
    track.asked = false;
    if (answer["op"] == "end") {
      EXPECT_EQ(answer["rows"].get<std::uint64_t>(), track.rows);
      track.done = true;
      return true;
    }
    EXPECT_EQ(answer["op"], "segment") << answer.dump();
    if (answer["op"] != "segment") return false;
    const std::uint64_t first = answer["first_row"];
    EXPECT_LE(first, track.next_row);
    track.next_row = first + answer["rows"].get<std::uint64_t>();
    GiveBack(track, answer["segment"]);
    return true;
  }
  /// Keeps the current segment and at most two older ones.
  void GiveBack(Track& track, std::uint64_t current) {
    std::vector<std::uint64_t> old;
    for (const auto& [segment, held] : track.reader->held()) {
      track.reader->Check(segment);
      if (segment != current) old.push_back(segment);
    }
    for (std::size_t i = 0; i < old.size(); ++i) {
      if (old.size() - i <= 2 && Upto(1) == 1) continue;
      EXPECT_TRUE(track.reader->Release(old[i]).ok());
    }
  }

  /// Readers that look somewhere, keep what they got or not, and die or stand still.
  void StepIdlers(Track& track) {
    if (track.idlers.size() < 4 && Upto(9) == 0) track.idlers.push_back(node_->Open(track.name));
    if (track.idlers.empty()) return;
    auto& idler = track.idlers[Upto(track.idlers.size() - 1)];
    while (!idler->Receive().is_null()) {
    }
    // Under kNone the furthest reader decides what is passed, so idlers stay behind.
    const std::uint64_t limit = track.cache == Cache::kNone ? track.next_row : track.rows;
    switch (Upto(12)) {
      case 0:
        idler = node_->Open(track.name);
        break;
      case 1:
        if (!idler->held().empty()) {
          const std::uint64_t segment = idler->held().begin()->first;
          idler->Check(segment);
          EXPECT_TRUE(idler->Release(segment).ok());
        }
        break;
      case 2:
        if (limit > 0) {
          EXPECT_TRUE(idler->Get(Upto(limit - 1)).ok());
          node_->Poll();
          if (idler->Receive().is_null())
            idler = node_->Open(track.name);  // parked: do not pile up
        }
        break;
      default:
        break;
    }
  }

  std::mt19937 random_;
  std::vector<Track> tracks_;
  std::unique_ptr<TestNode> node_;
  Track* waiting_ = nullptr;
};

TEST(FeedServiceSoakTest, SomebodyAlwaysGoesOnAndNoRowIsLostOrChanged) {
  std::string dir = ::testing::TempDir() + "/arcflow-soak-test-XXXXXX";
  ASSERT_NE(::mkdtemp(dir.data()), nullptr);
  for (unsigned seed = 1; seed <= testing_support::UnlessThreadSanitizer(40u, 12u); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Soak sut(seed, dir);
    sut.Run();
    ASSERT_FALSE(::testing::Test::HasFailure());
    ASSERT_TRUE(std::filesystem::is_empty(dir));
  }
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace arcflow::feed
