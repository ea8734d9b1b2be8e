// SPDX-License-Identifier: Apache-2.0
// What a run tells of nodes that really crash, and where their output goes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "arcflow/control/agent_testing.h"

namespace arcflow::control {
namespace {

using agent_testing::AgentTest;
using nlohmann::json;
using ::testing::HasSubstr;
using testing_support::Eventually;

TEST_F(AgentTest, AnUncaughtExceptionIsToldInItsOwnWords) {
  LaunchAll({"sleep", "terminate"});
  const Failure failure = ExpectFailure(1, "signal");
  EXPECT_EQ(failure.signal, "SIGABRT");
  EXPECT_EQ(failure.type, "std::out_of_range");
  EXPECT_THAT(failure.message, HasSubstr("SIGABRT: terminate called after throwing"));
  EXPECT_THAT(failure.message, HasSubstr("index 7"));
}

TEST_F(AgentTest, BadAllocIsOutOfMemory) {
  LaunchAll({"bad_alloc"});
  EXPECT_EQ(ExpectFailure(0, "out of memory").signal, "SIGABRT");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_F(AgentTest, WhatGlibcFoundIsTold) {
  LaunchAll({"double_free"});
  EXPECT_THAT(ExpectFailure(0, "signal").message, HasSubstr("free"));
}
#endif

TEST_F(AgentTest, ADeathByTheCoordinationServiceIsAConsequence) {
  LaunchAll({"coordination", "sleep"});
  AwaitNode(1);
  NextEvent("started");
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  ::kill(links_[1]->node_pid(), SIGKILL);
  EXPECT_EQ(ExpectFailure(1, "signal").signal, "SIGKILL");
}

/// Kills a process as its tracer, and lets go of it only after `hold`, as a slow debugger does.
void KillUnderADebugger(pid_t pid, std::chrono::milliseconds hold) {
  std::thread([pid, hold] {  // who traces has to be who waits
    ASSERT_EQ(::ptrace(PTRACE_SEIZE, pid, nullptr, nullptr), 0) << std::strerror(errno);
    ::kill(pid, SIGKILL);
    std::this_thread::sleep_for(hold);
    ::waitpid(pid, nullptr, __WALL);
  })
      .join();
}

TEST_F(AgentTest, ADeadNodeThatADebuggerHoldsIsTold) {
  LaunchAll({"sleep", "sleep"});
  AwaitNode(1);
  NextEvent("started");
  KillUnderADebugger(links_[1]->node_pid(), std::chrono::milliseconds(500));
  EXPECT_EQ(ExpectFailure(1, "signal").signal, "SIGKILL");
}

TEST_F(AgentTest, AFailureShowsSomeLinesAndTheOutcomeMore) {
  StartCoordinator(1);
  json config = Config(0, 1, "lines");
  config["log_tail_lines"] = 5;
  FeederLink& link = Launch(config);
  AwaitNode(0);
  for (;;) {  // while it runs
    coordinator_->RequestLog(0, 20);
    const json lines = NextEvent("node_log")["lines"];
    ASSERT_LE(lines.size(), 20u);
    if (!lines.empty() && lines.back() == "line 299") {
      EXPECT_EQ(lines.size(), 20u);
      break;
    }
  }
  ::kill(link.node_pid(), SIGKILL);
  const json outcome = OutcomeOf(link);
  EXPECT_EQ(outcome["failure"]["log_tail"].size(), 5u);
  EXPECT_EQ(outcome["log"].size(), 300u);
  EXPECT_EQ(outcome["role"], "chief");
  EXPECT_EQ(NextEvent("node_log")["lines"].size(), 300u);  // with its bye
}

/// The output of one rank's node, which goes to a file.
class NodeOutput {
 public:
  explicit NodeOutput(json* config)
      : folder_(::testing::TempDir() + "arcflow_logs_" + std::to_string(::getpid())) {
    (*config)["log_file"] = path();
  }
  ~NodeOutput() { std::filesystem::remove_all(folder_); }
  NodeOutput(const NodeOutput&) = delete;
  NodeOutput& operator=(const NodeOutput&) = delete;
  std::string Text() const {
    std::ifstream file(path());
    return std::string{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void Await(const std::string& text) const {
    EXPECT_TRUE(Eventually([&] { return Text().find(text) != std::string::npos; }));
  }
  /// It waits at its barrier, as far as the agent knows: a packet's way after it said so.
  void AwaitBarrier() const {
    Await("goes to its barrier\n");
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }

 private:
  std::string path() const { return folder_ + "/run/node.log"; }
  std::string folder_;
};

TEST_F(AgentTest, ANodeThatDiesWhileItServesIsStartedAgainAndTheRunGoesOn) {
  StartCoordinator(2);
  FeederLink& chief = Launch(Config(0, 2, "serve_on_usr1"));
  json config = Config(1, 2, "serve");
  config["respawns"] = 2;
  config["serving_at"] = "exit";
  const NodeOutput output(&config);
  FeederLink& server = Launch(config);
  AwaitNode(0);
  AwaitNode(1);
  output.AwaitBarrier();
  for (int time = 0; time < 2; ++time) {
    const pid_t before = server.node_pid();
    ::kill(before, SIGKILL);
    EXPECT_THAT(NextEvent("log")["line"].get<std::string>(), HasSubstr("it is started again"));
    EXPECT_TRUE(Eventually([&] {
      (void)server.WaitOutcome(Deadline::AfterSeconds(0.01)).ok();  // takes what the agent says
      return server.node_pid() != before;
    }));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
  }
  ::kill(chief.node_pid(), SIGUSR1);
  std::string result;
  EXPECT_EQ(OutcomeOf(chief)["status"], "ok");
  EXPECT_EQ(OutcomeOf(server, &result)["status"], "ok");
  EXPECT_EQ(result, "2");
}

TEST_F(AgentTest, ANodeThatIsStartedAgainWhenTheOthersHaveLeftLeavesToo) {
  StartCoordinator(2);
  FeederLink& chief = Launch(Config(0, 2, "serve_on_usr1"));
  json config = Config(1, 2, "serve_late_again");
  config["respawns"] = 1;
  config["serving_at"] = "exit";
  const NodeOutput output(&config);
  FeederLink& server = Launch(config);
  AwaitNode(0);
  AwaitNode(1);
  output.AwaitBarrier();
  ::kill(server.node_pid(), SIGKILL);
  NextEvent("log");
  ::kill(chief.node_pid(), SIGUSR1);  // the new one is not at the barrier when it ends
  EXPECT_EQ(OutcomeOf(chief)["status"], "ok");
  EXPECT_EQ(OutcomeOf(server)["status"], "ok");
}

TEST_F(AgentTest, ANodeThatDiesMoreOftenThanAllowedOrBeforeItServesIsAFailure) {
  StartCoordinator(2);
  Launch(Config(0, 2, "serve_on_usr1"));
  json config = Config(1, 2, "sleep");
  config["respawns"] = 2;
  config["serving_at"] = "exit";
  Launch(config);
  AwaitNode(1);
  NextEvent("started");
  ::kill(links_[1]->node_pid(), SIGKILL);
  ExpectFailure(1, "signal");
}

TEST_F(AgentTest, TheWholeOutputGoesToAFile) {
  StartCoordinator(1);
  json config = Config(0, 1, "lines");
  const NodeOutput output(&config);
  config["log_tail_lines"] = 1;
  FeederLink& link = Launch(config);
  AwaitNode(0);
  output.Await("line 299\n");
  ::kill(link.node_pid(), SIGKILL);
  OutcomeOf(link);
  EXPECT_EQ(output.Text().substr(0, 14), "line 0\nline 1\n");
}

TEST_F(AgentTest, ALogFileThatCannotBeWrittenIsToldBeforeTheStart) {
  StartCoordinator(1);
  json config = Config(0, 1, "ok");
  config["log_file"] = "/proc/nothing/here.log";
  Launch(config);
  EXPECT_THAT(ExpectFailure(0, "launch").message, HasSubstr("log_dir: /proc/nothing"));
}

}  // namespace
}  // namespace arcflow::control
