// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any sequence of messages from agents that know the secret, in any order, from
// several connections. The coordinator must survive, give one verdict and end once.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arcflow/control/coordinator_state.h"
#include "arcflow/control/event_queue.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/frame.h"
#include "arcflow/net/loop.h"

namespace {

using arcflow::Code;
using arcflow::Deadline;
using arcflow::Status;
using arcflow::control::CoordinatorOptions;
using arcflow::control::CoordinatorState;
using arcflow::control::EventQueue;
using nlohmann::json;

constexpr int kAgents = 3;
constexpr std::size_t kMaxMessages = 64;

/// A connection that is only a memory of having been closed; its callbacks run when asked to.
class FakeChannel : public arcflow::net::Channel {
 public:
  Status Send(const json& message) override {
    const auto frame = arcflow::net::EncodeFrame(message, std::size_t{8} << 20);
    return frame.ok() ? Count() : frame.status();
  }
  Status SendFrame(arcflow::net::SharedFrame /*frame*/) override { return Count(); }
  Status SendRaw(std::string /*head*/, std::span<const std::byte> /*bytes*/,
                 std::shared_ptr<const void> /*keep*/) override {
    return Count();
  }
  void Close() override { closing_ = true; }
  void Abort(Status /*why*/) override { closing_ = true; }
  std::string peer() const override { return "fuzz"; }
  std::string local_host() const override { return "fuzz"; }
  std::size_t queued_bytes() const override { return 0; }
  bool closing() const { return closing_; }

 private:
  Status Count() { return closing_ ? arcflow::Unavailable("closed") : Status::Ok(); }
  bool closing_ = false;
};

struct Connection {
  std::shared_ptr<FakeChannel> channel;
  arcflow::net::ChannelCallbacks callbacks;
};

Connection Open(CoordinatorState& state) {
  Connection connection{std::make_shared<FakeChannel>(), {}};
  connection.callbacks = state.OnAccepted(connection.channel);
  return connection;
}

void Close(CoordinatorState& state, Connection* connection) {
  connection->callbacks.on_closed(arcflow::Unavailable("gone"));
  *connection = Open(state);
}

json JoinOf(int rank) {
  return {{"op", "join"},  {"run_id", "fuzz"}, {"rank", rank}, {"role", "worker"},
          {"index", rank}, {"host", "h"},      {"port", 1},    {"versions", json::object()}};
}

/// Every verdict comes once, and nothing after the last event.
void CheckEvents(EventQueue& events) {
  int failed = 0;
  int finished = 0;
  for (;;) {
    const auto event = events.Next(Deadline::After(std::chrono::nanoseconds(0)));
    if (!event.ok() || !*event) break;
    if (finished > 0) std::abort();
    const json parsed = json::parse(**event);
    failed += parsed["event"] == "failed" ? 1 : 0;
    finished += parsed["event"] == "all_finished" ? 1 : 0;
  }
  if (failed > 1 || finished > 1) std::abort();
}

}  // namespace

/// Input: lines "<digit><JSON>". The digit is the connection; "+" instead of JSON joins it in good
/// form, "-" closes it, "!" is the driver's stop. A first line of "j" has all agents joined.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const auto loop = std::move(arcflow::net::Loop::Create()).value();  // never runs: no timer
  EventQueue events;
  CoordinatorOptions options;
  options.run_id = "fuzz";
  options.size = kAgents;
  CoordinatorState state(options, *loop, events);
  std::vector<Connection> connections;
  for (int i = 0; i < kAgents + 1; ++i) connections.push_back(Open(state));
  if (input.substr(0, 2) == "j\n") {
    input.remove_prefix(2);
    for (int rank = 0; rank < kAgents; ++rank) {
      json join = JoinOf(rank);
      connections[static_cast<std::size_t>(rank)].callbacks.on_message(join);
    }
  }
  for (std::size_t n = 0; !input.empty() && n < kMaxMessages; ++n) {
    const std::string_view line = input.substr(0, input.find('\n'));
    input.remove_prefix(std::min(input.size(), line.size() + 1));
    if (line.size() < 2) continue;
    const std::size_t which = static_cast<std::size_t>(line[0]) % connections.size();
    Connection& at = connections[which];
    const std::string_view body = line.substr(1);
    if (body == "-") {
      Close(state, &at);
    } else if (body == "!") {
      state.Stop(Code::kCancelled, "enough");
      state.RequestLog(static_cast<int>(which), 5);
    } else {
      json message = body == "+" ? JoinOf(static_cast<int>(which))
                                 : json::parse(body, nullptr, /*allow_exceptions=*/false);
      if (!message.is_object() || !message.contains("op") || !message["op"].is_string()) continue;
      if (!at.channel->closing()) at.callbacks.on_message(message);
    }
    if (at.channel->closing()) Close(state, &at);
  }
  for (Connection& each : connections) each.callbacks.on_closed(arcflow::Unavailable("the end"));
  state.End();
  CheckEvents(events);
  return 0;
}
