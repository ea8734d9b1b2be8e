// SPDX-License-Identifier: Apache-2.0
// How a run ends: failures settle into one cause, everybody is told, everybody leaves.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/cause_order.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/coordinator_state.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::size_t kMaxOthers = 16;  // of so many failures, how many are told

}  // namespace

/// A moment of the member's clock by ours; now for one that cannot be.
double CoordinatorState::TimeHere(const MemberState& member, double time_s) {
  const double now = WallSeconds();
  if (time_s <= 0) return now;
  const double offset = member.clock_offset_s == kUnknownOffset ? 0 : member.clock_offset_s;
  return std::min(time_s + offset, now);
}

Status CoordinatorState::OnFailed(MemberState& member, const json& message) {
  const auto it = message.find("failure");
  if (it == message.end()) return InvalidArgument("failed.failure is missing");
  ARC_ASSIGN(Failure failure, Failure::FromJson(*it));
  failure.rank = member.join.rank;  // whatever it says
  failure.role = member.join.role;
  failure.host = member.join.host;
  failure.time_s = TimeHere(member, failure.time_s);
  member.failed = true;
  AnswerBarrier(barrier_.Leave(member.join.rank, "failed"));
  Fail(std::move(failure));
  return Status::Ok();
}

Status CoordinatorState::OnDone(MemberState& member, json& message) {
  if (member.done) return InvalidArgument("done twice");
  member.done = true;
  member.metrics = std::move(message["metrics"]);
  member.rows = std::move(message["rows"]);
  Emit(EventQueue::Kind::kPlain,
       {{"event", "finished"}, {"rank", member.join.rank}, {"status", "ok"}});
  AnswerBarrier(barrier_.Leave(member.join.rank, "has finished"));
  const bool all =
      static_cast<int>(members_.size()) == options_.size &&
      std::all_of(members_.begin(), members_.end(), [](const auto& m) { return m.second->done; });
  if (all && phase_ == Phase::kRunning) Conclude(Verdict{Code::kOk, "", std::nullopt});
  return Status::Ok();
}

void CoordinatorState::OnBye(MemberState& member, json& message) {
  if (const auto log = message.find("log"); log != message.end() && log->is_array()) {
    json lines{{"lines", std::move(*log)}};
    (void)!OnLines(member, lines).ok();  // a run does not end worse for want of them
  }
  if (!member.done) {
    member.metrics = std::move(message["metrics"]);
    member.rows = std::move(message["rows"]);
  }
  const bool before_the_end = phase_ == Phase::kJoining || phase_ == Phase::kRunning;
  if (before_the_end && !member.failed) {
    FailMember(member, cause::kAgentLost, "the agent left before the end of the run",
               WallSeconds());
  }
  Leave(member, member.failed ? "failed" : member.done ? "ok" : "stopped");
  member.peer->channel->Close();
}

void CoordinatorState::OnClosed(const PeerPtr& peer, const Status& why) {
  if (MemberState* member = peer->member; member != nullptr && !member->left) {
    const bool lost = phase_ != Phase::kStopping && phase_ != Phase::kOver && !member->failed;
    if (lost)
      FailMember(*member, cause::kAgentLost,
                 "the connection to the agent broke: " + std::string(why.message()), WallSeconds());
    Leave(*member, "lost");
  }
  peers_.erase(peer.get());
  NoteQuiet();
}

void CoordinatorState::FailMember(MemberState& member, const std::string& cause,
                                  const std::string& message, double time_s) {
  Failure failure;
  failure.rank = member.join.rank;
  failure.role = member.join.role;
  failure.host = member.join.host;
  failure.cause = cause;
  failure.message = message;
  failure.time_s = time_s;
  member.failed = true;
  AnswerBarrier(barrier_.Leave(member.join.rank, "failed"));
  Fail(std::move(failure));
}

void CoordinatorState::Fail(Failure failure) {
  if (phase_ == Phase::kStopping || phase_ == Phase::kOver) return;  // a consequence of the stop
  failures_.push_back(std::move(failure));
  if (phase_ != Phase::kSettling) {
    phase_ = Phase::kSettling;
    loop_.CancelTimer(join_timer_);
    settle_timer_ = loop_.After(Seconds(options_.tuning.settle_s), [this] { Decide(true); });
  }
  const bool nobody_left = static_cast<int>(members_.size()) == options_.size &&
                           std::all_of(members_.begin(), members_.end(), [](const auto& m) {
                             return m.second->failed || m.second->done;
                           });
  if (extended_ || nobody_left) Decide(!nobody_left);
}

void CoordinatorState::Decide(bool may_wait) {
  if (phase_ != Phase::kSettling) return;
  const bool told = StandingOf(failures_[FirstCause(failures_)]) != Standing::kConsequence;
  if (!told && may_wait) {
    const double more_s = options_.tuning.settle_consequence_s - options_.tuning.settle_s;
    if (extended_) return;  // its timer runs
    extended_ = true;
    AskWhoLives();
    settle_timer_ = loop_.After(Seconds(std::max(more_s, 0.0)), [this] { Decide(false); });
    return;
  }
  if (!told) BlameTheSilent();
  const std::size_t first = FirstCause(failures_);
  others_ = OtherCauses(failures_, first);
  if (others_.size() > kMaxOthers) others_.resize(kMaxOthers);
  Failure failure = failures_[first];
  const std::string reason = failure.Summary();
  Conclude(Verdict{Code::kAborted, reason, std::move(failure)});
}

/// Every report so far blames another node, so the one to blame has said nothing yet: its agent is
/// stopped, or its host is off. Whoever lives answers this with a beat.
void CoordinatorState::AskWhoLives() {
  asked_who_lives_ = Deadline::Clock::now();
  for (auto& [rank, member] : members_) {
    if (!member->left && !member->failed) SendOrAbort(*member->peer->channel, {{"op", "ping"}});
  }
}

void CoordinatorState::BlameTheSilent() {
  if (!extended_) return;
  MemberState* silent = nullptr;
  for (auto& [rank, member] : members_) {
    if (member->left || member->failed || member->last_seen >= asked_who_lives_) continue;
    if (silent == nullptr || member->last_seen < silent->last_seen) silent = member.get();
  }
  if (silent == nullptr) return;
  Failure failure;
  failure.rank = silent->join.rank;
  failure.role = silent->join.role;
  failure.host = silent->join.host;
  failure.cause = cause::kTimeout;
  const double silent_s = SecondsSince(silent->last_seen);
  failure.message = "no heartbeat for " + Tenths(silent_s) +
                    " s, and its agent does not answer while other nodes have lost it: its host or "
                    "network is down, or its process stopped";
  failure.time_s = WallSeconds() - silent_s;
  silent->failed = true;
  failures_.push_back(std::move(failure));
}

json CoordinatorState::Others() const {
  json list = json::array();
  for (const Failure& failure : others_) list.push_back(failure.ToJson());
  return list;
}

void CoordinatorState::Stop(Code code, const std::string& reason) {
  if (phase_ == Phase::kSettling) return Decide(false);  // a failure came first
  if (phase_ == Phase::kStopping || phase_ == Phase::kOver) return;
  Emit(EventQueue::Kind::kPlain,
       {{"event", "stopped"}, {"code", CodeName(code)}, {"reason", reason}});
  Conclude(Verdict{code, reason, std::nullopt});
}

void CoordinatorState::Conclude(Verdict verdict) {
  phase_ = Phase::kStopping;
  verdict_ = std::move(verdict);
  loop_.CancelTimer(join_timer_);
  loop_.CancelTimer(settle_timer_);
  if (verdict_.failure) {
    Log(LogLevel::kInfo, "run " + options_.run_id + " failed: " + verdict_.failure->Summary());
    Emit(EventQueue::Kind::kPlain,
         {{"event", "failed"}, {"failure", verdict_.failure->ToJson()}, {"others", Others()}});
  }
  AnswerBarrier(barrier_.FailAll(Status(Code::kAborted, "the run is ending: " + verdict_.reason)));
  for (auto& [rank, member] : members_) {
    if (!member->left) SendStop(*member->peer->channel);
  }
  loop_.After(Seconds(options_.tuning.bye_timeout_s), [this] {
    for (auto& [rank, member] : members_) {
      if (!member->left) member->peer->channel->Abort(DeadlineExceeded("no bye after the stop"));
    }
  });
  CheckOver();
}

void CoordinatorState::SendStop(net::Channel& channel) {
  if (!stop_) {
    json message = verdict_.ToJson();
    message["op"] = "stop";
    stop_ = ShareFrame(message);
  }
  SendOrAbort(channel, stop_);
}

void CoordinatorState::Leave(MemberState& member, const std::string& status) {
  member.left = true;
  member.status = status;
  if (!member.done) {
    Emit(EventQueue::Kind::kPlain,
         {{"event", "finished"}, {"rank", member.join.rank}, {"status", status}});
  }
  CheckOver();
}

void CoordinatorState::CheckOver() {
  if (phase_ != Phase::kStopping) return;
  if (!std::all_of(members_.begin(), members_.end(), [](const auto& m) { return m.second->left; }))
    return;
  phase_ = Phase::kOver;
  EmitProgress();
  json ranks = json::array();
  for (const auto& [rank, member] : members_) {
    ranks.push_back({{"rank", rank},
                     {"status", member->status},
                     {"metrics", member->metrics},
                     {"rows", member->rows}});
  }
  json event{{"event", "all_finished"},
             {"status", verdict_.Name()},
             {"reason", verdict_.reason},
             {"ranks", std::move(ranks)}};
  if (verdict_.failure) {
    event["failure"] = verdict_.failure->ToJson();
    event["others"] = Others();
  }
  Emit(EventQueue::Kind::kLast, event);
}

void CoordinatorState::OnJoinTimeout() {
  if (phase_ != Phase::kJoining) return;
  Failure failure;
  failure.cause = cause::kTimeout;
  failure.message = "rank " + MissingRanks() + " did not join within " +
                    std::to_string(static_cast<long>(options_.tuning.join_timeout_s)) +
                    " s; its task may be waiting for a free slot, or cannot reach the coordinator";
  failure.time_s = WallSeconds();
  const std::string reason = failure.message;
  Conclude(Verdict{Code::kDeadlineExceeded, reason, std::move(failure)});
}

void CoordinatorState::CheckHeartbeats() {
  if (phase_ == Phase::kOver) return;
  const auto now = Deadline::Clock::now();
  const auto pause = now - std::exchange(heartbeats_checked_, now);
  if (pause > Seconds(options_.tuning.heartbeat_timeout_s / 2)) {
    // The driver itself stood still (SIGSTOP, a paused machine): beats that came meanwhile are
    // unread.
    for (auto& [rank, member] : members_) member->last_seen = now;
    return;
  }
  for (auto& [rank, member] : members_) {
    if (member->left || now - member->last_seen < Seconds(options_.tuning.heartbeat_timeout_s))
      continue;
    const double silent_s = SecondsSince(member->last_seen);
    const Status silent = DeadlineExceeded("no heartbeat for " + Tenths(silent_s) + " s");
    FailMember(*member, cause::kTimeout,
               "the agent is silent: " + std::string(silent.message()) +
                   "; its host or network is down, or its process stopped",
               WallSeconds() - silent_s);
    member->peer->channel->Abort(silent);
  }
}

void CoordinatorState::End() {
  Stop(Code::kCancelled, "the coordinator was closed");
  ending_ = true;
  for (auto& [key, peer] : peers_) peer->channel->Close();
  NoteQuiet();
}

void CoordinatorState::NoteQuiet() {
  if (!ending_ || !peers_.empty()) return;
  const std::lock_guard lock(quiet_mutex_);
  quiet_ = true;
  quiet_changed_.notify_all();
}

void CoordinatorState::WaitQuiet(Deadline deadline) {
  std::unique_lock lock(quiet_mutex_);
  quiet_changed_.wait_until(lock, deadline.at(), [this] { return quiet_; });
}

}  // namespace arcflow::control
