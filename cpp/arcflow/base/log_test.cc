// SPDX-License-Identifier: Apache-2.0
// Log: levels, another sink, silence.
#include "arcflow/base/log.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace arcflow {
namespace {

class LogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SetLogSink([this](LogLevel level, std::string_view line) { lines.emplace_back(level, line); });
  }
  void TearDown() override {
    SetLogSink({});
    SetLogLevel(LogLevel::kWarning);
  }
  std::vector<std::pair<LogLevel, std::string>> lines;
};

TEST_F(LogTest, LinesBelowTheLevelAreDropped) {
  Log(LogLevel::kInfo, "quiet");
  Log(LogLevel::kWarning, "loud");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0], std::pair(LogLevel::kWarning, std::string("loud")));
  SetLogLevel(LogLevel::kDebug);
  Log(LogLevel::kDebug, "detail");
  EXPECT_EQ(lines.size(), 2u);
}

TEST_F(LogTest, OffSilencesEverything) {
  SetLogLevel(LogLevel::kOff);
  Log(LogLevel::kError, "x");
  Log(LogLevel::kOff, "x");
  EXPECT_TRUE(lines.empty());
}

TEST_F(LogTest, EmptySinkBringsStderrBack) {
  SetLogSink({});
  ::testing::internal::CaptureStderr();
  Log(LogLevel::kError, "to stderr");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "arcflow error: to stderr\n");
}

TEST_F(LogTest, SinkThatThrowsLosesTheLineOnly) {
  SetLogSink([](LogLevel, std::string_view) { throw std::runtime_error("no"); });
  Log(LogLevel::kError, "x");
}

TEST_F(LogTest, ThreadsDoNotMixTheirLines) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < 100; ++i) Log(LogLevel::kError, "line");
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(lines.size(), 400u);
}

}  // namespace
}  // namespace arcflow
