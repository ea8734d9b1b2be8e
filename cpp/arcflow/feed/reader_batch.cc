// SPDX-License-Identifier: Apache-2.0
// Batch: access to the columns of a batch, without a copy where possible.
#include <cstdint>
#include <cstring>
#include <string>

#include "arcflow/feed/reader.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {

std::size_t Batch::real_rows() const {
  std::size_t rows = 0;
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
  if (column >= schema.columns.size() || schema.columns[column].dtype == columnar::DType::kString) {
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
    ARC_TRY(piece.segment->Strings(column, piece.begin, piece.rows, &values));
  }
  const std::string_view last = values.empty() ? std::string_view() : values.back();
  values.insert(values.end(), batch.padding, last);
  *out = std::move(values);
  return Status::Ok();
}

}  // namespace arcflow::feed
