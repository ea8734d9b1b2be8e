// SPDX-License-Identifier: Apache-2.0
// CoordinatorState: what the coordinator knows of a run and how it decides; everything on the
// loop's thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/control/barrier_groups.h"
#include "arcflow/control/claim_book.h"
#include "arcflow/control/coordinator.h"
#include "arcflow/control/event_queue.h"
#include "arcflow/feed/service.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/loop.h"

namespace arcflow::control {

/// Options of both ends of a control connection.
net::ChannelOptions ControlChannelOptions(const std::string& secret, bool encrypt = false);

/// One run. Phases only go forward:
///   joining → running → settling (a failure was reported, its cause is sought) → stopping (the
///   verdict is out) → over.
/// Threads: the loop's, but for WaitQuiet. Lifetime: outlives the loop's channels.
class CoordinatorState {
 public:
  CoordinatorState(const CoordinatorOptions& options, net::Loop& loop, EventQueue& events);
  ~CoordinatorState();

  /// Arms the timers.
  void Begin();
  /// A peer has proved the secret.
  net::ChannelCallbacks OnAccepted(std::shared_ptr<net::Channel> channel);
  /// The driver ends the run.
  void Stop(Code code, const std::string& reason);
  /// The driver wants to see a node's last lines.
  void RequestLog(int rank, int lines);
  /// The driver of a run that lives on tells all agents something; jobs are noted here.
  void Tell(const std::string& text);
  /// The coordinator goes away: stops the run if it has no verdict yet and lets every channel drain
  /// and close.
  void End();
  /// Any thread: waits until End() was called and no channel is open.
  void WaitQuiet(Deadline deadline);

 private:
  enum class Phase { kJoining, kRunning, kSettling, kStopping, kOver };
  struct Peer;
  struct MemberState;
  struct Stall;
  using PeerPtr = std::shared_ptr<Peer>;

  // Messages.
  void OnMessage(const PeerPtr& peer, nlohmann::json& message);
  Status Dispatch(MemberState& member, const std::string& op, nlohmann::json& message);
  void OnJoin(const PeerPtr& peer, const nlohmann::json& message);
  Status OnBeat(MemberState& member, nlohmann::json& message);
  Status OnLog(MemberState& member, const nlohmann::json& message);
  Status OnProgress(MemberState& member, nlohmann::json& message);
  Status OnBarrier(MemberState& member, const nlohmann::json& message);
  Status OnFailed(MemberState& member, const nlohmann::json& message);
  Status OnDone(MemberState& member, nlohmann::json& message);
  Status OnStalled(MemberState& member, const nlohmann::json& message);
  Status OnLines(MemberState& member, nlohmann::json& message);
  Status OnClaim(MemberState& member, const nlohmann::json& message);   // coordinator_side.cc
  Status OnEnough(MemberState& member, const nlohmann::json& message);  // coordinator_side.cc
  Status OnHand(MemberState& member, const nlohmann::json& message);    // coordinator_side.cc
  Status OnResult(MemberState& member, nlohmann::json& message);        // coordinator_side.cc
  void OnBye(MemberState& member, nlohmann::json& message);
  void OnClosed(const PeerPtr& peer, const Status& why);

  // Membership.
  Status Admit(const Join& join) const;
  void Refuse(Peer& peer, int rank, const Status& why);
  void StartRun();
  std::string MissingRanks() const;

  // Failure and the end.
  void Fail(Failure failure);
  void FailMember(MemberState& member, const std::string& cause, const std::string& message,
                  double time_s);
  void AskWhoLives();
  void BlameTheSilent();
  nlohmann::json Others() const;
  static double TimeHere(const MemberState& member, double time_s);
  void Decide(bool may_wait);
  void Conclude(Verdict verdict);
  void SendStop(net::Channel& channel);
  std::chrono::nanoseconds Paced(double base_s, double per_rank_s) const;
  void Leave(MemberState& member, const std::string& status);
  void CheckOver();

  // Periodic.
  void CheckHeartbeats();
  void OnJoinTimeout();
  void EmitProgress();
  void BroadcastRows();
  void ScheduleRows(bool now);
  void AnswerBarrier(const std::vector<BarrierBook::Done>& all);
  void ArmBarrierTimer();
  void ArmStallTimer();
  void DecideStall();

  void Emit(EventQueue::Kind kind, const nlohmann::json& event);
  void Broadcast(const nlohmann::json& message);
  void NoteQuiet();

  const CoordinatorOptions options_;
  net::Loop& loop_;
  EventQueue& events_;
  Phase phase_ = Phase::kJoining;
  std::map<int, std::unique_ptr<MemberState>> members_;  // by rank; those who joined
  std::map<Peer*, PeerPtr> peers_;                       // every open connection
  std::map<std::string, std::vector<feed::RankRows>> rows_;
  std::map<std::string, bool> rows_changed_;
  BarrierGroups barrier_;
  ClaimBook claims_;
  std::vector<Failure> failures_;  // in the order they came, with times of our clock
  Deadline::Clock::time_point heartbeats_checked_ = Deadline::Clock::now();
  Deadline::Clock::time_point asked_who_lives_;
  Verdict verdict_;
  net::SharedFrame stop_;  // the verdict as all agents hear it
  Deadline::Clock::time_point rows_told_;
  std::vector<Failure> others_;  // besides the verdict's, no consequences of it
  net::Loop::TimerId join_timer_ = 0;
  net::Loop::TimerId settle_timer_ = 0;
  net::Loop::TimerId rows_timer_ = 0;
  net::Loop::TimerId barrier_timer_ = 0;
  net::Loop::TimerId stall_timer_ = 0;
  bool progress_changed_ = false;
  bool extended_ = false;
  bool ending_ = false;

  std::mutex quiet_mutex_;
  std::condition_variable quiet_changed_;
  bool quiet_ = false;
};

}  // namespace arcflow::control
