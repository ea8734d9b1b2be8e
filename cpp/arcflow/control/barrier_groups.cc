// SPDX-License-Identifier: Apache-2.0
// Keeps books of barriers apart by the number of ranks that meet.
#include "arcflow/control/barrier_groups.h"

#include <algorithm>
#include <utility>

namespace arcflow::control {
namespace {

void Add(std::optional<BarrierBook::Done> done, std::vector<BarrierBook::Done>* all) {
  if (done) all->push_back(std::move(*done));
}

}  // namespace

BarrierBook& BarrierGroups::BookFor(int ranks) {
  const auto [it, made] = books_.try_emplace(ranks, ranks, max_payload_bytes_);
  if (made) {
    for (const auto& [rank, why] : gone_) {
      if (rank < ranks) it->second.Leave(rank, why);
    }
    if (!closed_.ok()) it->second.FailAll(closed_);
  }
  return it->second;
}

std::vector<BarrierBook::Done> BarrierGroups::Arrive(int rank, int ranks, const std::string& name,
                                                     BarrierBook::Waiter waiter) {
  const int members = ranks == 0 ? size_ : ranks;
  std::vector<BarrierBook::Done> all;
  if (members < 1 || members > size_ || rank >= members) {
    BarrierBook::Done refused;
    refused.name = name;
    refused.status = InvalidArgument("rank " + std::to_string(rank) + " came to barrier \"" + name +
                                     "\" of the first " + std::to_string(members) +
                                     " ranks in a run of " + std::to_string(size_));
    refused.waiters.emplace(rank, std::move(waiter));
    all.push_back(std::move(refused));
    return all;
  }
  Add(BookFor(members).Arrive(rank, name, std::move(waiter)), &all);
  return all;
}

std::vector<BarrierBook::Done> BarrierGroups::Leave(int rank, const std::string& why) {
  gone_.emplace(rank, why);
  std::vector<BarrierBook::Done> all;
  for (auto& [ranks, book] : books_) {
    if (rank < ranks) Add(book.Leave(rank, why), &all);
  }
  return all;
}

std::vector<BarrierBook::Done> BarrierGroups::Expire() {
  std::vector<BarrierBook::Done> all;
  for (auto& [ranks, book] : books_) Add(book.Expire(), &all);
  return all;
}

std::vector<BarrierBook::Done> BarrierGroups::FailAll(const Status& why) {
  closed_ = why;
  std::vector<BarrierBook::Done> all;
  for (auto& [ranks, book] : books_) Add(book.FailAll(why), &all);
  return all;
}

bool BarrierGroups::Waits(int rank) const {
  return std::any_of(books_.begin(), books_.end(),
                     [rank](const auto& entry) { return entry.second.Waits(rank); });
}

Deadline BarrierGroups::next_deadline() const {
  Deadline earliest = Deadline::Infinite();
  for (const auto& [ranks, book] : books_) {
    const Deadline next = book.next_deadline();
    if (next.at() < earliest.at()) earliest = next;
  }
  return earliest;
}

}  // namespace arcflow::control
