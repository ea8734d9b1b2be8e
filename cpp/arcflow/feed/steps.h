// SPDX-License-Identifier: Apache-2.0
// Agreement on steps: how many batches every rank makes, from what each rank has told so far.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/feed/reader.h"

namespace arcflow::feed {

/// Rows that one rank has of one feed so far.
struct RankRows {
  std::uint64_t rows = 0;
  bool ended = false;

  bool operator==(const RankRows&) const = default;
};

/// What is decided about the steps of a pass.
struct KnownSteps {
  std::uint64_t steps = 0;  // steps [0, steps) are known to exist
  bool final = false;       // no more will

  bool operator==(const KnownSteps&) const = default;
};

/// Decides steps of `batch` rows from the rows of all ranks; `own_rank` indexes `ranks` (only
/// kPartial looks at it). Adding rows or ends to `ranks` never takes a step back that was known,
/// and never changes a final answer:
///   kPad      step k exists iff some rank has more than k*batch rows
///   kDrop     step k exists iff every rank has at least (k+1)*batch rows
///   kRefuse   as kDrop until all ended; then all must have the same number of rows, and the last
///   batch may be short kPartial  step k exists iff the own rank has more than k*batch rows (while
///   it is open: a full batch of them)
/// Errors: InvalidArgument for batch 0, no ranks, or own_rank out of range; FailedPrecondition
/// under kRefuse as soon as the totals cannot become equal any more (lists each rank's rows; `feed`
/// is for that message). Cost: one pass over the ranks. Threads: pure function.
Result<KnownSteps> DecideSteps(const std::string& feed, const std::vector<RankRows>& ranks,
                               int own_rank, std::uint64_t batch, Remainder remainder);

/// "pad", "drop", "refuse", "partial".
Result<Remainder> RemainderFromName(const std::string& name);

}  // namespace arcflow::feed
