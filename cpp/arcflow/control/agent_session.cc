// SPDX-License-Identifier: Apache-2.0
// Messages between agent and coordinator, seen from the agent.
#include "arcflow/control/agent_session.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

Failure Lost(const char* cause, std::string message) {
  Failure failure;
  failure.cause = cause;
  failure.message = std::move(message);
  return failure;
}

/// {"rows": […], "ended": […]} → one entry a rank.
Result<std::vector<feed::RankRows>> RanksFromJson(const json& object) {
  const auto rows = object.find("rows");
  const auto ended = object.find("ended");
  if (rows == object.end() || ended == object.end() || !rows->is_array() || !ended->is_array() ||
      rows->size() != ended->size() || rows->size() > static_cast<std::size_t>(kMaxSize)) {
    return InvalidArgument("feeds: rows and ended are not lists of one length");
  }
  std::vector<feed::RankRows> ranks;
  for (std::size_t i = 0; i < rows->size(); ++i) {
    if (!(*rows)[i].is_number_unsigned() || !(*ended)[i].is_boolean())
      return InvalidArgument("feeds: wrong types");
    ranks.push_back(feed::RankRows{(*rows)[i].get<std::uint64_t>(), (*ended)[i].get<bool>()});
  }
  return ranks;
}

}  // namespace

struct AgentSession::State {
  Callbacks callbacks;
  std::shared_ptr<net::Channel> channel;
  HostPort address;
  bool alive = true;  // the session object exists
  bool open = false;
  bool settled = false;  // a verdict or a refusal came, or we said bye

  void OnMessage(const json& message);
  Status Dispatch(const std::string& op, const json& message);
  Status OnStart(const json& message);
  Status OnRows(const json& message);
  void OnClosed(const Status& why);
};

AgentSession::AgentSession(net::Loop& loop, Callbacks callbacks)
    : loop_(loop), state_(std::make_shared<State>()) {
  state_->callbacks = std::move(callbacks);
}

AgentSession::~AgentSession() {
  state_->alive = false;
  if (state_->channel && state_->open) state_->channel->Close();
}

bool AgentSession::open() const { return state_->open; }

void AgentSession::Connect(const HostPort& coordinator, net::ChannelOptions options,
                           double timeout_s, const Join& join) {
  state_->address = coordinator;
  state_->open = true;
  net::ChannelCallbacks callbacks;
  callbacks.on_message = [state = state_](json& message) {
    if (state->alive) state->OnMessage(message);
  };
  callbacks.on_closed = [state = state_](const Status& why) {
    state->open = false;
    if (state->alive) state->OnClosed(why);
  };
  state_->channel = net::Channel::Connect(
      loop_, coordinator.host, coordinator.port, std::move(options), std::move(callbacks),
      Deadline::AfterSeconds(timeout_s), /*retry_refused=*/true);
  json message = join.ToJson();
  message["op"] = "join";
  Send(message);
}

void AgentSession::Send(const json& message) {
  if (!state_->open) return;
  if (Status status = state_->channel->Send(message);
      !status.ok() && status.code() != Code::kUnavailable) {
    Log(LogLevel::kWarning, "a message to the coordinator was dropped: " + status.ToString());
  }
}

void AgentSession::Bye(const json& message) {
  state_->settled = true;
  if (!state_->open) return;
  Send(message);
  state_->channel->Close();
}

void AgentSession::State::OnMessage(const json& message) {
  const std::string op = message.value("op", "");
  if (Status status = Dispatch(op, message); !status.ok()) {
    channel->Abort(status.WithContext("the coordinator broke the protocol"));
  }
}

Status AgentSession::State::Dispatch(const std::string& op, const json& message) {
  if (op == "start") return OnStart(message);
  if (op == "feeds") return OnRows(message);
  if (op == "barrier") {
    callbacks.on_barrier(message);
    return Status::Ok();
  }
  if (op == "ping") {
    callbacks.on_ping();
    return Status::Ok();
  }
  if (op == "side" || op == "claim") {
    if (callbacks.on_side) callbacks.on_side(message);
    return Status::Ok();
  }
  if (op == "hand") return callbacks.on_hand ? callbacks.on_hand(message) : Status::Ok();
  if (op == "describe") {
    callbacks.on_describe();
    return Status::Ok();
  }
  if (op == "lines") {
    int lines = 0;
    Fields in(message, "lines");
    in.Int("lines", &lines, 0, INT32_MAX, Need::kRequired);
    ARC_TRY(in.status());
    callbacks.on_lines(lines);
    return Status::Ok();
  }
  if (op == "reject") {
    std::string text;
    Fields(message, "reject").Text("message", &text, kMaxTextBytes);
    if (!std::exchange(settled, true)) callbacks.on_lost(Lost(cause::kRejected, text));
    return Status::Ok();
  }
  if (op == "stop") {
    ARC_ASSIGN(Verdict verdict, Verdict::FromJson(message));
    if (!std::exchange(settled, true)) callbacks.on_verdict(std::move(verdict));
    return Status::Ok();
  }
  return InvalidArgument("unknown message " + CleanText(op, 64));
}

Status AgentSession::State::OnStart(const json& message) {
  const auto list = message.find("cluster");
  if (list == message.end() || !list->is_array() ||
      list->size() > static_cast<std::size_t>(kMaxSize)) {
    return InvalidArgument("start.cluster is not a list");
  }
  std::vector<Member> cluster;
  for (const json& entry : *list) {
    ARC_ASSIGN(Member member, Member::FromJson(entry));
    cluster.push_back(std::move(member));
  }
  callbacks.on_start(std::move(cluster));
  return Status::Ok();
}

Status AgentSession::State::OnRows(const json& message) {
  const auto feeds = message.find("feeds");
  if (feeds == message.end() || !feeds->is_object())
    return InvalidArgument("feeds.feeds is not an object");
  for (const auto& [name, value] : feeds->items()) {
    ARC_ASSIGN(const auto ranks, RanksFromJson(value));
    callbacks.on_rows(name, ranks);
  }
  return Status::Ok();
}

void AgentSession::State::OnClosed(const Status& why) {
  if (!std::exchange(settled, true)) {
    const std::string where = address.host + ":" + std::to_string(address.port);
    callbacks.on_lost(Lost(cause::kDriverLost, "no connection to the coordinator at " + where +
                                                   ": " + std::string(why.message())));
  }
  callbacks.on_closed();
}

}  // namespace arcflow::control
