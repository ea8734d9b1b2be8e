// SPDX-License-Identifier: Apache-2.0
// Which of the nodes that make no progress holds up the others.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/coordinator_state.h"
#include "arcflow/control/fields.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::chrono::seconds kDescribeTimeout{20};

}  // namespace

Status CoordinatorState::OnStalled(MemberState& member, const json& message) {
  Stall stall;
  bool over = false;
  Fields in(message, "stalled");
  in.Bool("over", &over, Need::kOptional)
      .Number("idle_s", &stall.idle_s, 0, 1e9, Need::kOptional)
      .Number("timeout_s", &stall.timeout_s, 0, 1e9, Need::kOptional)
      .Uint64("steps", &stall.steps, UINT64_MAX, Need::kOptional)
      .Bool("in_tensorflow", &stall.in_tensorflow, Need::kOptional);
  ARC_TRY(in.status());
  if (over) {
    member.stall.reset();
    return Status::Ok();
  }
  stall.since = Deadline::Clock::now();
  member.stall = stall;
  ArmStallTimer();
  return Status::Ok();
}

void CoordinatorState::ArmStallTimer() {
  if (stall_timer_ != 0) return;
  stall_timer_ = loop_.After(Seconds(options_.tuning.stall_settle_s), [this] {
    stall_timer_ = 0;
    DecideStall();
  });
}

/// In synchronous training all stall when one does. The one to blame is not inside a TensorFlow
/// operation (where it may wait for the others), or, when all are, has done the fewest steps. While
/// all suspects may be waiting, those who are not suspects yet are given their time.
void CoordinatorState::DecideStall() {
  if (phase_ != Phase::kRunning) return;
  MemberState* blamed = nullptr;
  bool all_seen = true;
  bool patient = true;
  const auto order = [](const MemberState& m) {
    return std::tuple(m.stall->in_tensorflow, m.stall->steps, -m.stall->idle_s);
  };
  for (auto& [rank, member] : members_) {
    const bool serves = member->join.role == "ps" || member->join.role == "evaluator";
    if (member->done || member->left || member->failed || barrier_.Waits(rank) || serves) continue;
    if (!member->stall) {
      all_seen = false;
      continue;
    }
    patient = patient && SecondsSince(member->stall->since) < member->stall->timeout_s;
    if (blamed == nullptr || order(*member) < order(*blamed)) blamed = member.get();
  }
  if (blamed == nullptr) return;
  if (blamed->stall->in_tensorflow && !all_seen && patient) return ArmStallTimer();
  SendOrAbort(*blamed->peer->channel, {{"op", "describe"}});
  const int rank = blamed->join.rank;
  const std::string idle = Tenths(blamed->stall->idle_s);
  loop_.After(kDescribeTimeout, [this, rank, idle] {
    MemberState& member = *members_.at(rank);
    if (phase_ != Phase::kRunning || member.failed || !member.stall) return;
    FailMember(member, cause::kStalled,
               "no progress for " + idle + " s, and its agent could not describe it",
               WallSeconds());
  });
}

}  // namespace arcflow::control
