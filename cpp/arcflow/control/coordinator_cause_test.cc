// SPDX-License-Identifier: Apache-2.0
// Who is to blame when several report: by cause and time, with clocks that differ and agents that
// say nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/coordinator_testing.h"

namespace arcflow::control {
namespace {

using coordinator_testing::CoordinatorTest;
using nlohmann::json;
using ::testing::HasSubstr;

/// Time to settle that no machine is too slow for: the verdict waits for all reports.
CoordinatorTuning Settling(CoordinatorTuning tuning) {
  tuning.settle_s = testing_support::kPatience_s;
  return tuning;
}

json BeatAt(double time_s) { return {{"op", "beat"}, {"time", time_s}}; }

TEST_F(CoordinatorTest, TheEarlierCauseIsToldThoughItsReportCameLater) {
  auto agents = StartRun(3, Settling(Patient()));
  const double now = WallSeconds();
  agents[0]->Fail("exception", false, "second", now - 1);
  agents[1]->Fail("exception", false, "first", now - 2);
  agents[2]->Fail("exit", false, "an echo", now - 1.9);
  const json failed = NextEvent("failed");
  EXPECT_EQ(FailureOf(failed).message, "first");
  ASSERT_EQ(failed["others"].size(), 1u);
  EXPECT_EQ(failed["others"][0]["message"], "second");
  EXPECT_EQ(failed["others"][0]["rank"], 0);
}

TEST_F(CoordinatorTest, ClocksThatDifferDoNotChangeTheOrder) {
  auto agents = StartRun(2, Settling(Patient()));
  const double now = WallSeconds();
  agents[1]->Send(BeatAt(now - 3600));  // an hour behind
  agents[0]->Fail("exception", false, "first", now - 5);
  agents[1]->Fail("exception", false, "second", now - 3600);
  EXPECT_EQ(FailureOf(NextEvent("failed")).message, "first");
}

TEST_F(CoordinatorTest, OthersAreToldAtTheEndToo) {
  auto agents = StartRun(2, Settling(Patient()));
  const double now = WallSeconds();
  agents[0]->Fail("exception", false, "one", now - 2);
  agents[1]->Fail("out of memory", false, "two", now - 1);
  for (auto& agent : agents) {
    agent->Next("stop");
    agent->Send({{"op", "bye"}, {"log", {"last", "words"}}});
  }
  EXPECT_EQ(NextEvent("node_log")["lines"], (json{"last", "words"}));
  const json end = NextEvent("all_finished");
  EXPECT_EQ(end["failure"]["message"], "one");
  EXPECT_EQ(end["others"][0]["cause"], "out of memory");
}

TEST_F(CoordinatorTest, WhoDoesNotAnswerIsBlamedWhenAllOthersBlameAPeer) {
  CoordinatorTuning tuning = Patient();
  tuning.settle_s = 0.05;
  tuning.settle_consequence_s = 1.0;
  auto agents = StartRun(3, tuning);
  agents[0]->Fail("exception", true, "Socket closed");
  agents[2]->Next("ping");
  agents[2]->Send(BeatAt(WallSeconds()));  // it lives; rank 1 says nothing
  const Failure failure = FailureOf(NextEvent("failed"));
  EXPECT_EQ(failure.rank, 1);
  EXPECT_EQ(failure.cause, "timeout");
  EXPECT_THAT(failure.message, HasSubstr("does not answer"));
}

TEST_F(CoordinatorTest, AConsequenceIsToldWhenEverybodyLives) {
  CoordinatorTuning tuning = Patient();
  tuning.settle_s = 0.05;
  tuning.settle_consequence_s = 0.5;
  auto agents = StartRun(2, tuning);
  agents[0]->Fail("exception", true, "Socket closed");
  agents[1]->Next("ping");
  agents[1]->Send(BeatAt(WallSeconds()));
  EXPECT_EQ(FailureOf(NextEvent("failed")).message, "Socket closed");
}

TEST_F(CoordinatorTest, TheDriverMayAskForLines) {
  auto agents = StartRun(2);
  sut_->RequestLog(7, 10);  // nobody
  sut_->RequestLog(1, 10);
  EXPECT_EQ(agents[1]->Next("lines")["lines"], 10);
  agents[1]->Send({{"op", "lines"}, {"lines", {"a", "b"}}});
  const json event = NextEvent("node_log");
  EXPECT_EQ(event["rank"], 1);
  EXPECT_EQ(event["lines"], (json{"a", "b"}));
}

json Stalled(double idle_s, std::uint64_t steps, bool in_tensorflow) {
  return {{"op", "stalled"},
          {"idle_s", idle_s},
          {"timeout_s", testing_support::kPatience_s},
          {"steps", steps},
          {"in_tensorflow", in_tensorflow}};
}

CoordinatorTuning Quick(CoordinatorTuning tuning) {
  tuning.stall_settle_s = 0.3;
  return tuning;
}

TEST_F(CoordinatorTest, OfAllWhoStallTheOneThatWaitsForNobodyIsDescribed) {
  auto agents = StartRun(3, Quick(Patient()));
  agents[0]->Send(Stalled(60, 7, true));
  agents[1]->Send(Stalled(50, 9, false));
  agents[2]->Send(Stalled(60, 7, true));
  agents[1]->Next("describe");
  agents[1]->Fail("stalled", false, "in user code");
  EXPECT_EQ(FailureOf(NextEvent("failed")).message, "in user code");
}

TEST_F(CoordinatorTest, WhenAllMayWaitForOthersTheFewestStepsDecide) {
  auto agents = StartRun(2, Quick(Patient()));
  agents[0]->Send(Stalled(60, 8, true));
  agents[1]->Send(Stalled(55, 7, true));
  agents[1]->Next("describe");
}

TEST_F(CoordinatorTest, WhoMayWaitIsNotBlamedBeforeTheOthersHadTheirTime) {
  auto agents = StartRun(2, Quick(Patient()));
  agents[0]->Send(Stalled(60, 8, true));
  std::this_thread::sleep_for(std::chrono::milliseconds(700));  // over the settling time
  agents[1]->Send(Stalled(60, 8, false));
  agents[1]->Next("describe");
}

TEST_F(CoordinatorTest, AStallThatIsOverIsForgotten) {
  CoordinatorTuning tuning = Quick(Patient());
  tuning.stall_settle_s = 0.6;
  auto agents = StartRun(2, tuning);
  agents[0]->Send(Stalled(60, 8, false));
  agents[0]->Send({{"op", "stalled"}, {"over", true}});
  std::this_thread::sleep_for(std::chrono::milliseconds(700));
  agents[1]->Send(Stalled(60, 9, false));
  agents[1]->Next("describe");
}

}  // namespace
}  // namespace arcflow::control
