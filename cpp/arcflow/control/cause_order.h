// SPDX-License-Identifier: Apache-2.0
// Which of several failures made the others: by kind and time, not by the order in which they were
// reported.
#pragma once

#include <cstddef>
#include <vector>

#include "arcflow/control/protocol.h"

namespace arcflow::control {

/// How a failure stands to others of the same run.
///   kCause        nothing of the run makes it: an exception, a crash, the kernel's kill, …
///   kAmbiguous    may be either: an exit, SIGTERM, a lost connection, a feeder that went away
///   kConsequence  its own words blame another node (Failure::peer_loss)
enum class Standing { kCause, kAmbiguous, kConsequence };
Standing StandingOf(const Failure& failure);

/// Index of the failure to blame; `failures` must not be empty and their times be of one clock.
///   1. A consequence never beats anything else.
///   2. The earlier wins. But times are of several hosts, and one that is ambiguous counts as
///      kClockTolerance_s later.
///   3. When all are consequences, the earliest of them.
std::size_t FirstCause(const std::vector<Failure>& failures);
inline constexpr double kClockTolerance_s = 0.2;

/// Those besides `first` that it did not make: neither consequences, nor exits and the like that
/// came with it. In order of time, one a rank.
std::vector<Failure> OtherCauses(const std::vector<Failure>& failures, std::size_t first);

}  // namespace arcflow::control
