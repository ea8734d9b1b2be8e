// SPDX-License-Identifier: Apache-2.0
// Groups: cards asked for, the decision, the engine joined.
#include "plugins/tensorflow/transport/groups.h"

#include <algorithm>
#include <set>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "plugins/tensorflow/status.h"
#include "plugins/tensorflow/transport/stats.h"
#include "plugins/tensorflow/transport/workers.h"
#include "tensorflow/core/distributed_runtime/worker_cache.h"
#include "tensorflow/core/distributed_runtime/worker_interface.h"
#include "tensorflow/core/framework/device_attributes.pb.h"
#include "tensorflow/core/framework/step_stats.pb.h"
#include "tensorflow/core/protobuf/worker.pb.h"

namespace arcflow::tf {
namespace {

using collective::Engine;
using tensorflow::CollGroupParams;

constexpr char kTokenPrefix[] = "arcflow:";
constexpr double kMakeGroupSeconds = 120;
constexpr std::int64_t kCardMillis = 60'000;

/// Memberships by the token that travels in CollectiveParams, for all servers of the process.
class Tokens {
 public:
  static Tokens& Get() {
    static auto* const tokens = new Tokens();
    return *tokens;
  }
  std::string Add(const std::shared_ptr<Member>& member) {
    const std::lock_guard lock(mutex_);
    const std::string token = kTokenPrefix + std::to_string(++last_);
    members_[token] = member;
    return token;
  }
  std::shared_ptr<Member> Find(const std::string& token) {
    const std::lock_guard lock(mutex_);
    const auto found = members_.find(token);
    return found == members_.end() ? nullptr : found->second.lock();
  }
  void Remove(const std::string& token) {
    const std::lock_guard lock(mutex_);
    members_.erase(token);
  }

 private:
  std::mutex mutex_;
  std::uint64_t last_ = 0;
  std::map<std::string, std::weak_ptr<Member>> members_;
};

bool RanksAreSound(const Member& member) {
  const std::set<int> distinct(member.ranks.begin(), member.ranks.end());
  return member.index >= 0 && distinct.size() == member.ranks.size() && *distinct.begin() == 0 &&
         *distinct.rbegin() + 1 == static_cast<int>(distinct.size());
}

}  // namespace

absl::Status AskForCard(tensorflow::WorkerCacheInterface* workers, const std::string& task,
                        std::optional<Card>* card) {
  struct Call {
    tensorflow::LoggingRequest request;
    tensorflow::LoggingResponse response;
    absl::Status status;
    absl::Notification answered;
  };
  tensorflow::WorkerInterface* const worker = workers->GetOrCreateWorker(task);
  if (worker == nullptr) return absl::UnavailableError("no connection to " + task);
  auto call = std::make_shared<Call>();  // an answer after the time limit finds it still there
  call->request.add_fetch_step_id(kCardStep);
  worker->LoggingAsync(&call->request, &call->response, [call](const absl::Status& status) {
    call->status = status;
    call->answered.Notify();
  });
  const bool answered =
      call->answered.WaitForNotificationWithTimeout(absl::Milliseconds(kCardMillis));
  if (!answered) return absl::UnavailableError(task + " does not answer");
  workers->ReleaseWorker(task, worker);
  if (call->status.code() == absl::StatusCode::kUnimplemented) return absl::OkStatus();
  if (!call->status.ok()) return call->status;
  for (const auto& step : call->response.step()) {
    if (step.step_id() != kCardStep || step.step_stats().dev_stats_size() != 1) continue;
    *card = Card::Parse(step.step_stats().dev_stats(0).device());
  }
  return absl::OkStatus();
}

std::shared_ptr<Member> FindMember(const std::string& token) { return Tokens::Get().Find(token); }

Groups::~Groups() {
  for (const auto& [key, member] : members_) Tokens::Get().Remove(member->token);
}

std::shared_ptr<Member> Groups::Find(int group_key, const std::string& device, bool* first) {
  const std::lock_guard lock(mutex_);
  auto& member = members_[{group_key, device}];
  *first = member == nullptr;
  if (*first) member = std::make_shared<Member>();
  return member;
}

void Groups::WhenDecided(const std::shared_ptr<Member>& member, std::function<void()> then) {
  {
    const std::lock_guard lock(mutex_);
    if (member->state == Member::State::kMaking) {
      member->waiting.push_back(std::move(then));
      return;
    }
  }
  then();
}

void Groups::Fail(const std::shared_ptr<Member>& member, const absl::Status& status) {
  member->status = status;
  Decide(member, Member::State::kFailed);
}

void Groups::Make(const std::shared_ptr<Member>& member, const CollGroupParams& group,
                  const std::string& device) {
  member->group = group;
  for (std::size_t i = 0; i < group.members.size(); ++i) {
    auto& each = member->group.members[i];
    if (each.rank < 0) each.rank = static_cast<int>(i);
    member->ranks.push_back(each.rank);
    if (each.device.name() == device) member->index = static_cast<int>(i);
  }
  Cards cards;
  absl::Status status = CollectCards(member->group, &cards);
  Plan plan;
  if (status.ok()) plan = PlanFor(cards);
  if (!RanksAreSound(*member)) plan = {Plan::Kind::kStock, "ranks given by hand have holes"};
  const bool stock = plan.kind == Plan::Kind::kStock;
  if (status.ok() && !stock) status = Join(member, cards, plan.kind);
  if (status.ok() && stock && identity_->card.mode != "auto") {
    status =
        absl::FailedPreconditionError("transport='" + identity_->card.mode + "', but " + plan.why);
  }
  if (!status.ok()) return Fail(member, status);
  if (stock) {
    CountFallback("a group of " + std::to_string(group.group_size) + " ranks: " + plan.why);
  }
  Decide(member, stock ? Member::State::kStock : Member::State::kOurs);
}

void Groups::Abort(const absl::Status& status) {
  std::vector<std::shared_ptr<Engine>> engines;
  {
    const std::lock_guard lock(mutex_);
    if (aborted_.ok()) aborted_ = status;
    for (const auto& [key, member] : members_) {
      if (member->engine) engines.push_back(member->engine);
    }
  }
  const auto code = static_cast<Code>(status.code());
  for (const auto& engine : engines) {
    engine->Fail(Status(code, std::string(status.message())));
  }
}

absl::Status Groups::CollectCards(const CollGroupParams& group, Cards* cards) {
  for (const auto& each : group.members) {
    const auto [at, fresh] = cards->try_emplace(each.task);
    if (!fresh) continue;
    if (each.task == task_) {
      at->second = identity_->card;
    } else if (absl::Status s = AskForCard(workers_, each.task, &at->second); !s.ok()) {
      return s;
    }
  }
  return absl::OkStatus();
}

absl::Status Groups::Join(const std::shared_ptr<Member>& member, const Cards& cards,
                          Plan::Kind how) {
  const CollGroupParams& group = member->group;
  std::string name = std::to_string(group.group_key);
  for (const auto& each : group.members) {  // a server that comes again is another one
    name += "|" + each.device.name() + "#" + std::to_string(each.device.incarnation());
  }
  name = std::to_string(std::hash<std::string>()(name)) + "/" + std::to_string(group.group_key);
  const int rank = member->ranks[static_cast<std::size_t>(member->index)];
  const Deadline deadline = Deadline::AfterSeconds(kMakeGroupSeconds);
  const std::map<std::string, int> host_of = HostsOf(cards);
  collective::WideMembership wide{name, rank, {}, {}, {}};
  for (int r = 0; r < group.group_size; ++r) {
    const auto at = std::find(member->ranks.begin(), member->ranks.end(), r);
    const auto& task = group.members[static_cast<std::size_t>(at - member->ranks.begin())].task;
    wide.lobbies.push_back(cards.at(task)->lobby);
    wide.hubs.push_back(cards.at(task)->hub);
    wide.hosts.push_back(host_of.at(task));
  }
  const auto join = [&]() -> Result<std::shared_ptr<Engine>> {
    if (how == Plan::Kind::kHosts) return identity_->lobby->Join(*identity_->hub, wide, deadline);
    ARC_ASSIGN(std::shared_ptr<Engine> shared,
               identity_->hub->Join({name, wide.hubs[0], rank, group.group_size}, deadline));
    return shared;
  };
  const auto joined = join();
  if (!joined.ok()) return ToTf(joined.status().WithContext("arcflow collectives"));
  std::vector<std::string> tasks(member->group.members.size());
  for (const auto& each : member->group.members) {
    tasks[static_cast<std::size_t>(each.rank)] = each.task;
  }
  WatchGroup("group " + std::to_string(member->group.group_key), std::move(tasks), *joined);
  const std::lock_guard lock(mutex_);
  if (!aborted_.ok()) return aborted_;
  member->engine = *joined;
  if (how == Plan::Kind::kHosts) member->wire = identity_->wire;
  member->token = Tokens::Get().Add(member);
  return absl::OkStatus();
}

void Groups::Decide(const std::shared_ptr<Member>& member, Member::State state) {
  std::vector<std::function<void()>> waiting;
  {
    const std::lock_guard lock(mutex_);
    member->state = state;
    waiting.swap(member->waiting);
  }
  for (const auto& then : waiting) then();
}

}  // namespace arcflow::tf
