// SPDX-License-Identifier: Apache-2.0
// SegmentView: one lease on a mapped segment: its rows, readable as long as the view lives.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/base/status.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/feed/segment.h"

namespace arcflow::feed {

/// How many segments one reader's consumer keeps, so that a hoarding consumer is told to copy
/// instead. Threads: any; the counts are hints that need no order.
struct LeaseGauge {
  std::atomic<std::int64_t> leased{0};  // segments with a view that lives, wherever
  std::atomic<std::int64_t> held{0};    // of those, the ones the reader itself still reads from
  std::atomic<std::int64_t> max_leases{0};

  /// No further segment may be kept by tensors.
  bool crowded() const {
    return leased.load(std::memory_order_relaxed) - held.load(std::memory_order_relaxed) >=
           max_leases.load(std::memory_order_relaxed);
  }
};

/// Rows of one segment in shared memory. Whatever another process wrote there is checked before it
/// is used. Threads: Grow by the reader only, everything else from any thread.
class SegmentView {
 public:
  /// Checks the segment's header against `schema`. `rows` rows are published, after `skip` rows
  /// that are another's: row 0 of the view is the one behind them. `lease` is kept as long as the
  /// view lives: its end, in whatever thread drops the last view, gives the memory back. `gauge`
  /// may be null. Errors: DataLoss for a corrupt segment.
  static Result<std::shared_ptr<SegmentView>> Attach(std::shared_ptr<const Mapping> mapping,
                                                     const columnar::Schema& schema,
                                                     std::size_t rows,
                                                     std::shared_ptr<const LeaseGauge> gauge,
                                                     std::shared_ptr<const void> lease,
                                                     std::size_t skip = 0);
  SegmentView(const SegmentView&) = delete;
  SegmentView& operator=(const SegmentView&) = delete;

  std::size_t rows() const { return rows_.load(std::memory_order_acquire); }
  const SegmentLayout& layout() const { return layout_; }
  bool crowded() const { return gauge_ != nullptr && gauge_->crowded(); }

  /// More rows were published. DataLoss when they are fewer than before or over the capacity.
  Status Grow(std::size_t rows);

  /// Bytes of rows [begin, begin + rows) of a fixed-width column; empty when there is no such
  /// column or range.
  std::span<const std::byte> Dense(std::size_t column, std::size_t begin, std::size_t rows) const;

  /// Appends the bytes of each of the rows [begin, begin + rows) of a variable column to `out`;
  /// they live as long as the view, and are whole items. Errors: InvalidArgument for no such column
  /// or range; DataLoss for offsets that fall, leave their region or cut an item.
  Status Rows(std::size_t column, std::size_t begin, std::size_t rows,
              std::vector<std::string_view>* out) const;

  /// Bytes of those rows as the shared offsets say, at most the size of their region; 0 for
  /// anything else.
  std::size_t RowBytes(std::size_t column, std::size_t begin, std::size_t rows) const;

 private:
  SegmentView(std::shared_ptr<const Mapping> mapping, SegmentLayout layout, std::size_t rows,
              std::shared_ptr<const LeaseGauge> gauge, std::shared_ptr<const void> lease,
              std::size_t skip);
  bool InRange(std::size_t column, std::size_t begin, std::size_t rows) const;
  std::uint64_t OffsetAt(const ColumnRegion& region, std::size_t row) const;

  const SegmentLayout layout_;
  std::atomic<std::size_t> rows_;
  const std::size_t skip_;
  const std::shared_ptr<const LeaseGauge> gauge_;
  const std::shared_ptr<const void> lease_;
  const std::shared_ptr<const Mapping> mapping_;  // unmapped before the lease ends
};

}  // namespace arcflow::feed
