// SPDX-License-Identifier: Apache-2.0
// ClaimBook: which attempt of a feeding task's partition counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace arcflow::control {

/// Grants each partition of a job once, to the first attempt that claims it. Jobs are opened by the
/// driver before Spark runs them and closed when they are over; a claim for a job that is not open
/// is refused, so that a straggler never counts. Threads: one. Never blocks.
class ClaimBook {
 public:
  static constexpr std::size_t kMaxJobs = 1024;

  struct Answer {
    bool granted = false;
    bool whole = false;  // the rows wait until the driver publishes the job
  };

  /// False when too many jobs are open. One that is open already stays as it is.
  bool Open(const std::string& job, bool whole);
  /// The same attempt may ask again.
  Answer Claim(const std::string& job, std::int64_t partition, std::int64_t attempt);
  void Close(const std::string& job) { jobs_.erase(job); }
  std::size_t jobs() const { return jobs_.size(); }

 private:
  struct Job {
    bool whole = false;
    std::map<std::int64_t, std::int64_t> attempts;  // by partition
  };
  std::map<std::string, Job> jobs_;
};

}  // namespace arcflow::control
