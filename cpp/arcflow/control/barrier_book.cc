// SPDX-License-Identifier: Apache-2.0
// The rules of barriers.
#include "arcflow/control/barrier_book.h"

#include <utility>

namespace arcflow::control {

std::optional<BarrierBook::Done> BarrierBook::End(Status status) {
  if (waiters_.empty()) return std::nullopt;
  Done done{std::exchange(name_, ""), std::move(status), std::exchange(waiters_, {})};
  return done;
}

std::string BarrierBook::Missing() const {
  std::string missing;
  for (int rank = 0; rank < size_; ++rank) {
    if (waiters_.count(rank) == 0) missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
  }
  return missing;
}

std::optional<BarrierBook::Done> BarrierBook::Arrive(int rank, const std::string& name,
                                                     Waiter waiter) {
  const bool first = waiters_.empty();
  const bool again = !waiters_.insert_or_assign(rank, std::move(waiter)).second;
  if (first) name_ = name;
  if (!closed_.ok()) return End(closed_);
  if (again) {
    return End(Status(Code::kFailedPrecondition, "rank " + std::to_string(rank) +
                                                     " came to barrier \"" + name +
                                                     "\" while it waits at \"" + name_ + "\""));
  }
  if (name != name_) {
    return End(FailedPrecondition("ranks wait at different barriers: rank " + std::to_string(rank) +
                                  " at \"" + name + "\", others at \"" + name_ +
                                  "\"; every rank must come to the same ones in the same order"));
  }
  if (!gone_.empty()) {
    const auto& [who, why] = *gone_.begin();
    return End(Status(Code::kAborted, "rank " + std::to_string(who) + " " + why +
                                          " and does not come to barrier \"" + name_ + "\""));
  }
  std::size_t bytes = 0;
  for (const auto& [r, w] : waiters_) bytes += w.payload.size() + 8;
  if (bytes > max_payload_bytes_) {
    return End(ResourceExhausted("payloads of barrier \"" + name_ + "\" are together over " +
                                 std::to_string(max_payload_bytes_) + " bytes"));
  }
  if (static_cast<int>(waiters_.size()) == size_) return End(Status::Ok());
  return std::nullopt;
}

std::optional<BarrierBook::Done> BarrierBook::Leave(int rank, const std::string& why) {
  gone_.emplace(rank, why);
  return End(Status(Code::kAborted, "rank " + std::to_string(rank) + " " + why +
                                        " and does not come to barrier \"" + name_ + "\""));
}

std::optional<BarrierBook::Done> BarrierBook::Expire() {
  if (waiters_.empty() || !next_deadline().expired()) return std::nullopt;
  return End(DeadlineExceeded("barrier \"" + name_ + "\" waited in vain for rank " + Missing()));
}

std::optional<BarrierBook::Done> BarrierBook::FailAll(const Status& why) {
  closed_ = why;
  return End(why);
}

Deadline BarrierBook::next_deadline() const {
  Deadline earliest = Deadline::Infinite();
  for (const auto& [rank, waiter] : waiters_) {
    if (waiter.deadline.at() < earliest.at()) earliest = waiter.deadline;
  }
  return earliest;
}

}  // namespace arcflow::control
