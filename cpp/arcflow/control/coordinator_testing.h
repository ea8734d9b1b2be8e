// SPDX-License-Identifier: Apache-2.0
// The fixture of the coordinator's tests: agents that are only messages.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/control/control_testing.h"
#include "arcflow/control/coordinator.h"
#include "arcflow/control/coordinator_state.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/loop.h"

namespace arcflow::control::coordinator_testing {

using nlohmann::json;
using testing_support::kPatience_s;
using testing_support::Secret;

/// The messages of one connection, and a way to send.
class FakeAgent {
 public:
  FakeAgent(net::Loop& loop, const HostPort& address, const std::string& secret = Secret(),
            bool encrypt = false) {
    net::ChannelCallbacks callbacks;
    callbacks.on_message = [inbox = inbox_](json& message) { inbox->Push(std::move(message)); };
    callbacks.on_closed = [inbox = inbox_](const Status& why) {
      inbox->Push({{"op", "closed"}, {"code", CodeName(why.code())}, {"message", why.message()}});
    };
    channel_ = net::Channel::Connect(loop, address.host, address.port,
                                     ControlChannelOptions(secret, encrypt), std::move(callbacks),
                                     Deadline::AfterSeconds(kPatience_s));
  }
  ~FakeAgent() { channel_->Abort(Status::Ok()); }

  void Send(const json& message) { EXPECT_TRUE(channel_->Send(message).ok()) << message.dump(); }
  void Join(int rank, json changes = json::object()) {
    control::Join join;
    join.run_id = "test";
    join.rank = rank;
    join.role = rank == 0 ? "chief" : "worker";
    join.index = rank == 0 ? 0 : rank - 1;
    join.host = "host" + std::to_string(rank);
    join.port = static_cast<std::uint16_t>(4000 + rank);
    join.pid = 100 + rank;
    join.versions = {{"python", "3.11.2"}, {"keras", "3.15.1"}};
    json message = join.ToJson();
    message["op"] = "join";
    message.update(changes);
    Send(message);
  }
  /// The next message with that op; others before it are dropped. {} after a while.
  json Next(const std::string& op) { return inbox_->Next(op); }
  void Drop() { channel_->Abort(Status::Ok()); }
  void Fail(const std::string& cause, bool peer_loss, const std::string& message = "it broke",
            double time_s = 0) {
    Failure failure;
    failure.time_s = time_s;
    failure.cause = cause;
    failure.message = message;
    failure.peer_loss = peer_loss;
    failure.rank = 77;  // a lie; the coordinator knows better
    Send({{"op", "failed"}, {"failure", failure.ToJson()}});
  }

 private:
  struct Inbox {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<json> messages;
    void Push(json message) {
      const std::lock_guard lock(mutex);
      messages.push_back(std::move(message));
      changed.notify_all();
    }
    json Next(const std::string& op) {
      const Deadline deadline = Deadline::AfterSeconds(kPatience_s);
      std::unique_lock lock(mutex);
      for (;;) {
        while (!messages.empty()) {
          json message = std::move(messages.front());
          messages.pop_front();
          if (message["op"] == op) return message;
        }
        if (changed.wait_until(lock, deadline.at()) == std::cv_status::timeout) {
          ADD_FAILURE() << "no " << op;
          return json::object();
        }
      }
    }
  };
  std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::shared_ptr<net::Channel> channel_;
};

class CoordinatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    loop_ = net::Loop::Create().value();
    ASSERT_TRUE(loop_->StartThread().ok());
  }
  /// Fake agents do not beat by themselves, and a busy machine may be slow: only a test that is
  /// about time limits it.
  static CoordinatorTuning Patient() {
    CoordinatorTuning tuning;
    tuning.heartbeat_timeout_s = 10 * kPatience_s;
    tuning.join_timeout_s = 10 * kPatience_s;
    return tuning;
  }
  void Start(int size, CoordinatorTuning tuning = Patient()) {
    CoordinatorOptions options;
    options.secret = Secret();
    options.run_id = "test";
    options.size = size;
    options.tuning = tuning;
    auto started = Coordinator::Start(options);
    ASSERT_TRUE(started.ok()) << started.status().ToString();
    sut_ = std::move(*started);
  }
  std::unique_ptr<FakeAgent> Connect() {
    return std::make_unique<FakeAgent>(*loop_, sut_->address());
  }
  /// All ranks join and hear the start.
  std::vector<std::unique_ptr<FakeAgent>> StartRun(int size, CoordinatorTuning tuning = Patient()) {
    Start(size, tuning);
    std::vector<std::unique_ptr<FakeAgent>> agents;
    for (int rank = 0; rank < size; ++rank) {
      agents.push_back(Connect());
      agents.back()->Join(rank);
    }
    for (auto& agent : agents)
      EXPECT_EQ(agent->Next("start")["cluster"].size(), static_cast<std::size_t>(size));
    return agents;
  }
  json NextEvent(const std::string& name) {
    const Deadline deadline = Deadline::AfterSeconds(kPatience_s);
    for (;;) {
      auto event = sut_->NextEvent(deadline);
      if (!event.ok() || !*event) {
        ADD_FAILURE() << "no event " << name;
        return json::object();
      }
      json parsed = json::parse(**event);
      if (parsed["event"] == name) return parsed;
    }
  }
  static Failure FailureOf(const json& object) {
    return Failure::FromJson(object["failure"]).value();
  }

  std::unique_ptr<net::Loop> loop_;
  std::unique_ptr<Coordinator> sut_;
};

}  // namespace arcflow::control::coordinator_testing
