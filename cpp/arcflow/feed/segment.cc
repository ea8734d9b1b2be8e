// SPDX-License-Identifier: Apache-2.0
// SegmentLayout: planning, writing and checking, with every sum guarded against overflow.
#include "arcflow/feed/segment.h"

#include <cstring>
#include <optional>
#include <string>

namespace arcflow::feed {
namespace {

constexpr std::size_t kOffsetBytes = sizeof(std::int64_t);

std::size_t AlignUp(std::size_t n) {
  return (n + kSegmentAlignment - 1) / kSegmentAlignment * kSegmentAlignment;
}

std::size_t HeaderBytes(std::size_t n_columns) {
  return sizeof(SegmentHeader) + n_columns * sizeof(SegmentColumn);
}

/// Bytes of the first region of a column; nothing on overflow.
std::optional<std::size_t> RegionBytes(bool variable, std::size_t row_bytes, std::size_t rows) {
  std::size_t bytes = 0;
  const bool overflow = variable ? __builtin_mul_overflow(rows + 1, kOffsetBytes, &bytes)
                                 : __builtin_mul_overflow(rows, row_bytes, &bytes);
  if (overflow || bytes > kMaxSegmentBytes) return std::nullopt;
  return bytes;
}

Status Corrupt(const std::string& what) { return DataLoss("corrupt segment: " + what); }

Status WrongField(const std::string& column, const char* field, std::uint64_t found,
                  std::uint64_t expected) {
  return Corrupt("column '" + column + "': " + field + " is " + std::to_string(found) +
                 ", expected " + std::to_string(expected));
}

/// A region must begin aligned, behind everything before it (`*end`), and end within the segment.
Status CheckRegion(const std::string& column, const char* what, std::uint64_t offset,
                   std::uint64_t size, std::uint64_t total, std::uint64_t* end) {
  if (offset % kSegmentAlignment != 0 || offset < *end || offset > total || size > total - offset) {
    return Corrupt("column '" + column + "': " + what + " at " + std::to_string(offset) + " of " +
                   std::to_string(size) + " bytes does not fit between " + std::to_string(*end) +
                   " and " + std::to_string(total));
  }
  *end = offset + size;
  return Status::Ok();
}

Result<ColumnRegion> ReadColumn(const SegmentColumn& raw, const columnar::Column& column,
                                const SegmentHeader& header, std::uint64_t* end) {
  const bool variable = column.variable();
  if (raw.dtype != static_cast<std::int32_t>(column.dtype)) {
    return WrongField(column.name, "dtype", static_cast<std::uint32_t>(raw.dtype),
                      static_cast<std::uint32_t>(column.dtype));
  }
  if (raw.row_bytes != column.row_bytes()) {
    return WrongField(column.name, "row_bytes", raw.row_bytes, column.row_bytes());
  }
  const std::uint32_t flags = variable ? SegmentColumn::kVariableFlag : 0;
  if (raw.flags != flags) return WrongField(column.name, "flags", raw.flags, flags);
  const std::size_t item_bytes = variable ? column.item_bytes() : 0;
  if (raw.item_bytes != item_bytes) {
    return WrongField(column.name, "item_bytes", raw.item_bytes, item_bytes);
  }
  const auto size = RegionBytes(variable, column.row_bytes(), header.capacity_rows);
  if (!size) return Corrupt("column '" + column.name + "': capacity overflows");
  if (raw.size != *size) return WrongField(column.name, "size", raw.size, *size);
  ARC_TRY(CheckRegion(column.name, "region", raw.offset, raw.size, header.size_bytes, end));
  if (variable) {
    ARC_TRY(CheckRegion(column.name, "row bytes", raw.data_offset, raw.data_size, header.size_bytes,
                        end));
  } else if (raw.data_offset != 0 || raw.data_size != 0) {
    return Corrupt("column '" + column.name + "': row bytes in a column of fixed width");
  }
  return ColumnRegion{column.dtype,    raw.row_bytes, raw.offset, raw.size,
                      raw.data_offset, raw.data_size, item_bytes};
}

Status CheckHeader(const SegmentHeader& header, std::size_t available, std::size_t n_columns) {
  if (header.magic != SegmentHeader::kMagic) return Corrupt("wrong magic");
  if (header.version != SegmentHeader::kVersion) {
    return Corrupt("version " + std::to_string(header.version) + ", this program reads version " +
                   std::to_string(SegmentHeader::kVersion));
  }
  if (header.size_bytes > available || header.size_bytes < HeaderBytes(n_columns)) {
    return Corrupt("size " + std::to_string(header.size_bytes) + ", mapped are " +
                   std::to_string(available) + " bytes");
  }
  if (header.n_columns != n_columns) {
    return Corrupt(std::to_string(header.n_columns) + " columns, the schema has " +
                   std::to_string(n_columns));
  }
  if (header.capacity_rows == 0 || header.capacity_rows > kMaxSegmentRows) {
    return Corrupt("capacity of " + std::to_string(header.capacity_rows) + " rows");
  }
  return Status::Ok();
}

}  // namespace

Result<SegmentLayout> SegmentLayout::Plan(const columnar::Schema& schema, std::size_t capacity_rows,
                                          std::span<const std::size_t> data_bytes) {
  if (capacity_rows == 0 || capacity_rows > kMaxSegmentRows) {
    return InvalidArgument("a segment of " + std::to_string(capacity_rows) +
                           " rows is not possible");
  }
  SegmentLayout layout;
  layout.capacity_rows = capacity_rows;
  std::size_t end = HeaderBytes(schema.columns.size());
  const auto place = [&end](std::size_t bytes) {
    const std::size_t offset = AlignUp(end);
    end = offset + bytes;  // both at most kMaxSegmentBytes
    return offset;
  };
  std::size_t variables = 0;
  for (const columnar::Column& column : schema.columns) {
    ColumnRegion region{column.dtype, column.row_bytes(), 0, 0, 0, 0, 0};
    if (column.variable()) region.item_bytes = column.item_bytes();
    const auto size = RegionBytes(region.variable(), region.row_bytes, capacity_rows);
    if (!size) return InvalidArgument("column '" + column.name + "': a segment would be too large");
    region.size = *size;
    region.offset = place(region.size);
    if (region.variable()) {
      if (variables >= data_bytes.size() || data_bytes[variables] > kMaxSegmentBytes) {
        return InvalidArgument("column '" + column.name + "': no room given for its bytes");
      }
      region.data_size = data_bytes[variables++];
      region.data_offset = place(region.data_size);
    }
    if (end > kMaxSegmentBytes) {
      return InvalidArgument("column '" + column.name + "': a segment would be too large");
    }
    layout.columns.push_back(region);
  }
  layout.size_bytes = AlignUp(end);
  return layout;
}

void SegmentLayout::WriteTo(std::byte* base) const {
  SegmentHeader header{};
  header.magic = SegmentHeader::kMagic;
  header.version = SegmentHeader::kVersion;
  header.size_bytes = size_bytes;
  header.capacity_rows = capacity_rows;
  header.n_columns = columns.size();
  std::memcpy(base, &header, sizeof(header));
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const ColumnRegion& c = columns[i];
    SegmentColumn raw{};
    raw.dtype = static_cast<std::int32_t>(c.dtype);
    raw.flags = c.variable() ? SegmentColumn::kVariableFlag : 0;
    raw.item_bytes = c.item_bytes;
    raw.row_bytes = c.row_bytes;
    raw.offset = c.offset;
    raw.size = c.size;
    raw.data_offset = c.data_offset;
    raw.data_size = c.data_size;
    std::memcpy(base + HeaderBytes(i), &raw, sizeof(raw));
  }
}

Result<SegmentLayout> SegmentLayout::Read(std::span<const std::byte> available,
                                          const columnar::Schema& schema) {
  const std::size_t n_columns = schema.columns.size();
  if (available.size() < HeaderBytes(n_columns)) {
    return Corrupt(std::to_string(available.size()) + " bytes hold no header");
  }
  SegmentHeader header;
  std::memcpy(&header, available.data(), sizeof(header));
  ARC_TRY(CheckHeader(header, available.size(), n_columns));
  SegmentLayout layout;
  layout.capacity_rows = header.capacity_rows;
  layout.size_bytes = header.size_bytes;
  layout.columns.reserve(n_columns);
  std::uint64_t end = HeaderBytes(n_columns);
  for (std::size_t i = 0; i < n_columns; ++i) {
    SegmentColumn raw;
    std::memcpy(&raw, available.data() + HeaderBytes(i), sizeof(raw));
    ARC_ASSIGN(ColumnRegion region, ReadColumn(raw, schema.columns[i], header, &end));
    layout.columns.push_back(region);
  }
  return layout;
}

}  // namespace arcflow::feed
