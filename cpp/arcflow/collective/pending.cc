// SPDX-License-Identifier: Apache-2.0
// Pending: the queue, and the role of the one who works.
#include "arcflow/collective/pending.h"

#include <algorithm>
#include <string>
#include <utility>

#include "arcflow/collective/board.h"

namespace arcflow::collective {
namespace {

/// InvalidArgument with both signatures in words.
Status Disagreement(const OrderEntry& entry) {
  return InvalidArgument("ranks disagree about a collective: rank " +
                         std::to_string(entry.first_rank) + " has " + entry.first.ToString() +
                         ", rank " + std::to_string(entry.other_rank) + " has " +
                         entry.other.ToString());
}

}  // namespace

Status Pending::Add(Operation* operation) {
  if (under_way_ >= kMaxPending) {
    return ResourceExhausted("more than " + std::to_string(kMaxPending) +
                             " collectives are under way in one group");
  }
  ++under_way_;
  queue_.push_back(std::move(*operation));
  return Status::Ok();
}

bool Pending::TakeRole() {
  if (working_ || queue_.empty()) return false;  // whoever works does ours too, or has done it
  return working_ = true;
}

bool Pending::Finish() {
  --under_way_;
  if (!queue_.empty()) return true;
  working_ = false;
  return false;
}

const Operation& Pending::Earliest() const {
  return *std::min_element(
      queue_.begin(), queue_.end(),
      [](const Operation& a, const Operation& b) { return a.deadline.at() < b.deadline.at(); });
}

Operation Pending::TakeFirst() {
  Operation first = std::move(queue_.front());
  queue_.pop_front();
  return first;
}

Status Pending::TakeOrdered(const OrderEntry& entry, Operation* operation, bool* agreed) {
  const auto found = std::find_if(queue_.begin(), queue_.end(),
                                  [&](const Operation& each) { return each.key == entry.key; });
  if (found == queue_.end()) {
    *operation = TakeFirst();
    return Internal("a collective was ordered that this rank has not submitted");
  }
  *operation = std::move(*found);
  queue_.erase(found);
  *agreed = entry.other_rank == kNobody;
  return *agreed ? Status::Ok() : Disagreement(entry);
}

void Pending::Tell(Operation* operation, const Status& status, bool more) {
  if (more && operation->defer) {
    operation->defer([done = std::move(operation->done), status] { done(status); });
  } else {
    operation->done(status);
  }
}

}  // namespace arcflow::collective
