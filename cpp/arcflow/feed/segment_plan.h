// SPDX-License-Identifier: Apache-2.0
// SegmentPlanner: how many rows, and how many bytes of variable columns, the next segment of a
// writer should hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/columnar/arrow_view.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/feed/segment.h"

namespace arcflow::feed {

/// Plans segments of about `segment_bytes`. Rows of fixed width only: every segment has the same
/// capacity, the largest power of two that fits, at least one row. With variable
/// columns: the largest power of two that fits with an eighth to spare if rows go on being as long
/// as those seen so far; what is left goes to their bytes in proportion. Threads: one thread.
class SegmentPlanner {
 public:
  SegmentPlanner(const columnar::Schema& schema, std::size_t segment_bytes);

  struct Plan {
    SegmentLayout layout;
    std::size_t ask_bytes =
        0;  // what to acquire: whole pages, and the same from segment to segment wherever possible
  };
  /// The layout of a segment that begins with row `begin` of `batch`, which fits in any case.
  /// Errors: InvalidArgument when that row is larger than a segment can be.
  Result<Plan> Next(const columnar::BatchView& batch, std::size_t begin) const;

  /// Counts rows [begin, begin + rows) as written. Cost: one step a variable column.
  void Observe(const columnar::BatchView& batch, std::size_t begin, std::size_t rows);

 private:
  Result<Plan> NextWithVariable(const columnar::BatchView& batch, std::size_t begin) const;

  const columnar::Schema& schema_;
  std::size_t segment_bytes_;
  std::size_t fixed_row_bytes_ =
      0;  // all fixed-width columns, and 8 bytes of offset a variable column
  std::vector<std::size_t> variable_columns_;  // indexes
  std::vector<double> row_bytes_seen_;         // by variable column
  double rows_seen_ = 0;
};

}  // namespace arcflow::feed
