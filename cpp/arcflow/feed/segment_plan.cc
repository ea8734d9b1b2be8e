// SPDX-License-Identifier: Apache-2.0
// SegmentPlanner: powers of two for rows, proportional shares for strings.
#include "arcflow/feed/segment_plan.h"

#include <algorithm>
#include <bit>

namespace arcflow::feed {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kMaxCapacity = std::size_t{1}
                                     << 22;  // rows; more would only help rows of a few bytes
constexpr double kSpare =
    1.125;  // strings a little longer than so far must not end a segment early

std::size_t RoundUpToPage(std::size_t n) { return (n + kPageBytes - 1) / kPageBytes * kPageBytes; }

/// Bytes that header, alignment and the one offset more than rows take.
std::size_t Overhead(std::size_t n_columns, std::size_t n_strings) {
  return sizeof(SegmentHeader) + n_columns * sizeof(SegmentColumn) +
         (n_columns + n_strings + 1) * kSegmentAlignment + n_strings * sizeof(std::int64_t);
}

std::size_t PowerOfTwoRows(double rows) {
  const auto bounded =
      static_cast<std::size_t>(std::clamp(rows, 1.0, static_cast<double>(kMaxCapacity)));
  return std::bit_floor(bounded);
}

}  // namespace

SegmentPlanner::SegmentPlanner(const columnar::Schema& schema, std::size_t segment_bytes)
    : schema_(schema),
      segment_bytes_(std::min(std::max(segment_bytes, kPageBytes), kMaxSegmentBytes)) {
  for (std::size_t i = 0; i < schema.columns.size(); ++i) {
    const columnar::Column& column = schema.columns[i];
    if (column.variable()) {
      variable_columns_.push_back(i);
      fixed_row_bytes_ += sizeof(std::int64_t);
    } else {
      fixed_row_bytes_ += column.row_bytes();  // 4096 columns of 2 GiB at most: no overflow
    }
  }
  row_bytes_seen_.resize(variable_columns_.size());
}

Result<SegmentPlanner::Plan> SegmentPlanner::Next(const columnar::BatchView& batch,
                                                  std::size_t begin) const {
  if (!variable_columns_.empty()) return NextWithVariable(batch, begin);
  const std::size_t overhead = Overhead(schema_.columns.size(), 0);
  const std::size_t room = segment_bytes_ > overhead ? segment_bytes_ - overhead : 0;
  const double rows =
      static_cast<double>(room) / static_cast<double>(std::max<std::size_t>(fixed_row_bytes_, 1));
  Plan plan;
  ARC_ASSIGN(plan.layout, SegmentLayout::Plan(schema_, PowerOfTwoRows(rows), {}));
  plan.ask_bytes = RoundUpToPage(plan.layout.size_bytes);
  return plan;
}

Result<SegmentPlanner::Plan> SegmentPlanner::NextWithVariable(const columnar::BatchView& batch,
                                                              std::size_t begin) const {
  const std::size_t n = variable_columns_.size();
  const std::size_t rest = batch.rows - begin;
  std::vector<double> average(n);
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto bytes = columnar::StringBytes(batch.columns[variable_columns_[i]], begin, rest);
    average[i] = (row_bytes_seen_[i] + static_cast<double>(bytes)) /
                 (rows_seen_ + static_cast<double>(rest));
    sum += average[i];
  }
  const std::size_t overhead = Overhead(schema_.columns.size(), n);
  const double room =
      segment_bytes_ > overhead ? static_cast<double>(segment_bytes_ - overhead) : 0.0;
  const std::size_t rows =
      PowerOfTwoRows(room / (static_cast<double>(fixed_row_bytes_) + kSpare * sum));
  const double left =
      std::max(0.0, room - static_cast<double>(rows) * static_cast<double>(fixed_row_bytes_));
  std::vector<std::size_t> data_bytes(n);
  for (std::size_t i = 0; i < n; ++i) {
    const double share = sum > 0 ? average[i] / sum : 1.0 / static_cast<double>(n);
    const auto next_row = columnar::StringBytes(batch.columns[variable_columns_[i]], begin, 1);
    data_bytes[i] =
        std::max(static_cast<std::size_t>(left * share), static_cast<std::size_t>(next_row));
  }
  Plan plan;
  ARC_ASSIGN(plan.layout, SegmentLayout::Plan(schema_, rows, data_bytes));
  plan.ask_bytes = RoundUpToPage(std::max(plan.layout.size_bytes, segment_bytes_));
  return plan;
}

void SegmentPlanner::Observe(const columnar::BatchView& batch, std::size_t begin,
                             std::size_t rows) {
  rows_seen_ += static_cast<double>(rows);
  for (std::size_t i = 0; i < variable_columns_.size(); ++i) {
    row_bytes_seen_[i] += static_cast<double>(
        columnar::StringBytes(batch.columns[variable_columns_[i]], begin, rows));
  }
}

}  // namespace arcflow::feed
