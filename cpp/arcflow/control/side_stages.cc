// SPDX-License-Identifier: Apache-2.0
// SideServer: feeds that rows go to, stages that hold rows of attempts, and which of them count.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/side_server.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

/// A node that has not taken a row for so long may wait for another whose rows would come behind
/// ours: then rows go to disk rather than that both wait.
constexpr std::chrono::seconds kReadsOn{2};

}  // namespace

Status SideServer::OpenTarget(const std::string& name, const feed::FeedOptions& options) {
  const auto found = targets_.find(name);
  if (found != targets_.end()) {
    if (found->second.options.schema.ToJson() == options.schema.ToJson()) return Status::Ok();
    return InvalidArgument("feed '" + name + "' has another schema in this run");
  }
  if (targets_.size() >= 200) return ResourceExhausted("a run can have 200 feeds");
  ARC_TRY(service_.AddFeed(name, options));
  targets_[name].options = options;
  callbacks_.opened(name, options);
  if (ending_) EndTarget(name);
  for (auto& [id, session] : sessions_) {
    if (session.awaits == name) TellFeed(session, name);
  }
  return Status::Ok();
}

void SideServer::EndTarget(const std::string& name) {
  const auto found = targets_.find(name);
  if (found == targets_.end() || std::exchange(found->second.ended, true)) return;
  if (Status status = service_.EndFeed(name); !status.ok())
    Log(LogLevel::kError, "a feed cannot be ended: " + status.ToString());
}

bool SideServer::MustWait(const Client& client) const {
  if (client.feed.cache != feed::Cache::kNone) return false;  // rows stay: to wait makes no room
  if (service_.DepthBytes(client.target) <= options_.feed_memory_bytes / 2) return false;
  return std::chrono::steady_clock::now() - service_.LastRead(client.target) < kReadsOn;
}

/// Lets a task in, refuses it, or leaves it waiting.
void SideServer::AdmitOne(Client& client) {
  if (node_ended_) {
    return Refuse(client, client.infers ? FailedPrecondition("the node has returned and serves no "
                                                             "requests any more")
                                        : Cancelled("the node has returned"));
  }
  if (ending_) return Refuse(client, FailedPrecondition("the run is being stopped"));
  if (client.infers) {
    if (server_) {
      client.waits = false;
      client.attached = true;
      return Send(client, {{"op", "attached"}, {"stage", ""}});
    }
    if (std::chrono::steady_clock::now() < client.deadline) return;
    return Refuse(
        client, FailedPrecondition("the node serves no requests: call ctx.serve(fn), or loop over "
                                   "ctx.requests(), in the function that start() runs"));
  }
  if (Status status = OpenTarget(client.target, client.feed); !status.ok())
    return Refuse(client, status);
  const Target& target = targets_.at(client.target);
  if (target.enough) return Refuse(client, Cancelled("the node has enough"));
  if (target.ended)
    return Refuse(client, FailedPrecondition("feed '" + client.target + "' has ended"));
  if (MustWait(client)) return;
  client.waits = false;
  feed::FeedOptions options = client.feed;
  if (options.cache == feed::Cache::kNone) options.cache = feed::Cache::kAuto;
  const std::string stage = client.target + " (" + client.job + ", partition " +
                            std::to_string(client.partition) + ", attempt " +
                            std::to_string(client.attempt) + ")";
  if (Status status = service_.AddFeed(stage, std::move(options)); !status.ok())
    return Refuse(client, status);
  client.stage = stage;
  client.attached = true;
  Send(client, {{"op", "attached"}, {"stage", stage}});
}

Status SideServer::OnSeal(Client& client) {
  if (client.infers || client.stage.empty()) return InvalidArgument("seal without a stage");
  if (!std::exchange(client.sealed, true)) {
    ARC_TRY(service_.EndFeed(client.stage));
    writers_.erase(client.stage);
    stages_.push_back(
        {client.stage, client.target, client.job, client.partition, client.attempt, false});
  }
  Send(client, {{"op", "sealed"}, {"rows", service_.Local(client.stage).rows}});
  return Status::Ok();
}

void SideServer::SpliceAndForget(const Stage& stage) {
  // A feed that has ended meanwhile (the node has enough) takes no more.
  const auto target = targets_.find(stage.target);
  if (target != targets_.end() && !target->second.ended) {
    if (Status status = service_.Splice(stage.name, stage.target); !status.ok())
      Log(LogLevel::kError, "rows were lost: " + status.ToString());
  }
  service_.RemoveFeed(stage.name);
}

void SideServer::OnClaimAnswer(const json& message) {
  std::string job;
  std::int64_t partition = 0;
  std::int64_t attempt = 0;
  bool granted = false;
  bool whole = false;
  Fields in(message, "claim");
  in.String("job", &job, kMaxNameBytes, Need::kRequired)
      .Int64("partition", &partition, 0, INT64_MAX, Need::kRequired)
      .Int64("attempt", &attempt, 0, INT64_MAX, Need::kRequired)
      .Bool("granted", &granted, Need::kRequired)
      .Bool("whole", &whole, Need::kRequired);
  if (!in.ok())
    return Log(LogLevel::kError, "a claim's answer is broken: " + in.status().ToString());
  const auto same = [&](const auto& each) {
    return each.job == job && each.partition == partition && each.attempt == attempt;
  };
  const auto stage = std::find_if(stages_.begin(), stages_.end(), same);
  if (stage != stages_.end()) {
    if (granted && whole) {
      stage->reserved = true;
    } else {
      const Stage decided = *stage;
      stages_.erase(stage);
      granted ? SpliceAndForget(decided) : service_.RemoveFeed(decided.name);
    }
  }
  for (auto& [id, client] : clients_) {
    if (client.sealed && same(client)) {
      client.stage.clear();
      Send(client, {{"op", "decided"}, {"granted", granted}});
    }
  }
}

void SideServer::Publish(const std::string& job) {
  std::vector<Stage> due;
  std::copy_if(stages_.begin(), stages_.end(), std::back_inserter(due),
               [&](const Stage& each) { return each.job == job && each.reserved; });
  std::erase_if(stages_, [&](const Stage& each) { return each.job == job && each.reserved; });
  std::sort(due.begin(), due.end(),
            [](const Stage& a, const Stage& b) { return a.partition < b.partition; });
  for (const Stage& stage : due) SpliceAndForget(stage);
}

/// What is left of a job never counts.
void SideServer::Over(const std::string& job) {
  std::vector<int> stragglers;
  for (const auto& [id, client] : clients_) {
    if (client.job == job) stragglers.push_back(id);
  }
  for (const int id : stragglers) Drop(id);
  for (const Stage& stage : stages_) {
    if (stage.job == job) service_.RemoveFeed(stage.name);
  }
  std::erase_if(stages_, [&](const Stage& each) { return each.job == job; });
}

void SideServer::EndAll() {
  ending_ = true;
  for (const auto& [name, target] : targets_) EndTarget(name);
  for (auto& [id, session] : sessions_) {
    if (!session.awaits.empty()) TellEnd(session);
  }
  Admit();  // refuses who waits
  NextRequest();
}

void SideServer::OnCoordinator(const json& message) {
  if (closed_) return;
  if (message.value("op", "") == "claim") return OnClaimAnswer(message);
  std::string act;
  std::string job;
  std::string feed;
  std::string cache = "none";
  Fields in(message, "side");
  in.String("act", &act, kMaxNameBytes, Need::kRequired)
      .String("job", &job, kMaxNameBytes, Need::kOptional)
      .String("feed", &feed, kMaxNameBytes, Need::kOptional)
      .String("cache", &cache, kMaxNameBytes, Need::kOptional);
  Status status = in.status();
  if (status.ok() && act == "open") {
    const auto schema = message.find("schema");
    auto parsed = columnar::Schema::FromJson(schema == message.end() ? json() : *schema);
    auto mode = feed::CacheFromName(cache);
    status = parsed.ok() ? mode.status() : parsed.status();
    if (status.ok()) status = OpenTarget(feed, {std::move(*parsed), *mode});
  }
  if (!status.ok()) Log(LogLevel::kError, "the driver was not understood: " + status.ToString());
  if (act == "end") EndTarget(feed);
  if (act == "end_all") EndAll();
  if (act == "publish") Publish(job);
  if (act == "over") Over(job);
}

}  // namespace arcflow::control
