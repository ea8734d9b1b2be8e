// SPDX-License-Identifier: Apache-2.0
// Tests of agents that outlive the feeder which started them, with real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/control/agent_testing.h"
#include "arcflow/control/text.h"

namespace arcflow::control {
namespace {

using agent_testing::AgentTest;
using agent_testing::Helper;
using agent_testing::Patience;
using nlohmann::json;
using testing_support::Eventually;

class AgentSideTest : public AgentTest {
 protected:
  json SideConfig(const std::string& mode, pid_t jvm) const {
    json config = Config(0, 1, mode);
    config["side"] = true;
    config["jvm_pid"] = jvm;
    return config;
  }
  void LaunchDetached(const std::string& mode, pid_t jvm) {
    StartCoordinator(1);
    FeederLink& link = Launch(SideConfig(mode, jvm));
    auto detached = link.Detach(Patience());
    ASSERT_TRUE(detached.ok()) << detached.status().ToString();
    ASSERT_TRUE(*detached);
    agent_ = link.pid();
    links_.clear();  // closes descriptor 3 and standard input, and does not end the agent
  }

  pid_t agent_ = 0;
};

TEST_F(AgentSideTest, TheResultComesThroughTheCoordinatorWhenTheFeederIsGone) {
  Helper jvm({"sleep"});
  LaunchDetached("ok", jvm.process.pid());
  const json result = NextEvent("result");
  EXPECT_EQ(result["last"], true);
  EXPECT_EQ(*Base64Decode(result["data"].get<std::string>()), "the payload|from 0");
  const json end = NextEvent("all_finished");
  EXPECT_EQ(end["status"], "ok");
  EXPECT_EQ(end["ranks"][0]["metrics"]["counters"]["user_step"], 7);
  jvm.process.SignalGroup(SIGKILL);
}

TEST_F(AgentSideTest, TheDeathOfTheExecutorEndsIt) {
  Helper jvm({"sleep"});
  LaunchDetached("sleep", jvm.process.pid());
  jvm.process.SignalGroup(SIGKILL);
  EXPECT_EQ(NextEvent("failed")["failure"]["cause"], "executor lost");
}

TEST_F(AgentSideTest, TheDeathOfTheCoordinatorEndsIt) {
  Helper jvm({"sleep"});
  LaunchDetached("ignore_term", jvm.process.pid());
  coordinator_.reset();
  EXPECT_TRUE(Eventually([&] { return mark_->Processes().size() <= 1; })) << mark_->Describe();
  jvm.process.SignalGroup(SIGKILL);
}

TEST_F(AgentSideTest, WhoFollowsItReapsItAndClearsUpAfterAKilledOne) {
  Helper jvm({"sleep"});
  StartCoordinator(1);
  FeederLink& link = Launch(SideConfig("children", jvm.process.pid()));
  ASSERT_TRUE(*link.Detach(Patience()));
  EXPECT_FALSE(link.Follow(Deadline::AfterSeconds(0.05)));
  ::kill(link.pid(), SIGKILL);
  EXPECT_TRUE(link.Follow(Patience()));
  EXPECT_EQ(NextEvent("failed")["failure"]["cause"], "agent lost");
  EXPECT_TRUE(Eventually([&] { return mark_->Processes().size() <= 1; })) << mark_->Describe();
  jvm.process.SignalGroup(SIGKILL);
}

TEST_F(AgentSideTest, WithoutAnExecutorToWatchItIsRefused) {
  StartCoordinator(1);
  EXPECT_EQ(FeederLink::Launch(ARC_AGENT, SideConfig("ok", 0).dump(), "").status().code(),
            Code::kInvalidArgument);
}

}  // namespace
}  // namespace arcflow::control
