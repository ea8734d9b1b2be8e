// SPDX-License-Identifier: Apache-2.0
// Nodes that live and do nothing, and processes that a signal stopped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "arcflow/control/agent_testing.h"
#include "arcflow/control/node_inspector.h"
#include "arcflow/control/process_state.h"

namespace arcflow::control {
namespace {

using agent_testing::AgentTest;
using agent_testing::Helper;
using agent_testing::Patience;
using nlohmann::json;
using ::testing::HasSubstr;
using testing_support::Eventually;

class AgentLivenessTest : public AgentTest {
 protected:
  void SetUp() override {
    AgentTest::SetUp();
    tuning_.stall_settle_s = 0.3;
  }
  FeederLink& LaunchWatched(int rank, int size, const std::string& mode, double stall_s,
                            double stop_s = 0) {
    json config = Config(rank, size, mode);
    config["stall_timeout_s"] = stall_s;
    config["stop_timeout_s"] = stop_s;
    return Launch(config);
  }
  CoordinatorTuning tuning_;
};

TEST_F(AgentLivenessTest, AStalledNodeIsDescribedBeforeItIsEnded) {
  StartCoordinator(1, tuning_);
  LaunchWatched(0, 1, "stall", 0.5);
  const Failure failure = ExpectFailure(0, "stalled");
  EXPECT_THAT(failure.message, HasSubstr("after step 12"));
  EXPECT_THAT(failure.message, HasSubstr("sleeping"));
  EXPECT_THAT(failure.traceback, HasSubstr("Native stacks:"));
  EXPECT_THAT(failure.traceback, HasSubstr("pause"));  // libc's, where it really is
  EXPECT_THAT(failure.traceback, HasSubstr("Threads:\nthread "));
}

TEST_F(AgentLivenessTest, ABusyNodeIsLeftAlone) {
  StartCoordinator(1, tuning_);
  std::string result;
  EXPECT_EQ(OutcomeOf(LaunchWatched(0, 1, "busy", 0.4), &result)["status"], "ok");
  EXPECT_EQ(result, "exported");
}

TEST_F(AgentLivenessTest, WhoWaitsAtABarrierIsNotTheOneWhoStalled) {
  StartCoordinator(2, tuning_);
  LaunchWatched(0, 2, "barrier", 0.3);
  LaunchWatched(1, 2, "stall", 1.0);
  ExpectFailure(1, "stalled");
}

TEST_F(AgentLivenessTest, AStoppedNodeIsTold) {
  StartCoordinator(2, tuning_);
  LaunchWatched(0, 2, "sleep", 0, 0.5);
  LaunchWatched(1, 2, "sleep", 0, 0.5);
  AwaitNode(1);
  ::kill(links_[1]->node_pid(), SIGSTOP);
  const Failure failure = ExpectFailure(1, "stopped");
  EXPECT_THAT(failure.message, HasSubstr("the node's process"));
  EXPECT_THAT(failure.traceback, HasSubstr("stopped by a signal"));
}

TEST_F(AgentLivenessTest, AStopIsToldAtOnceWhenOthersHaveLostTheNode) {
  StartCoordinator(2, tuning_);
  json loser = Config(0, 2, "peer_loss_on_term");
  Launch(loser);
  LaunchWatched(1, 2, "sleep", 0, 1000);
  AwaitNode(0);
  AwaitNode(1);
  ::kill(links_[1]->node_pid(), SIGSTOP);
  ASSERT_TRUE(Eventually([&] { return ProcessState::Of(links_[1]->node_pid()).stopped(); }));
  json lines;
  do {  // until rank 0 handles SIGTERM
    coordinator_->RequestLog(0, 5);
    lines = NextEvent("node_log")["lines"];
  } while (lines.is_array() && lines.empty());
  ::kill(links_[0]->node_pid(), SIGTERM);  // now rank 0 says that it lost a peer
  ExpectFailure(1, "stopped");
}

TEST_F(AgentLivenessTest, AStoppedExecutorIsTold) {
  Helper jvm({"sleep"});
  StartCoordinator(1, tuning_);
  json config = Config(0, 1, "sleep");
  config["jvm_pid"] = jvm.process.pid();
  config["stop_timeout_s"] = 0.5;
  Launch(config);
  AwaitNode(0);
  jvm.process.SignalGroup(SIGSTOP);
  EXPECT_THAT(ExpectFailure(0, "stopped").message, HasSubstr("the executor's JVM"));
}

TEST_F(AgentLivenessTest, AStoppedFeederIsToldAndHoldsNobody) {
  StartCoordinator(1, tuning_);
  const std::string path =
      ::testing::TempDir() + "arcflow_liveness_" + std::to_string(::getpid()) + ".json";
  json config = Config(0, 1, "sleep");
  config["stop_timeout_s"] = 0.5;
  std::ofstream(path) << config.dump();
  Helper feeder({"feeder", ARC_AGENT, path});
  const pid_t agent = std::stoi(feeder.Line());
  NextEvent("started");
  feeder.process.SignalGroup(SIGSTOP);
  const json failed = NextEvent("failed");
  EXPECT_EQ(failed["failure"]["cause"], "stopped");
  EXPECT_THAT(failed["failure"]["message"].get<std::string>(),
              HasSubstr("the Spark task's Python"));
  // The agent leaves though nobody closes it; its parent, stopped, cannot reap it.
  EXPECT_TRUE(Eventually([&] {
    const char state = ProcessState::Of(agent).state;
    return state == 0 || state == 'Z';
  }));
  feeder.process.SignalGroup(SIGKILL);
  std::remove(path.c_str());
}

TEST_F(AgentLivenessTest, AStoppedAgentIsSilent) {
  tuning_.heartbeat_timeout_s = 1;
  StartCoordinator(1, tuning_);
  FeederLink& link = LaunchWatched(0, 1, "sleep", 0, 0);
  AwaitNode(0);
  ::kill(link.pid(), SIGSTOP);
  const Failure failure = Failure::FromJson(NextEvent("failed")["failure"]).value();
  EXPECT_EQ(failure.cause, "timeout");
  EXPECT_EQ(failure.rank, 0);
  link.Close(Deadline::AfterSeconds(0.1));
}

TEST(NodeInspectorTest, ReadsWhatPythonStacksSay) {
  const std::string waits =
      "Thread 0x01 (most recent call first):\n  File \"/lib/threading.py\", line 3 in wait\n\n"
      "Thread 0x02 (most recent call first):\n"
      "  File \"/v/site-packages/tensorflow/python/eager/execute.py\", line 53 in quick_execute\n"
      "  File \"/app/train.py\", line 7 in step\n";
  EXPECT_TRUE(InsideTensorFlow(waits));
  EXPECT_FALSE(Compiling(waits));
  EXPECT_FALSE(Saving(waits));
  EXPECT_EQ(InnermostFrame(waits), "execute.py, line 53 in quick_execute");
  EXPECT_FALSE(
      InsideTensorFlow("Thread 0x01 (most recent call first):\n  File \"train.py\", line 9 "
                       "in wait\n  File \"tensorflow/python/eager/x.py\", line 1 in y\n"));
  EXPECT_TRUE(Saving("Thread 0x1 (m):\n  File \"keras/src/saving/saving_lib.py\", line 1 in f\n"));
  EXPECT_EQ(InnermostFrame(""), "");
}

}  // namespace
}  // namespace arcflow::control
