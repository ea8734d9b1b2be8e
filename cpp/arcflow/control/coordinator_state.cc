// SPDX-License-Identifier: Apache-2.0
// Membership, messages and their effects; the way to a verdict is in coordinator_verdict.cc.
#include "arcflow/control/coordinator_state.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::size_t kQueueBytes = std::size_t{32} << 20;
constexpr std::size_t kMaxBarrierBytes = kControlFrameBytes - 4096;
// All ranks' rows go to all ranks, n * n numbers: the time between two such rounds grows with n, so
// that their cost does not; faster under TLS, which encrypts each rank's copy apart.
constexpr double kRowsDelay_s = 0.02;
constexpr double kRowsDelayPerRank_s = 0.0015;
constexpr double kSealedRowsDelayPerRank_s = 0.003;
constexpr double kProgressPerRank_s = 0.002;  // likewise for the driver's view of all ranks

/// Learns from a message how far its sender's clock is off. A message is never received before it
/// was sent, so the least difference is the nearest to the truth.
Status NoteClock(const json& message, double* offset_s) {
  double sent = 0;
  Fields in(message, "beat");
  in.Number("time", &sent, 0, 1e12, Need::kOptional);
  if (sent > 0) *offset_s = std::min(*offset_s, WallSeconds() - sent);
  return in.status();
}

std::string Text(const json& object) {
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

net::ChannelOptions ControlChannelOptions(const std::string& secret, bool encrypt) {
  net::ChannelOptions options;
  options.secret = secret;
  options.encrypt = encrypt;
  options.max_frame_bytes = kControlFrameBytes;
  options.max_queued_bytes = kQueueBytes;
  return options;
}

CoordinatorState::CoordinatorState(const CoordinatorOptions& options, net::Loop& loop,
                                   EventQueue& events)
    : options_(options), loop_(loop), events_(events), barrier_(options.size, kMaxBarrierBytes) {}

CoordinatorState::~CoordinatorState() = default;

void CoordinatorState::Begin() {
  const CoordinatorTuning& t = options_.tuning;
  join_timer_ = loop_.After(Seconds(t.join_timeout_s), [this] { OnJoinTimeout(); });
  loop_.Every(Seconds(std::clamp(t.heartbeat_timeout_s / 8, 0.01, 1.0)),
              [this] { CheckHeartbeats(); });
  loop_.Every(Paced(std::max(t.progress_interval_s, 0.01), kProgressPerRank_s),
              [this] { EmitProgress(); });
}

net::ChannelCallbacks CoordinatorState::OnAccepted(std::shared_ptr<net::Channel> channel) {
  auto peer = std::make_shared<Peer>();
  peer->channel = std::move(channel);
  peers_.emplace(peer.get(), peer);
  net::ChannelCallbacks callbacks;
  callbacks.on_message = [this, peer](json& message) { OnMessage(peer, message); };
  callbacks.on_closed = [this, peer](const Status& why) { OnClosed(peer, why); };
  if (ending_) peer->channel->Close();
  return callbacks;
}

void CoordinatorState::Emit(EventQueue::Kind kind, const json& event) {
  events_.Push(kind, Text(event));
}

void CoordinatorState::Broadcast(const json& message) {
  const net::SharedFrame frame = ShareFrame(message);
  for (auto& [rank, member] : members_) {
    if (!member->left) SendOrAbort(*member->peer->channel, frame);
  }
}

void CoordinatorState::OnMessage(const PeerPtr& peer, json& message) {
  const std::string op = message.value("op", "");
  if (peer->member == nullptr) {
    if (op == "join") {
      OnJoin(peer, message);
    } else if (!peer->refused) {
      Refuse(*peer, -1,
             FailedPrecondition("the first message must be join, not " + CleanText(op, 32)));
    }
    return;
  }
  MemberState& member = *peer->member;
  if (member.left) return;
  member.last_seen = Deadline::Clock::now();
  if (Status status = Dispatch(member, op, message); !status.ok()) {
    FailMember(member, cause::kAgentLost,
               "the agent broke the protocol: " + std::string(status.message()), WallSeconds());
    peer->channel->Abort(status);
  }
}

Status CoordinatorState::Dispatch(MemberState& member, const std::string& op, json& message) {
  if (op == "beat") return OnBeat(member, message);
  if (op == "log") return OnLog(member, message);
  if (op == "progress") return OnProgress(member, message);
  if (op == "barrier") return OnBarrier(member, message);
  if (op == "failed") return OnFailed(member, message);
  if (op == "done") return OnDone(member, message);
  if (op == "stalled") return OnStalled(member, message);
  if (op == "lines") return OnLines(member, message);
  if (op == "claim") return OnClaim(member, message);
  if (op == "enough") return OnEnough(member, message);
  if (op == "hand") return OnHand(member, message);
  if (op == "result") return OnResult(member, message);
  if (op == "bye") {
    OnBye(member, message);
    return Status::Ok();
  }
  return InvalidArgument("unknown message " + CleanText(op, 64));
}

Status CoordinatorState::Admit(const Join& join) const {
  if (join.run_id != options_.run_id) {
    return FailedPrecondition("this is the coordinator of another run");
  }
  if (join.rank >= options_.size) {
    return InvalidArgument("rank " + std::to_string(join.rank) + " in a run of " +
                           std::to_string(options_.size));
  }
  if (const auto it = members_.find(join.rank); it != members_.end()) {
    return Status(Code::kAlreadyExists, "rank " + std::to_string(join.rank) +
                                            " has already joined from " + it->second->join.host +
                                            ", process " + std::to_string(it->second->join.pid));
  }
  for (const auto& [rank, member] : members_) {
    if (member->join.role == join.role && member->join.index == join.index) {
      return Status(Code::kAlreadyExists, join.role + " " + std::to_string(join.index) +
                                              " is already rank " + std::to_string(rank));
    }
  }
  if (phase_ != Phase::kJoining && phase_ != Phase::kSettling && phase_ != Phase::kStopping) {
    return FailedPrecondition("the run is over");
  }
  return Status::Ok();
}

void CoordinatorState::Refuse(Peer& peer, int rank, const Status& why) {
  peer.refused = true;
  Emit(EventQueue::Kind::kChatter,
       {{"event", "rejected"}, {"rank", rank}, {"message", why.message()}});
  SendOrAbort(*peer.channel,
              {{"op", "reject"}, {"code", CodeName(why.code())}, {"message", why.message()}});
  peer.channel->Close();
}

void CoordinatorState::OnJoin(const PeerPtr& peer, const json& message) {
  if (peer->refused) return;
  auto join = Join::FromJson(message);
  if (!join.ok()) return Refuse(*peer, -1, join.status());
  if (Status status = Admit(*join); !status.ok()) return Refuse(*peer, join->rank, status);
  auto member = std::make_unique<MemberState>();
  member->join = std::move(*join);
  member->peer = peer;
  member->last_seen = Deadline::Clock::now();
  peer->member = member.get();
  const int rank = member->join.rank;
  Emit(EventQueue::Kind::kPlain, {{"event", "joined"},
                                  {"rank", rank},
                                  {"role", member->join.role},
                                  {"host", member->join.host},
                                  {"side_port", member->join.side_port}});
  members_.emplace(rank, std::move(member));
  if (phase_ == Phase::kStopping)
    return SendStop(*peer->channel);  // too late, but it shall know why
  if (phase_ == Phase::kJoining && static_cast<int>(members_.size()) == options_.size) StartRun();
}

void CoordinatorState::StartRun() {
  loop_.CancelTimer(join_timer_);
  std::vector<std::map<std::string, std::string>> versions;
  json cluster = json::array();
  for (const auto& [rank, member] : members_) {
    versions.push_back(member->join.versions);
    const Join& j = member->join;
    cluster.push_back(Member{j.rank, j.role, j.index, j.host, j.port}.ToJson());
  }
  const std::string conflict = VersionConflict(versions, options_.tuning.expected_versions);
  if (!conflict.empty()) {
    Failure failure;
    failure.cause = cause::kRejected;
    failure.message = conflict;
    failure.time_s = WallSeconds();
    return Conclude(Verdict{Code::kFailedPrecondition, conflict, std::move(failure)});
  }
  phase_ = Phase::kRunning;
  Broadcast({{"op", "start"}, {"cluster", cluster}});
  Emit(EventQueue::Kind::kPlain, {{"event", "started"}, {"cluster", cluster}});
  if (!rows_changed_.empty()) ScheduleRows(true);
}

std::string CoordinatorState::MissingRanks() const {
  std::string missing;
  for (int rank = 0; rank < options_.size; ++rank) {
    if (members_.count(rank) == 0) missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
  }
  return missing;
}

Status CoordinatorState::OnBeat(MemberState& member, json& message) {
  const auto feeds = message.find("feeds");
  if (feeds != message.end() && !feeds->is_object())
    return InvalidArgument("beat.feeds is not an object");
  bool ended_now = false;
  if (feeds != message.end()) {
    for (const auto& [name, value] : feeds->items()) {
      feed::RankRows now;
      Fields in(value, "beat.feeds");
      in.Uint64("rows", &now.rows, UINT64_MAX, Need::kRequired)
          .Bool("ended", &now.ended, Need::kRequired);
      ARC_TRY(in.status());
      const bool known = rows_.count(name) > 0;
      if (!known && (rows_.size() >= kMaxFeeds || name.size() > kMaxNameBytes)) {
        return InvalidArgument("too many feeds, or a name too long");
      }
      auto& ranks = rows_[name];
      ranks.resize(static_cast<std::size_t>(options_.size));
      feed::RankRows& before = ranks[static_cast<std::size_t>(member.join.rank)];
      if (now.rows < before.rows || (before.ended && !now.ended))
        return InvalidArgument("rows of a feed went back");
      if (now.rows == before.rows && now.ended == before.ended && known) continue;
      ended_now = ended_now || now.ended != before.ended;
      before = now;
      rows_changed_[name] = true;
    }
  }
  if (!rows_changed_.empty()) ScheduleRows(ended_now);
  ARC_TRY(NoteClock(message, &member.clock_offset_s));
  json shown{{"rank", member.join.rank}};
  for (const char* key : {"counters", "feeds", "rss_bytes"}) {
    if (const auto it = message.find(key); it != message.end()) shown[key] = std::move(*it);
  }
  member.beat = Text(shown);
  progress_changed_ = true;
  return Status::Ok();
}

Status CoordinatorState::OnLines(MemberState& member, json& message) {
  std::vector<std::string> lines;
  Fields in(message, "lines");
  in.Strings("lines", &lines, kMaxTailLines, 2 * kMaxLineBytes, Need::kRequired);
  ARC_TRY(in.status());
  Emit(EventQueue::Kind::kPlain,
       {{"event", "node_log"}, {"rank", member.join.rank}, {"lines", std::move(lines)}});
  return Status::Ok();
}

void CoordinatorState::RequestLog(int rank, int lines) {
  const auto it = members_.find(rank);
  if (it == members_.end() || it->second->left) return;
  SendOrAbort(*it->second->peer->channel, {{"op", "lines"}, {"lines", lines}});
}

/// `base_s`, or longer in a large run.
std::chrono::nanoseconds CoordinatorState::Paced(double base_s, double per_rank_s) const {
  return Seconds(std::max(base_s, per_rank_s * options_.size));
}

void CoordinatorState::ScheduleRows(bool now) {
  if (phase_ != Phase::kRunning) return;
  const std::chrono::nanoseconds pause =
      Paced(kRowsDelay_s, options_.encrypt ? kSealedRowsDelayPerRank_s : kRowsDelayPerRank_s);
  const auto since = Deadline::Clock::now() - rows_told_;
  if (now && since >= pause) return BroadcastRows();
  if (rows_timer_ == 0) {
    const auto delay = now ? pause - since : pause;
    rows_timer_ = loop_.After(delay, [this] { BroadcastRows(); });
  }
}

void CoordinatorState::BroadcastRows() {
  if (rows_timer_ != 0) loop_.CancelTimer(std::exchange(rows_timer_, 0));
  if (phase_ != Phase::kRunning || rows_changed_.empty()) return;
  rows_told_ = Deadline::Clock::now();
  json feeds = json::object();
  for (const auto& [name, changed] : rows_changed_) {
    json rows = json::array();
    json ended = json::array();
    for (const feed::RankRows& r : rows_[name]) {
      rows.push_back(r.rows);
      ended.push_back(r.ended);
    }
    feeds[name] = {{"rows", std::move(rows)}, {"ended", std::move(ended)}};
  }
  rows_changed_.clear();
  Broadcast({{"op", "feeds"}, {"feeds", std::move(feeds)}});
}

Status CoordinatorState::OnLog(MemberState& member, const json& message) {
  std::string line;
  Fields in(message, "log");
  in.Text("line", &line, kMaxTextBytes);
  ARC_TRY(in.status());
  Emit(EventQueue::Kind::kChatter,
       {{"event", "log"}, {"rank", member.join.rank}, {"line", std::move(line)}});
  return Status::Ok();
}

Status CoordinatorState::OnProgress(MemberState& member, json& message) {
  const auto it = message.find("progress");
  if (it == message.end() || !it->is_object())
    return InvalidArgument("progress.progress is not an object");
  Emit(EventQueue::Kind::kChatter,
       {{"event", "node"}, {"rank", member.join.rank}, {"progress", std::move(*it)}});
  return Status::Ok();
}

Status CoordinatorState::OnBarrier(MemberState& member, const json& message) {
  std::string name;
  int ranks = 0;  // all
  BarrierBook::Waiter waiter;
  double timeout_s = options_.tuning.barrier_timeout_s;
  Fields in(message, "barrier");
  in.String("name", &name, kMaxNameBytes, Need::kRequired)
      .Uint64("id", &waiter.id, UINT64_MAX, Need::kRequired)
      .String("payload", &waiter.payload, 2 * kMaxBarrierPayloadBytes, Need::kRequired)
      .Int("ranks", &ranks, 0, kMaxSize, Need::kOptional)
      .Number("timeout_s", &timeout_s, 0, 1e9, Need::kOptional);
  ARC_TRY(in.status());
  waiter.deadline = Deadline::AfterSeconds(std::min(timeout_s, options_.tuning.barrier_timeout_s));
  AnswerBarrier(barrier_.Arrive(member.join.rank, ranks, name, std::move(waiter)));
  return Status::Ok();
}

void CoordinatorState::AnswerBarrier(const std::vector<BarrierBook::Done>& all) {
  for (const BarrierBook::Done& done : all) {
    json answer{{"op", "barrier"}, {"name", done.name}, {"code", CodeName(done.status.code())}};
    if (done.status.ok()) {
      for (const auto& [rank, waiter] : done.waiters) answer["payloads"].push_back(waiter.payload);
    } else {
      answer["message"] = done.status.message();
    }
    for (const auto& [rank, waiter] : done.waiters) {
      const auto it = members_.find(rank);
      if (it == members_.end() || it->second->left) continue;
      answer["id"] = waiter.id;
      SendOrAbort(*it->second->peer->channel, answer);
    }
  }
  ArmBarrierTimer();
}

void CoordinatorState::ArmBarrierTimer() {
  if (barrier_timer_ != 0) loop_.CancelTimer(std::exchange(barrier_timer_, 0));
  const Deadline next = barrier_.next_deadline();
  if (next.infinite()) return;
  const auto delay =
      std::max(next.at() - Deadline::Clock::now(), Deadline::Clock::duration::zero());
  barrier_timer_ = loop_.After(delay + std::chrono::milliseconds(1), [this] {
    barrier_timer_ = 0;
    AnswerBarrier(barrier_.Expire());
  });
}

void CoordinatorState::EmitProgress() {
  if (!std::exchange(progress_changed_, false)) return;
  std::string event = R"({"event":"progress","ranks":[)";
  for (const auto& [rank, member] : members_) {
    if (event.back() != '[') event += ',';
    event += member->beat.empty() ? Text({{"rank", rank}}) : member->beat;
  }
  events_.Push(EventQueue::Kind::kProgress, event + "]}");
}

}  // namespace arcflow::control
