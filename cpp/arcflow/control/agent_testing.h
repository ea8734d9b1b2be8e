// SPDX-License-Identifier: Apache-2.0
// The fixture of tests that run whole agents, with a helper executable as node, feeder and
// coordinator.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/control/control_testing.h"
#include "arcflow/control/coordinator.h"
#include "arcflow/control/feeder_link.h"
#include "arcflow/control/held_port.h"
#include "arcflow/control/process.h"

namespace arcflow::control::agent_testing {

using nlohmann::json;
using testing_support::AgentConfigJson;
using testing_support::Eventually;
using testing_support::kPatience_s;
using testing_support::Mark;
using testing_support::OpenDescriptors;
using testing_support::Patience;

/// control_helper in a process of its own, with its standard output.
struct Helper {
  ChildProcess process;
  Fd output;
  std::string text;

  explicit Helper(const std::vector<std::string>& arguments) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    output = Fd(ends[0]);
    const Fd in(ends[1]);
    SpawnOptions options;
    options.file = ARC_HELPER;
    options.argv = {"control_helper"};
    options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
    options.env = EnvironmentWith({}, {});
    options.fds = {{in.get(), 1}};
    auto spawned = ChildProcess::Spawn(options);
    EXPECT_TRUE(spawned.ok()) << spawned.status().ToString();
    process = std::move(*spawned);
  }
  /// The next line it printed; "" at its end.
  std::string Line() {
    std::size_t end;
    while ((end = text.find('\n')) == std::string::npos) {
      char buffer[4096];
      const ssize_t n = ::read(output.get(), buffer, sizeof buffer);
      if (n <= 0) return "";
      text.append(buffer, static_cast<std::size_t>(n));
    }
    std::string line = text.substr(0, end);
    text.erase(0, end + 1);
    return line;
  }
};

class AgentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    mark_ = std::make_unique<Mark>();
    descriptors_ = OpenDescriptors();
  }
  void TearDown() override {
    links_.clear();
    coordinator_.reset();
    EXPECT_TRUE(Eventually([&] { return mark_->Processes().empty(); })) << mark_->Describe();
    EXPECT_TRUE(Eventually([&] { return OpenDescriptors() == descriptors_; }))
        << OpenDescriptors() << " descriptors, " << descriptors_ << " before";
  }

  void StartCoordinator(int size, const CoordinatorTuning& tuning = {}) {
    CoordinatorOptions options;
    options.tuning = tuning;
    options.secret = testing_support::Secret();
    options.run_id = "test";
    options.size = size;
    auto started = Coordinator::Start(options);
    ASSERT_TRUE(started.ok()) << started.status().ToString();
    coordinator_ = std::move(*started);
    port_ = coordinator_->address().port;
  }
  json Config(int rank, int size, const std::string& mode) const {
    json config = AgentConfigJson(rank, size, ARC_HELPER, mode);
    config["coordinator"] = {{"host", "127.0.0.1"}, {"port", port_}};
    return config;
  }
  FeederLink& Launch(const json& config) {
    auto link = FeederLink::Launch(ARC_AGENT, config.dump(), "the payload");
    EXPECT_TRUE(link.ok()) << link.status().ToString();
    links_.push_back(std::move(*link));
    return *links_.back();
  }
  /// One agent a mode, rank by rank, and a coordinator.
  void LaunchAll(const std::vector<std::string>& modes) {
    const int size = static_cast<int>(modes.size());
    StartCoordinator(size);
    for (int rank = 0; rank < size; ++rank)
      Launch(Config(rank, size, modes[static_cast<std::size_t>(rank)]));
  }
  json NextEvent(const std::string& name) {
    const Deadline deadline = Patience();
    for (;;) {
      auto event = coordinator_->NextEvent(deadline);
      if (!event.ok() || !*event) {
        ADD_FAILURE() << "no event " << name;
        return json::object();
      }
      json parsed = json::parse(**event);
      if (parsed["event"] == name) return parsed;
    }
  }
  json OutcomeOf(FeederLink& link, std::string* result = nullptr) {
    auto outcome = link.WaitOutcome(Patience());
    if (!outcome.ok() || !*outcome) {
      ADD_FAILURE() << "no outcome: " << outcome.status().ToString();
      return json::object();
    }
    if (result != nullptr) *result = (*outcome)->result;
    return json::parse((*outcome)->json);
  }
  /// All outcomes say that this rank failed for this cause; returns the failure.
  Failure ExpectFailure(int rank, const std::string& cause) {
    Failure failure;
    for (auto& link : links_) {
      const json outcome = OutcomeOf(*link);
      if (!outcome.contains("failure") || outcome["failure"].is_null()) {
        ADD_FAILURE() << "no failure in " << outcome.dump();
        continue;
      }
      EXPECT_EQ(outcome["status"], "failed");
      failure = Failure::FromJson(outcome["failure"]).value();
      EXPECT_EQ(failure.rank, rank) << failure.Summary();
      EXPECT_EQ(failure.cause, cause) << failure.Summary();
    }
    return failure;
  }
  /// Waits until that node has its configuration.
  void AwaitNode(std::size_t rank) {
    while (links_[rank]->node_pid() == 0) {
      auto outcome = links_[rank]->WaitOutcome(Deadline::AfterSeconds(0.05));
      ASSERT_TRUE(outcome.ok() && !*outcome) << "the node ended early";
    }
  }

  std::unique_ptr<Mark> mark_;
  std::size_t descriptors_ = 0;
  std::unique_ptr<Coordinator> coordinator_;
  std::uint16_t port_ = 0;
  std::vector<std::unique_ptr<FeederLink>> links_;
};

}  // namespace arcflow::control::agent_testing
