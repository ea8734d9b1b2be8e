// SPDX-License-Identifier: Apache-2.0
// Strangers are turned away, the others are not, and the memory of them is bounded.
#include "arcflow/net/failure_gate.h"

#include <gtest/gtest.h>

namespace arcflow::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const FailureGate::Clock::time_point kStart{seconds(100)};

TEST(FailureGateTest, TurnsAwayWhoFailedWhenTooMuchFailed) {
  FailureGate sut(kStart);
  for (int i = 0; i < static_cast<int>(FailureGate::kBurst); ++i) {
    EXPECT_TRUE(sut.Admits("bad", kStart));
    sut.Failed("bad", kStart);
  }
  EXPECT_FALSE(sut.Admits("bad", kStart));
  EXPECT_TRUE(sut.Admits("good", kStart));
}

TEST(FailureGateTest, TokensComeBackWithTime) {
  FailureGate sut(kStart);
  for (int i = 0; i < 2 * static_cast<int>(FailureGate::kBurst); ++i) sut.Failed("a", kStart);
  EXPECT_FALSE(sut.Admits("a", kStart));
  EXPECT_TRUE(sut.Admits("a", kStart + milliseconds(20)));
}

TEST(FailureGateTest, ForgetsAnAddressAfterAWhile) {
  FailureGate sut(kStart);
  auto now = kStart;
  sut.Failed("old", now);
  for (; now < kStart + 2 * FailureGate::kForget; now += milliseconds(1)) sut.Failed("new", now);
  EXPECT_FALSE(sut.Admits("new", now));
  EXPECT_TRUE(sut.Admits("old", now));
}

TEST(FailureGateTest, RemembersABoundedNumberOfAddresses) {
  FailureGate sut(kStart);
  for (std::size_t i = 0; i < 10 * FailureGate::kMaxAddresses; ++i) {
    sut.Failed(std::to_string(i), kStart);
    ASSERT_LE(sut.known(), FailureGate::kMaxAddresses);
  }
}

}  // namespace
}  // namespace arcflow::net
