// SPDX-License-Identifier: Apache-2.0
// The rule of progress, second by second.
#include "arcflow/control/stall_watch.h"

#include <gtest/gtest.h>

namespace arcflow::control {
namespace {

using std::chrono::seconds;

/// Samples at given seconds.
struct Node {
  StallWatch sut{seconds(10)};
  StallWatch::Sample sample;

  bool At(int second, std::uint64_t reports, bool excused = false) {
    sample.now = StallWatch::Clock::time_point(seconds(1000 + second));
    sample.reports = reports;
    sample.excused = excused;
    return sut.Overdue(sample);
  }
};

TEST(StallWatchTest, ANodeThatReportsMustGoOn) {
  Node node;
  for (int s = 0; s < 30; ++s) EXPECT_FALSE(node.At(s, 5 + static_cast<std::uint64_t>(s)));
  EXPECT_FALSE(node.At(38, 34));
  EXPECT_TRUE(node.At(39, 34));
  EXPECT_TRUE(node.At(40, 34));
  node.sut.Defer(node.sample.now);
  EXPECT_FALSE(node.At(49, 34));
  EXPECT_TRUE(node.At(50, 34));
}

TEST(StallWatchTest, TheFirstStepsMayCompile) {
  Node node;
  EXPECT_FALSE(node.At(0, 0));
  EXPECT_FALSE(node.At(1, 2));
  EXPECT_FALSE(node.At(40, 2));
  EXPECT_TRUE(node.At(41, 2));
}

TEST(StallWatchTest, NothingCountsWhileItIsExcused) {
  Node node;
  EXPECT_FALSE(node.At(0, 9));
  EXPECT_FALSE(node.At(9, 9, true));
  EXPECT_FALSE(node.At(100, 9, true));
  EXPECT_FALSE(node.At(109, 9));
  EXPECT_TRUE(node.At(110, 9));
}

TEST(StallWatchTest, ANodeThatNeverReportsIsJudgedByWhatItUses) {
  Node node;
  EXPECT_FALSE(node.At(0, 0));
  node.sample.cpu_s = 30;  // most of a core
  EXPECT_FALSE(node.At(41, 0));
  node.sample.io_bytes = 1;  // a file
  EXPECT_FALSE(node.At(90, 0));
  node.sample.cpu_s = 30.5;  // next to nothing
  EXPECT_TRUE(node.At(140, 0));
}

TEST(StallWatchTest, OneThatReportedIsNotSavedByItsProcessorTime) {
  Node node;
  EXPECT_FALSE(node.At(0, 7));
  node.sample.cpu_s = 10;  // an endless loop
  EXPECT_TRUE(node.At(10, 7));
  EXPECT_GT(node.sut.cpu_share(node.sample), 0.9);
}

TEST(StallWatchTest, ZeroIsOff) {
  StallWatch sut{seconds(0)};
  StallWatch::Sample sample;
  EXPECT_FALSE(sut.Overdue(sample));
  sample.now += seconds(1000000);
  EXPECT_FALSE(sut.Overdue(sample));
}

}  // namespace
}  // namespace arcflow::control
