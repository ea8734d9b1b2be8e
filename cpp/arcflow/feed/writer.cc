// SPDX-License-Identifier: Apache-2.0
// Writer: copies checked Arrow batches into segments, publishing as it goes.
#include "arcflow/feed/writer.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/columnar/arrow_view.h"
#include "arcflow/feed/segment.h"
#include "arcflow/feed/segment_plan.h"

namespace arcflow::feed {

using columnar::BatchView;

struct Writer::Impl {
  /// The segment being filled.
  struct Open {
    SegmentSource::Grant grant;
    std::byte* base = nullptr;
    SegmentLayout layout;
    std::size_t rows = 0;
    std::vector<std::size_t> data_bytes;  // used so far, by column; 0 for others
    Fd memfd;                             // until the first publish hands it over
  };

  Impl(Options o, SegmentSource& s)
      : options(std::move(o)), source(s), planner(options.schema, options.segment_bytes) {}

  Status Append(const BatchView& batch, Deadline deadline, std::size_t* row);
  Status OpenSegment(const BatchView& batch, std::size_t row, Deadline deadline);
  Result<std::byte*> MapBuffer(const SegmentSource::Grant& grant, Fd* memfd);
  std::string Largest(const BatchView& batch, std::size_t row) const;
  std::size_t RowsThatFit(const BatchView& batch, std::size_t row) const;
  void Copy(const BatchView& batch, std::size_t row, std::size_t n);
  Status Publish(bool closed);

  const Options options;
  SegmentSource& source;
  SegmentPlanner planner;
  std::optional<Open> open;
  Status failed;  // sticky
  std::uint64_t rows = 0;
  std::uint64_t bytes = 0;
  std::uint64_t wait_ns = 0;
};

/// Maps a new buffer, or finds the mapping of one used before.
Result<std::byte*> Writer::Impl::MapBuffer(const SegmentSource::Grant& grant, Fd* memfd) {
  GrantedMemory& memory = source.memory();
  memory.Drop(grant.drop);
  if (!grant.create) return memory.Find(grant.buffer, grant.size_bytes);
  return memory.Create(options.feed, grant.buffer, grant.size_bytes, memfd);
}

Status Writer::Impl::OpenSegment(const BatchView& batch, std::size_t row, Deadline deadline) {
  ARC_ASSIGN(SegmentPlanner::Plan plan, planner.Next(batch, row));
  const auto begin = Deadline::Clock::now();
  Result<SegmentSource::Grant> grant = source.Acquire(options.feed, plan.ask_bytes, deadline);
  wait_ns +=
      static_cast<std::uint64_t>(std::chrono::nanoseconds(Deadline::Clock::now() - begin).count());
  if (!grant.ok()) {
    const bool too_large = grant.status().code() == Code::kResourceExhausted &&
                           plan.ask_bytes > 2 * options.segment_bytes;
    return too_large ? grant.status().WithContext(Largest(batch, row)) : grant.status();
  }
  if (grant->size_bytes < plan.layout.size_bytes) {
    return Internal("asked for " + std::to_string(plan.ask_bytes) + " bytes, was granted " +
                    std::to_string(grant->size_bytes));
  }
  Open next;
  ARC_ASSIGN(next.base, MapBuffer(*grant, &next.memfd));
  next.grant = std::move(*grant);
  next.layout = std::move(plan.layout);
  next.data_bytes.resize(next.layout.columns.size());
  next.layout.WriteTo(next.base);
  for (const ColumnRegion& region : next.layout.columns) {
    if (region.variable()) *reinterpret_cast<std::int64_t*>(next.base + region.offset) = 0;
  }
  open = std::move(next);
  return Status::Ok();
}

/// Names a row that needs a segment of its own, and what makes it so large.
std::string Writer::Impl::Largest(const BatchView& batch, std::size_t row) const {
  std::size_t column = 0;
  std::size_t most = 0;
  for (std::size_t c = 0; c < batch.columns.size(); ++c) {
    const columnar::Column& what = options.schema.columns[c];
    const std::size_t size =
        what.variable() ? static_cast<std::size_t>(columnar::StringBytes(batch.columns[c], row, 1))
                        : what.row_bytes();
    if (size <= most) continue;
    column = c;
    most = size;
  }
  return "row " + std::to_string(rows) + " of this task has " + std::to_string(most) +
         " bytes in column '" + options.schema.columns[column].name + "'";
}

std::size_t Writer::Impl::RowsThatFit(const BatchView& batch, std::size_t row) const {
  std::size_t n = std::min(batch.rows - row, open->layout.capacity_rows - open->rows);
  for (std::size_t c = 0; c < batch.columns.size(); ++c) {
    const ColumnRegion& region = open->layout.columns[c];
    if (!region.variable()) continue;
    n = columnar::StringsThatFit(batch.columns[c], row, n, region.data_size - open->data_bytes[c]);
  }
  return n;
}

void Writer::Impl::Copy(const BatchView& batch, std::size_t row, std::size_t n) {
  for (std::size_t c = 0; c < batch.columns.size(); ++c) {
    const ColumnRegion& region = open->layout.columns[c];
    const columnar::ColumnView& view = batch.columns[c];
    if (!region.variable()) {
      columnar::CopyRows(view, options.schema.columns[c], row, n,
                         open->base + region.offset + open->rows * region.row_bytes);
      bytes += n * region.row_bytes;
      continue;
    }
    std::size_t& used = open->data_bytes[c];
    auto* ends = reinterpret_cast<std::int64_t*>(open->base + region.offset) + open->rows + 1;
    columnar::CopyStrings(view, row, n, static_cast<std::int64_t>(used), ends,
                          open->base + region.data_offset + used);
    const auto added = static_cast<std::size_t>(columnar::StringBytes(view, row, n));
    used += added;
    bytes += added;
  }
  open->rows += n;
}

/// A publish that failed leaves unknown what the agent has seen, so the writer is then unusable.
Status Writer::Impl::Publish(bool closed) {
  failed = source.Publish(options.feed, open->grant, open->rows, closed, open->memfd.get());
  if (!failed.ok()) return failed;
  open->memfd.reset();
  if (closed) open.reset();
  return Status::Ok();
}

/// Appends rows from `*row` on; `*row` is the first row not visible, also after an error.
Status Writer::Impl::Append(const BatchView& batch, Deadline deadline, std::size_t* row) {
  while (*row < batch.rows) {
    if (!open) ARC_TRY(OpenSegment(batch, *row, deadline));
    const std::size_t n = RowsThatFit(batch, *row);
    if (n == 0) {
      if (open->rows == 0) return Internal("the planned segment does not hold its first row");
      ARC_TRY(Publish(true));
      continue;
    }
    Copy(batch, *row, n);
    planner.Observe(batch, *row, n);
    const bool full = open->rows == open->layout.capacity_rows || *row + n < batch.rows;
    ARC_TRY(Publish(full));
    *row += n;
    rows += n;
  }
  return Status::Ok();
}

Writer::Writer(Options options, SegmentSource& source)
    : impl_(std::make_unique<Impl>(std::move(options), source)) {}
Writer::~Writer() = default;

Status Writer::Append(const ArrowSchema& schema, const ArrowArray& batch, Deadline deadline,
                      std::size_t* taken) {
  if (!impl_->failed.ok()) return impl_->failed;
  const std::string label = "feed '" + impl_->options.feed + "'";
  const Result<BatchView> view = columnar::ViewBatch(impl_->options.schema, schema, batch);
  if (!view.ok()) return view.status().WithContext(label);
  std::size_t row = taken != nullptr ? *taken : 0;
  if (row > view->rows)
    return InvalidArgument(label + ": the batch has no row " + std::to_string(row));
  const std::size_t first = row;
  const Status status = impl_->Append(*view, deadline, &row);
  if (taken != nullptr) *taken = row;
  if (status.ok()) return status;
  if (status.code() != Code::kDeadlineExceeded || !impl_->failed.ok()) {
    impl_->failed = status.WithContext(label);
    return impl_->failed;
  }
  if (taken == nullptr && row > first) {
    impl_->failed =
        FailedPrecondition(label + ": an earlier batch was cut off by its deadline after " +
                           std::to_string(row) + " of " + std::to_string(view->rows) + " rows");
  }
  return status.WithContext(label);
}

Status Writer::Finish() {
  if (!impl_->failed.ok() || !impl_->open) return Status::Ok();
  const Status status = impl_->Publish(true);
  if (!status.ok()) impl_->failed = status.WithContext("feed '" + impl_->options.feed + "'");
  return impl_->failed;
}

std::uint64_t Writer::rows() const { return impl_->rows; }
std::uint64_t Writer::bytes() const { return impl_->bytes; }
std::uint64_t Writer::wait_ns() const { return impl_->wait_ns; }

}  // namespace arcflow::feed
