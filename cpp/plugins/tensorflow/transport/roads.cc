// SPDX-License-Identifier: Apache-2.0
// Roads: cards asked for, connections made, on threads of their own.
#include "plugins/tensorflow/transport/roads.h"

#include <optional>
#include <utility>

#include "plugins/tensorflow/transport/groups.h"
#include "tensorflow/core/distributed_runtime/worker_cache.h"
#include "tensorflow/core/platform/env.h"

namespace arcflow::tf {
namespace {

constexpr double kReachSeconds = 20;
constexpr double kAgainSeconds = 5;

}  // namespace

void Roads::WhenKnown(const std::string& task, std::function<void(const Road&)> then) {
  Road road;
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[task];
    if (!Holds(entry)) {
      entry.waiting.push_back(std::move(then));
      if (entry.looking) return;
      entry.looking = true;
      tensorflow::Env::Default()->SchedClosure(
          [self = shared_from_this(), task] { self->Look(task); });
      return;
    }
    road = entry.road;
  }
  then(road);
}

bool Roads::Holds(const Entry& entry) const {
  if (entry.looking || !entry.known) return false;
  if (entry.road.open) return !identity_->depot->BackendTo(entry.road.peer).empty();
  return !entry.again.expired();
}

void Roads::Look(const std::string& task) {
  bool again = false;
  const Road road = Find(task, &again);
  std::vector<std::function<void(const Road&)>> waiting;
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[task];
    entry.looking = false;
    entry.known = true;
    entry.road = road;
    entry.again = again ? Deadline::AfterSeconds(kAgainSeconds) : Deadline::Infinite();
    waiting.swap(entry.waiting);
  }
  for (const auto& then : waiting) then(road);
}

Road Roads::Find(const std::string& task, bool* again) {
  Road road;
  std::optional<Card> card;
  *again = true;
  if (const absl::Status asked = AskForCard(workers_.get(), task, &card); !asked.ok()) {
    road.why = std::string(asked.message());
    return road;
  }
  if (const auto why = WhyNotFetched(card, identity_->card)) {
    *again = false;
    road.why = *why;
    return road;
  }
  const auto reached = identity_->depot->Reach(card->depot, Deadline::AfterSeconds(kReachSeconds));
  if (!reached.ok()) {
    road.why = reached.status().message();
    return road;
  }
  road.peer = *reached;
  road.backend = identity_->depot->BackendTo(road.peer);
  road.open = !road.backend.empty();
  if (!road.open) road.why = "the connection broke at once";
  return road;
}

}  // namespace arcflow::tf
