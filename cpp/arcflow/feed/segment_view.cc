// SPDX-License-Identifier: Apache-2.0
// SegmentView: bounds-checked access to the columns of a mapped segment.
#include "arcflow/feed/segment_view.h"

#include <string>
#include <utility>

namespace arcflow::feed {

Result<std::shared_ptr<SegmentView>> SegmentView::Attach(
    std::shared_ptr<const Mapping> mapping, const columnar::Schema& schema, std::size_t rows,
    std::shared_ptr<const LeaseGauge> gauge, std::shared_ptr<const void> lease, std::size_t skip) {
  ARC_ASSIGN(SegmentLayout layout,
             SegmentLayout::Read({mapping->data(), mapping->size_bytes()}, schema));
  if (skip > layout.capacity_rows || rows > layout.capacity_rows - skip) {
    return DataLoss("corrupt segment: " + std::to_string(rows) + " rows published, " +
                    std::to_string(skip) + " skipped, capacity is " +
                    std::to_string(layout.capacity_rows));
  }
  return std::shared_ptr<SegmentView>(new SegmentView(std::move(mapping), std::move(layout), rows,
                                                      std::move(gauge), std::move(lease), skip));
}

SegmentView::SegmentView(std::shared_ptr<const Mapping> mapping, SegmentLayout layout,
                         std::size_t rows, std::shared_ptr<const LeaseGauge> gauge,
                         std::shared_ptr<const void> lease, std::size_t skip)
    : layout_(std::move(layout)),
      rows_(rows),
      skip_(skip),
      gauge_(std::move(gauge)),
      lease_(std::move(lease)),
      mapping_(std::move(mapping)) {}

Status SegmentView::Grow(std::size_t rows) {
  if (rows > layout_.capacity_rows - skip_ || rows < this->rows()) {
    return DataLoss("corrupt segment: from " + std::to_string(this->rows()) + " to " +
                    std::to_string(rows) + " rows, capacity is " +
                    std::to_string(layout_.capacity_rows));
  }
  // Release: whoever sees the new count in another thread may read the rows.
  rows_.store(rows, std::memory_order_release);
  return Status::Ok();
}

bool SegmentView::InRange(std::size_t column, std::size_t begin, std::size_t rows) const {
  const std::size_t published = this->rows();
  return column < layout_.columns.size() && begin <= published && rows <= published - begin;
}

std::span<const std::byte> SegmentView::Dense(std::size_t column, std::size_t begin,
                                              std::size_t rows) const {
  if (!InRange(column, begin, rows)) return {};
  const ColumnRegion& region = layout_.columns[column];
  if (region.variable()) return {};
  return {mapping_->data() + region.offset + (skip_ + begin) * region.row_bytes,
          rows * region.row_bytes};
}

std::uint64_t SegmentView::OffsetAt(const ColumnRegion& region, std::size_t row) const {
  // Loaded exactly once: what was checked is what is used, even if the other side scribbles.
  const auto* offsets = reinterpret_cast<const std::uint64_t*>(mapping_->data() + region.offset);
  return __atomic_load_n(offsets + skip_ + row, __ATOMIC_RELAXED);
}

Status SegmentView::Rows(std::size_t column, std::size_t begin, std::size_t rows,
                         std::vector<std::string_view>* out) const {
  if (!InRange(column, begin, rows) || !layout_.columns[column].variable()) {
    return InvalidArgument("segment has no rows of any length at column " + std::to_string(column) +
                           ", rows " + std::to_string(begin) + " to " +
                           std::to_string(begin + rows));
  }
  if (rows == 0) return Status::Ok();
  const ColumnRegion& region = layout_.columns[column];
  const char* data = reinterpret_cast<const char*>(mapping_->data() + region.data_offset);
  std::uint64_t from = OffsetAt(region, begin);
  for (std::size_t i = 0; i < rows; ++i) {
    const std::uint64_t to = OffsetAt(region, begin + i + 1);
    if (to < from || to > region.data_size || (to - from) % region.item_bytes != 0) {
      return DataLoss("corrupt segment: column " + std::to_string(column) + ", row " +
                      std::to_string(begin + i) + ": from " + std::to_string(from) + " to " +
                      std::to_string(to) + " of " + std::to_string(region.data_size) + " bytes");
    }
    out->emplace_back(data + from, to - from);
    from = to;
  }
  return Status::Ok();
}

std::size_t SegmentView::RowBytes(std::size_t column, std::size_t begin, std::size_t rows) const {
  if (!InRange(column, begin, rows) || !layout_.columns[column].variable() || rows == 0) return 0;
  const ColumnRegion& region = layout_.columns[column];
  const std::uint64_t from = OffsetAt(region, begin);
  const std::uint64_t to = OffsetAt(region, begin + rows);
  return to < from || to > region.data_size ? 0 : to - from;
}

}  // namespace arcflow::feed
