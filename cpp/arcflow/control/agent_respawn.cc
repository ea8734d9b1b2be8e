// SPDX-License-Identifier: Apache-2.0
// A node that only serves others (a worker of parameter servers) may die and be started again: who
// uses it tries again, and the run goes on. What it was waiting at, the new one waits at.
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/agent.h"
#include "arcflow/control/coordinator_internal.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

/// Whether a node died of something that the next one need not die of.
bool MayHeal(const Failure& failure) {
  return failure.cause == cause::kSignal || failure.cause == cause::kExit ||
         failure.cause == cause::kOutOfMemory;
}

}  // namespace

/// True when the node is started again, so that its death is no failure of the run.
bool Agent::Respawn(const Failure& failure) {
  const bool serving = !config_.serving_at.empty() && barrier_ == config_.serving_at;
  if (phase_ != Phase::kRunning || failure_ || verdict_ || feeder_gone_ || session_lost_ ||
      !serving || respawned_ >= config_.respawns || !MayHeal(failure)) {
    return false;
  }
  ++respawned_;
  inspector_.reset();
  busy_.clear();
  // Not from within the node's own callback.
  loop_->Post([this, failure] { StartAgain(failure); });
  return true;
}

void Agent::StartAgain(const Failure& failure) {
  if (phase_ != Phase::kRunning) return Advance();
  const std::string what = config_.role + ":" + std::to_string(config_.index) + " on " +
                           config_.host + " died (" + failure.message + "); it is started again, " +
                           std::to_string(respawned_) + " of " + std::to_string(config_.respawns) +
                           " times";
  Log(LogLevel::kWarning, what);
  session_->Send({{"op", "log"}, {"line", what}});
  if (Status status = StartNode(cluster_); !status.ok()) {
    Failure launch;
    launch.cause = cause::kLaunch;
    launch.type = CodeName(status.code());
    launch.message = "a node that died cannot be started again: " + std::string(status.message());
    Fail(std::move(launch), kAtOnce_s);
  }
}

void Agent::OnNodeBarrier(const json& packet) {
  const std::string name = packet.value("name", "barrier");
  if (respawned_ > 0 && name == barrier_) {  // the node before it waits there for both
    barrier_id_ = packet.value("id", std::uint64_t{0});
    if (early_answer_) OnBarrierAnswer(*std::exchange(early_answer_, nullptr));
    return;
  }
  json message = packet;
  message["op"] = "barrier";
  barrier_ = name;
  barrier_id_.reset();
  session_->Send(message);
}

void Agent::OnBarrierAnswer(json answer) {
  if (respawned_ > 0 && !barrier_id_ && barrier_ == config_.serving_at) {
    early_answer_ = std::make_unique<json>(std::move(answer));  // the new node is not there yet
    return;
  }
  barrier_.clear();
  if (barrier_id_) answer["id"] = *barrier_id_;
  barrier_id_.reset();
  if (node_) node_->AnswerBarrier(answer);
}

}  // namespace arcflow::control
