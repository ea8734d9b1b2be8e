// SPDX-License-Identifier: Apache-2.0
// The rule of progress.
#include "arcflow/control/stall_watch.h"

namespace arcflow::control {

void StallWatch::Start(const Sample& sample) {
  begun_ = true;
  since_ = sample.now;
  cpu_at_ = sample.cpu_s;
  io_at_ = sample.io_bytes;
}

double StallWatch::cpu_share(const Sample& sample) const {
  const double passed_s = std::chrono::duration<double>(sample.now - since_).count();
  return passed_s > 0 ? (sample.cpu_s - cpu_at_) / passed_s : 0;
}

void StallWatch::Defer(Clock::time_point now) { since_ = now; }

bool StallWatch::Overdue(const Sample& sample) {
  const bool progress = sample.reports > reports_;
  if (progress) reports_ = sample.reports;
  if (!begun_ || progress || sample.excused || !on()) {
    Start(sample);
    return false;
  }
  const double factor = reports_ < kStartReports ? kStartFactor : 1;
  if (std::chrono::duration<double>(idle(sample.now)) <
      std::chrono::duration<double>(timeout_) * factor) {
    return false;
  }
  if (reports_ == 0 && (cpu_share(sample) >= kIdleShare || used_files(sample))) {
    Start(sample);
    return false;
  }
  return true;
}

}  // namespace arcflow::control
