// SPDX-License-Identifier: Apache-2.0
// Batch: access to the columns of a batch, without a copy where possible.
#include <cstdint>
#include <cstring>
#include <string>

#include "arcflow/feed/reader.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {

namespace {

// How many rows ahead memory is asked for: as many as hide its latency, few enough to be still in
// the cache when their turn comes.
constexpr std::size_t kPrefetchRows = 6;
constexpr std::size_t kPrefetchBytes = 1024;  // of a row; the rest comes by the hardware's own
constexpr std::size_t kLine = 64;

void Prefetch(const std::byte* row, std::size_t bytes) {
  const std::size_t n = bytes < kPrefetchBytes ? bytes : kPrefetchBytes;
  for (std::size_t i = 0; i < n; i += kLine) __builtin_prefetch(row + i);
}

/// Single rows one after the other to `to`; false when the batch holds a row that is not there.
bool Gather(const std::vector<RowAt>& rows, std::size_t column, std::size_t row_bytes,
            std::byte* to) {
  const std::size_t n = rows.size();
  const std::byte* ahead[kPrefetchRows] = {};
  for (std::size_t i = 0; i < n + kPrefetchRows; ++i) {
    // The address is worked out once, when the row is asked for.
    const std::byte* ready = ahead[i % kPrefetchRows];
    if (i < n) {
      const auto bytes = rows[i].segment->Dense(column, rows[i].row, 1);
      if (bytes.size() != row_bytes) return false;
      Prefetch(bytes.data(), row_bytes);
      ahead[i % kPrefetchRows] = bytes.data();
    }
    if (i >= kPrefetchRows) {
      std::memcpy(to, ready, row_bytes);
      to += row_bytes;
    }
  }
  return true;
}

}  // namespace

std::size_t Batch::real_rows() const {
  std::size_t rows = gathered.size();
  for (const Piece& piece : pieces) rows += piece.rows;
  return rows;
}

std::span<const std::byte> DenseView(const Batch& batch, std::size_t column) {
  if (batch.pieces.size() != 1 || batch.padding != 0) return {};
  const Piece& piece = batch.pieces.front();
  if (piece.segment->crowded()) return {};
  const std::span<const std::byte> bytes = piece.segment->Dense(column, piece.begin, piece.rows);
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % kSegmentAlignment != 0) return {};
  return bytes;
}

Status CopyColumn(const Batch& batch, const columnar::Schema& schema, std::size_t column,
                  std::span<std::byte> out) {
  if (column >= schema.columns.size() || schema.columns[column].variable()) {
    return InvalidArgument("column " + std::to_string(column) + " is not of fixed width");
  }
  const std::size_t row_bytes = schema.columns[column].row_bytes();
  if (out.size() != batch.rows() * row_bytes) {
    return InvalidArgument("column '" + schema.columns[column].name + "': room for " +
                           std::to_string(out.size()) + " bytes, needs " +
                           std::to_string(batch.rows() * row_bytes));
  }
  if (out.empty()) return Status::Ok();
  std::byte* to = out.data();
  if (row_bytes > 0 && !Gather(batch.gathered, column, row_bytes, to)) {
    return InvalidArgument("column '" + schema.columns[column].name +
                           "': the batch has no such rows");
  }
  to += batch.gathered.size() * row_bytes;
  for (const Piece& piece : batch.pieces) {
    const auto bytes = piece.segment->Dense(column, piece.begin, piece.rows);
    if (bytes.size() != piece.rows * row_bytes) {
      return InvalidArgument("column '" + schema.columns[column].name +
                             "': the batch has no such rows");
    }
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    to += bytes.size();
  }
  const std::byte* last = to == out.data() ? nullptr : to - row_bytes;
  for (std::size_t i = 0; i < batch.padding; ++i, to += row_bytes) {
    if (last != nullptr) {
      std::memcpy(to, last, row_bytes);
    } else {
      std::memset(to, 0, row_bytes);
    }
  }
  return Status::Ok();
}

Status StringColumn(const Batch& batch, std::size_t column, std::vector<std::string_view>* out) {
  std::vector<std::string_view> values;
  values.reserve(batch.rows());
  for (const Piece& piece : batch.pieces) {
    ARC_TRY(piece.segment->Rows(column, piece.begin, piece.rows, &values));
  }
  for (const RowAt& at : batch.gathered) ARC_TRY(at.segment->Rows(column, at.row, 1, &values));
  const std::string_view last = values.empty() ? std::string_view() : values.back();
  values.insert(values.end(), batch.padding, last);
  *out = std::move(values);
  return Status::Ok();
}

Status RaggedColumn(const Batch& batch, const columnar::Schema& schema, std::size_t column,
                    RaggedRows* out) {
  if (column >= schema.columns.size() || !schema.columns[column].variable()) {
    return InvalidArgument("column " + std::to_string(column) + " is of fixed width");
  }
  std::vector<std::string_view> rows;
  ARC_TRY(StringColumn(batch, column, &rows));
  const std::size_t item_bytes = schema.columns[column].item_bytes();
  *out = {};
  out->splits.reserve(rows.size() + 1);
  out->splits.push_back(0);
  for (const std::string_view row : rows) {
    const std::span<const std::byte> bytes = std::as_bytes(std::span(row));
    out->bytes += bytes.size();
    out->splits.push_back(static_cast<std::int64_t>(out->bytes / item_bytes));
    if (bytes.empty()) continue;
    if (!out->chunks.empty() &&
        out->chunks.back().data() + out->chunks.back().size() == bytes.data()) {
      out->chunks.back() = {out->chunks.back().data(), out->chunks.back().size() + bytes.size()};
    } else {
      out->chunks.push_back(bytes);
    }
  }
  return Status::Ok();
}

std::span<const std::byte> DenseItems(const Batch& batch, const RaggedRows& rows) {
  if (batch.pieces.size() != 1 || batch.padding != 0 || rows.chunks.size() != 1) return {};
  if (batch.pieces.front().segment->crowded()) return {};
  const std::span<const std::byte> bytes = rows.chunks.front();
  return reinterpret_cast<std::uintptr_t>(bytes.data()) % kSegmentAlignment == 0
             ? bytes
             : std::span<const std::byte>();
}

void CopyItems(const RaggedRows& rows, std::byte* out) {
  for (const std::span<const std::byte> chunk : rows.chunks) {
    std::memcpy(out, chunk.data(), chunk.size());
    out += chunk.size();
  }
}

Status ArrayStrings(const Batch& batch, const columnar::Schema& schema, std::size_t lengths,
                    std::size_t bytes, std::vector<std::string_view>* out) {
  if (lengths >= schema.columns.size() || bytes >= schema.columns.size() ||
      schema.columns[lengths].dtype != columnar::DType::kInt64 ||
      !schema.columns[bytes].variable()) {
    return InvalidArgument("no array of strings");
  }
  std::vector<std::int64_t> sizes;
  RaggedRows ragged;
  std::size_t per_row = schema.columns[lengths].row_elements();
  if (schema.columns[lengths].variable()) {
    ARC_TRY(RaggedColumn(batch, schema, lengths, &ragged));
    sizes.resize(ragged.bytes / sizeof(std::int64_t));
    CopyItems(ragged, reinterpret_cast<std::byte*>(sizes.data()));
  } else {
    sizes.resize(batch.rows() * per_row);
    ARC_TRY(CopyColumn(batch, schema, lengths, std::as_writable_bytes(std::span(sizes))));
  }
  std::vector<std::string_view> rows;
  ARC_TRY(StringColumn(batch, bytes, &rows));
  out->clear();
  out->reserve(sizes.size());
  std::size_t next = 0;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    std::string_view rest = rows[row];
    const std::size_t end = ragged.splits.empty()
                                ? next + per_row
                                : static_cast<std::size_t>(ragged.splits[row + 1]) * per_row;
    for (; next < end; ++next) {
      if (sizes[next] < 0 || static_cast<std::size_t>(sizes[next]) > rest.size()) break;
      out->push_back(rest.substr(0, static_cast<std::size_t>(sizes[next])));
      rest.remove_prefix(static_cast<std::size_t>(sizes[next]));
    }
    if (next != end || !rest.empty()) {
      return DataLoss("corrupt segment: column '" + schema.columns[bytes].name + "', row " +
                      std::to_string(row) + " of the batch: the strings' lengths do not fit");
    }
  }
  return Status::Ok();
}

}  // namespace arcflow::feed
