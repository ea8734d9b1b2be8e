// SPDX-License-Identifier: Apache-2.0
// ClaimBook: a map of open jobs to the attempts that their partitions went to.
#include "arcflow/control/claim_book.h"

namespace arcflow::control {

bool ClaimBook::Open(const std::string& job, bool whole) {
  if (jobs_.contains(job)) return true;
  if (jobs_.size() >= kMaxJobs) return false;
  jobs_[job].whole = whole;
  return true;
}

ClaimBook::Answer ClaimBook::Claim(const std::string& job, std::int64_t partition,
                                   std::int64_t attempt) {
  const auto found = jobs_.find(job);
  if (found == jobs_.end()) return {};
  const auto entry = found->second.attempts.emplace(partition, attempt).first;
  return {entry->second == attempt, found->second.whole};
}

}  // namespace arcflow::control
