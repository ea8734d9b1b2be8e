// SPDX-License-Identifier: Apache-2.0
// The coordinator against agents that are only messages: who may join, who is to blame, who is told
// what.
#include "arcflow/control/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>

#include "arcflow/base/stand_still_testing.h"
#include "arcflow/control/control_testing.h"
#include "arcflow/control/coordinator_testing.h"

namespace arcflow::control {
namespace {

using coordinator_testing::CoordinatorTest;
using coordinator_testing::FakeAgent;
using nlohmann::json;
using ::testing::HasSubstr;
using testing_support::kPatience_s;
using testing_support::Secret;

TEST_F(CoordinatorTest, RefusesBadOptions) {
  CoordinatorOptions options;
  options.secret = "short";
  EXPECT_EQ(Coordinator::Start(options).status().code(), Code::kInvalidArgument);
  options.secret = Secret();
  options.size = 0;
  EXPECT_EQ(Coordinator::Start(options).status().code(), Code::kInvalidArgument);
  options.size = 1;
  options.bind_host = "203.0.113.1";  // documentation range: nobody's address
  EXPECT_FALSE(Coordinator::Start(options).ok());
}

TEST_F(CoordinatorTest, StartsOnlyWhenEveryRankHasJoined) {
  Start(2);
  auto one = Connect();
  one->Join(1);
  EXPECT_EQ(NextEvent("joined")["rank"], 1);
  auto zero = Connect();
  zero->Join(0);
  const json cluster = one->Next("start")["cluster"];
  EXPECT_EQ(
      cluster[0],
      (json{{"rank", 0}, {"role", "chief"}, {"index", 0}, {"host", "host0"}, {"port", 4000}}));
  EXPECT_EQ(cluster[1]["host"], "host1");
  EXPECT_EQ(NextEvent("started")["cluster"], cluster);
}

TEST_F(CoordinatorTest, RunEndsWellWhenAllAreDone) {
  auto agents = StartRun(3);
  for (int rank = 0; rank < 3; ++rank) {
    agents[rank]->Send({{"op", "done"}, {"metrics", {{"m", rank}}}, {"rows", {{"train", rank}}}});
  }
  for (auto& agent : agents) {
    EXPECT_EQ(agent->Next("stop")["code"], "OK");
    agent->Send({{"op", "bye"}});
  }
  const json end = NextEvent("all_finished");
  EXPECT_EQ(end["status"], "ok");
  EXPECT_EQ(
      end["ranks"][2],
      (json{{"rank", 2}, {"status", "ok"}, {"metrics", {{"m", 2}}}, {"rows", {{"train", 2}}}}));
  const auto after = sut_->NextEvent(Deadline::AfterSeconds(kPatience_s));
  ASSERT_TRUE(after.ok());
  EXPECT_FALSE(*after);
}

TEST_F(CoordinatorTest, WrongSecretIsClosedAndDisturbsNobody) {
  Start(1);
  FakeAgent stranger(*loop_, sut_->address(), std::string(32, 'w'));
  EXPECT_EQ(stranger.Next("closed")["code"], "UNAUTHENTICATED");
  auto agent = Connect();
  agent->Join(0);
  agent->Next("start");
}

TEST_F(CoordinatorTest, RefusesWhoDoesNotBelong) {
  Start(2);
  auto first = Connect();
  first->Join(1);
  NextEvent("joined");
  const std::vector<std::pair<json, std::string>> wrong = {
      {{{"rank", 1}, {"index", 5}}, "already joined from host1"},
      {{{"rank", 2}}, "rank 2 in a run of 2"},
      {{{"run_id", "other"}}, "another run"},
      {{{"rank", 0}, {"role", "worker"}, {"index", 0}}, "worker 0 is already rank 1"},
      {{{"port", "x"}}, "join.port"}};
  for (const auto& [changes, text] : wrong) {
    auto agent = Connect();
    agent->Join(0, changes);
    EXPECT_THAT(agent->Next("reject")["message"].get<std::string>(), HasSubstr(text));
    EXPECT_EQ(agent->Next("closed")["code"], "UNAVAILABLE");
    EXPECT_THAT(NextEvent("rejected")["message"].get<std::string>(), HasSubstr(text));
  }
  auto silent = Connect();
  silent->Send({{"op", "beat"}});
  EXPECT_THAT(silent->Next("reject")["message"].get<std::string>(), HasSubstr("must be join"));
  auto zero = Connect();  // and the run goes on
  zero->Join(0);
  first->Next("start");
}

TEST_F(CoordinatorTest, JoinTimeoutNamesTheMissing) {
  CoordinatorTuning tuning = Patient();
  tuning.join_timeout_s = 0.3;
  Start(4, tuning);
  auto agent = Connect();
  agent->Join(2);
  const Failure failure = FailureOf(NextEvent("failed"));
  EXPECT_EQ(failure.cause, "timeout");
  EXPECT_THAT(failure.message, HasSubstr("rank 0, 1, 3 did not join"));
  EXPECT_THAT(FailureOf(agent->Next("stop")).message, HasSubstr("0, 1, 3"));
  agent->Send({{"op", "bye"}});
  EXPECT_EQ(NextEvent("all_finished")["status"], "failed");
}

TEST_F(CoordinatorTest, VersionMismatchStopsBeforeTheStart) {
  CoordinatorTuning tuning = Patient();
  tuning.expected_versions = {{"python", "3.11.9"}};
  Start(2, tuning);
  auto zero = Connect();
  auto one = Connect();
  zero->Join(0);
  one->Join(1, {{"versions", {{"python", "3.11.2"}, {"keras", "3.14.0"}}}});
  const Failure failure = FailureOf(one->Next("stop"));
  EXPECT_EQ(failure.cause, "rejected");
  EXPECT_THAT(failure.message, HasSubstr("keras differs: rank 0 3.15.1, rank 1 3.14.0"));
  EXPECT_THAT(failure.message, ::testing::Not(HasSubstr("python differs")));
  EXPECT_EQ(FailureOf(NextEvent("failed")).cause, "rejected");
}

TEST_F(CoordinatorTest, TheCauseWinsOverItsConsequences) {
  auto agents = StartRun(3);
  agents[0]->Fail("exception", true, "Connection reset by peer");
  agents[2]->Fail("signal", false, "killed");
  agents[1]->Fail("exception", false, "came later");
  const Failure failure = FailureOf(NextEvent("failed"));
  EXPECT_EQ(failure.rank, 2);
  EXPECT_EQ(failure.host, "host2");
  EXPECT_EQ(failure.message, "killed");
  for (auto& agent : agents) EXPECT_EQ(FailureOf(agent->Next("stop")).rank, 2);
}

TEST_F(CoordinatorTest, WaitsLongerWhileOnlyConsequencesAreKnown) {
  CoordinatorTuning tuning = Patient();
  tuning.settle_s = 0.05;
  tuning.settle_consequence_s = kPatience_s;
  auto agents = StartRun(2, tuning);
  agents[0]->Fail("exception", true);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  agents[1]->Drop();
  const Failure failure = FailureOf(NextEvent("failed"));
  EXPECT_EQ(failure.rank, 1);
  EXPECT_EQ(failure.cause, "agent lost");
}

TEST_F(CoordinatorTest, OnlyConsequencesGiveTheFirst) {
  CoordinatorTuning tuning = Patient();
  tuning.settle_s = 0.05;
  tuning.settle_consequence_s = 1.0;
  auto agents = StartRun(3, tuning);
  agents[1]->Fail("exception", true, "first");
  agents[0]->Fail("exception", true, "second");
  agents[2]->Next("ping");
  agents[2]->Send({{"op", "beat"}});
  EXPECT_EQ(FailureOf(NextEvent("failed")).message, "first");
}

TEST_F(CoordinatorTest, ReportsAfterTheStopCountForNothing) {
  auto agents = StartRun(2);
  ASSERT_TRUE(sut_->Stop(Code::kCancelled, "Ctrl-C").ok());
  EXPECT_EQ(NextEvent("stopped")["reason"], "Ctrl-C");
  const json stop = agents[0]->Next("stop");
  EXPECT_EQ(stop["code"], "CANCELLED");
  EXPECT_TRUE(stop["failure"].is_null());
  agents[0]->Fail("signal", false, "killed by the stop");
  agents[0]->Send({{"op", "bye"}});
  agents[1]->Drop();
  const json end = NextEvent("all_finished");
  EXPECT_EQ(end["status"], "stopped");
  EXPECT_FALSE(end.contains("failure"));
  EXPECT_EQ(end["ranks"][1]["status"], "lost");
  EXPECT_FALSE(sut_->Stop(Code::kOk, "").ok());
}

TEST_F(CoordinatorTest, ALostConnectionIsALostAgent) {
  auto agents = StartRun(2);
  agents[1]->Drop();
  const Failure failure = FailureOf(NextEvent("failed"));
  EXPECT_EQ(failure.rank, 1);
  EXPECT_EQ(failure.cause, "agent lost");
  EXPECT_EQ(failure.role, "worker");
}

TEST_F(CoordinatorTest, ADriverThatStoodStillBlamesNobody) {
  CoordinatorTuning tuning = Patient();
  tuning.heartbeat_timeout_s = 1.0;
  auto agents = StartRun(2, tuning);
  arcflow::testing_support::StandStill(3);
  for (int beat = 0; beat < 10; ++beat) {
    for (const auto& agent : agents) agent->Send({{"op", "beat"}});
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  agents[1]->Drop();
  EXPECT_EQ(FailureOf(NextEvent("failed")).cause, "agent lost");  // the first that anybody is told
}

TEST_F(CoordinatorTest, SilenceIsATimeout) {
  CoordinatorTuning tuning = Patient();
  tuning.heartbeat_timeout_s = 1.0;
  auto agents = StartRun(2, tuning);
  std::atomic<bool> stop{false};
  std::thread alive([&] {  // rank 0 goes on beating
    while (!stop) {
      agents[0]->Send({{"op", "beat"}});
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
  const Failure failure = FailureOf(NextEvent("failed"));
  stop = true;
  alive.join();
  EXPECT_EQ(failure.rank, 1);
  EXPECT_EQ(failure.cause, "timeout");
}

TEST_F(CoordinatorTest, AnAgentThatLeavesEarlyFailsTheRun) {
  auto agents = StartRun(2);
  agents[0]->Send({{"op", "bye"}});
  EXPECT_THAT(FailureOf(NextEvent("failed")).message, HasSubstr("left before the end"));
}

TEST_F(CoordinatorTest, ABrokenMessageFailsItsSender) {
  auto agents = StartRun(2);
  agents[1]->Send({{"op", "beat"}, {"feeds", {{"train", {{"rows", -1}, {"ended", false}}}}}});
  const Failure failure = FailureOf(NextEvent("failed"));
  EXPECT_EQ(failure.rank, 1);
  EXPECT_THAT(failure.message, HasSubstr("broke the protocol"));
}

TEST_F(CoordinatorTest, AgentsThatDoNotLeaveAreCutOff) {
  CoordinatorTuning tuning = Patient();
  tuning.bye_timeout_s = 0.2;
  auto agents = StartRun(2, tuning);
  ASSERT_TRUE(sut_->Stop(Code::kCancelled, "enough").ok());
  EXPECT_EQ(NextEvent("all_finished")["ranks"][0]["status"], "lost");
}

json Beat(std::uint64_t rows, bool ended) {
  return {{"op", "beat"},
          {"counters", {{"steps", 1}}},
          {"feeds", {{"train", {{"rows", rows}, {"ended", ended}}}}}};
}

TEST_F(CoordinatorTest, RowsOfAllReachAll) {
  auto agents = StartRun(2);
  agents[0]->Send(Beat(10, false));
  agents[1]->Send(Beat(4, true));
  for (auto& agent : agents) {
    json feeds;
    do {
      feeds = agent->Next("feeds")["feeds"]["train"];
    } while (!feeds.is_null() && feeds != json{{"rows", {10, 4}}, {"ended", {false, true}}});
    EXPECT_FALSE(feeds.is_null());
  }
  EXPECT_EQ(NextEvent("progress")["ranks"].size(), 2u);
}

TEST_F(CoordinatorTest, RowsToldBeforeTheStartFollowIt) {
  Start(2);
  auto zero = Connect();
  zero->Join(0);
  zero->Send(Beat(5, true));
  auto one = Connect();
  one->Join(1);
  one->Next("start");
  EXPECT_EQ(one->Next("feeds")["feeds"]["train"]["rows"], (json{5, 0}));
}

TEST_F(CoordinatorTest, ProgressIsCoalesced) {
  CoordinatorTuning tuning = Patient();
  tuning.progress_interval_s = 0.05;
  auto agents = StartRun(1, tuning);
  for (std::uint64_t i = 1; i <= 500; ++i) agents[0]->Send(Beat(i, i == 500));
  json last;
  int events = 0;
  do {
    last = NextEvent("progress");
    ++events;
  } while (last.contains("ranks") && last["ranks"][0]["feeds"]["train"]["rows"] != 500);
  EXPECT_LT(events, 100);
}

TEST_F(CoordinatorTest, LinesAndWordsOfNodesAreEvents) {
  auto agents = StartRun(1);
  agents[0]->Send({{"op", "log"}, {"line", "hello\x1b[0m"}});
  agents[0]->Send({{"op", "progress"}, {"progress", {{"loss", 0.5}}}});
  EXPECT_EQ(NextEvent("log")["line"], "hello");
  EXPECT_EQ(NextEvent("node")["progress"]["loss"], 0.5);
}

json BarrierMessage(const std::string& name, int id, const std::string& payload,
                    double timeout_s = kPatience_s) {
  return {{"op", "barrier"},
          {"name", name},
          {"id", id},
          {"payload", payload},
          {"timeout_s", timeout_s}};
}

TEST_F(CoordinatorTest, BarrierGathersByRank) {
  auto agents = StartRun(3);
  for (int round = 0; round < 3; ++round) {
    for (int rank = 2; rank >= 0; --rank) {
      agents[rank]->Send(BarrierMessage("b", 10 * rank + round, "p" + std::to_string(rank)));
    }
    for (int rank = 0; rank < 3; ++rank) {
      const json answer = agents[rank]->Next("barrier");
      EXPECT_EQ(answer["code"], "OK");
      EXPECT_EQ(answer["id"], 10 * rank + round);
      EXPECT_EQ(answer["payloads"], (json{"p0", "p1", "p2"}));
    }
  }
}

TEST_F(CoordinatorTest, BarrierOfDifferentNamesFailsForAllWhoCame) {
  auto agents = StartRun(3);
  agents[0]->Send(BarrierMessage("save", 1, ""));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  agents[1]->Send(BarrierMessage("load", 1, ""));
  for (int rank : {0, 1}) {
    const json answer = agents[rank]->Next("barrier");
    EXPECT_EQ(answer["code"], "FAILED_PRECONDITION");
    EXPECT_THAT(answer["message"].get<std::string>(), HasSubstr("\"load\""));
  }
}

TEST_F(CoordinatorTest, BarrierDeadlineNamesTheMissing) {
  auto agents = StartRun(3);
  agents[0]->Send(BarrierMessage("b", 1, ""));
  agents[2]->Send(BarrierMessage("b", 1, "", 0.1));
  for (int rank : {0, 2}) {
    const json answer = agents[rank]->Next("barrier");
    EXPECT_EQ(answer["code"], "DEADLINE_EXCEEDED");
    EXPECT_THAT(answer["message"].get<std::string>(), HasSubstr("in vain for rank 1"));
  }
}

TEST_F(CoordinatorTest, BarrierFailsWhenAMemberIsGone) {
  auto agents = StartRun(3);
  agents[0]->Send(BarrierMessage("b", 1, ""));
  agents[1]->Fail("exception", false);
  EXPECT_EQ(agents[0]->Next("barrier")["code"], "ABORTED");
  agents[2]->Send(BarrierMessage("b", 2, ""));  // after it
  EXPECT_EQ(agents[2]->Next("barrier")["code"], "ABORTED");
}

TEST_F(CoordinatorTest, BarrierFailsWhenAMemberHasFinished) {
  auto agents = StartRun(2);
  agents[1]->Send({{"op", "done"}});
  agents[0]->Send(BarrierMessage("b", 1, ""));
  const json answer = agents[0]->Next("barrier");
  EXPECT_EQ(answer["code"], "ABORTED");
  EXPECT_THAT(answer["message"].get<std::string>(), HasSubstr("rank 1 has finished"));
}

TEST_F(CoordinatorTest, FiftyAgentsMeet) {
  constexpr int kSize = 50;
  auto agents = StartRun(kSize);
  for (int rank = 0; rank < kSize; ++rank) {
    agents[rank]->Send(Beat(static_cast<std::uint64_t>(rank), true));
    agents[rank]->Send(BarrierMessage("b", rank, std::string(1000, 'p')));
  }
  for (auto& agent : agents)
    EXPECT_EQ(agent->Next("barrier")["payloads"].size(), static_cast<std::size_t>(kSize));
  for (auto& agent : agents) agent->Send({{"op", "done"}});
  for (auto& agent : agents) {
    EXPECT_EQ(agent->Next("stop")["code"], "OK");
    agent->Send({{"op", "bye"}});
  }
  EXPECT_EQ(NextEvent("all_finished")["status"], "ok");
}

TEST_F(CoordinatorTest, ALateAgentHearsTheVerdict) {
  CoordinatorTuning tuning = Patient();
  tuning.settle_s = 0.05;
  Start(3, tuning);
  auto zero = Connect();
  auto one = Connect();
  zero->Join(0);
  one->Join(1);
  NextEvent("joined");
  NextEvent("joined");
  zero->Fail("launch", false, "no python");
  NextEvent("failed");
  auto two = Connect();
  two->Join(2);
  EXPECT_EQ(FailureOf(two->Next("stop")).message, "no python");
}

TEST_F(CoordinatorTest, CloseTellsAgentsToStop) {
  auto agents = StartRun(2);
  sut_->Close();
  EXPECT_EQ(agents[0]->Next("stop")["code"], "CANCELLED");
  EXPECT_EQ(agents[1]->Next("stop")["code"], "CANCELLED");
  EXPECT_EQ(sut_->NextEvent(Deadline::AfterSeconds(0)).status().code(),
            Code::kOk);  // what was waiting
  EXPECT_TRUE(sut_->Stop(Code::kCancelled, "again").ok());
  sut_.reset();
}

TEST_F(CoordinatorTest, NoDescriptorIsLeft) {
  std::size_t before = 0;
  for (int round = 0; round < 3; ++round) {  // the first makes what the test's own loop keeps
    auto agents = StartRun(3);
    agents.clear();
    sut_.reset();
    if (round == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    if (round == 0) before = testing_support::OpenDescriptors();
  }
  EXPECT_TRUE(
      testing_support::Eventually([&] { return testing_support::OpenDescriptors() == before; }));
}

}  // namespace
}  // namespace arcflow::control
