// SPDX-License-Identifier: Apache-2.0
// SegmentLayout: where the columns of a segment lie in its shared memory; written by the writer,
// checked by every reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/columnar/schema.h"

namespace arcflow::feed {

/// First bytes of a segment; docs/formats/segment.md. Any change bumps kVersion. Written before the
/// first publish.
struct SegmentHeader {
  static constexpr std::uint32_t kMagic = 0x53435241;  // "ARCS"
  static constexpr std::uint32_t kVersion = 2;

  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t size_bytes;     // of header and all regions; at most the size of the file
  std::uint64_t capacity_rows;  // rows there is room for; how many are there is told by `publish`,
                                // never stored here
  std::uint64_t n_columns;
  std::uint64_t reserved[4];
};
static_assert(sizeof(SegmentHeader) == 64 && std::is_trivially_copyable_v<SegmentHeader>);

/// One of these a column, in the schema's order, right after the header.
struct SegmentColumn {
  std::int32_t dtype;       // columnar::DType
  std::uint32_t flags;      // kVariableFlag or 0
  std::uint64_t row_bytes;  // 0 for variable columns
  std::uint64_t
      offset;  // fixed width: rows one after the other; variable: int64 offsets[capacity_rows + 1]
  std::uint64_t size;         // bytes of that region
  std::uint64_t data_offset;  // variable: the bytes; else 0
  std::uint64_t data_size;
  std::uint64_t item_bytes;  // variable: every offset is a multiple of this; else 0
  std::uint64_t reserved_end;

  static constexpr std::uint32_t kVariableFlag = 1;
};
static_assert(sizeof(SegmentColumn) == 64 && std::is_trivially_copyable_v<SegmentColumn>);

/// Where one column lies, in bytes from the start of the segment. All regions begin at multiples of
/// kSegmentAlignment.
struct ColumnRegion {
  columnar::DType dtype = columnar::DType::kFloat32;
  std::size_t row_bytes = 0;
  std::size_t offset = 0;
  std::size_t size = 0;
  std::size_t data_offset = 0;
  std::size_t data_size = 0;
  std::size_t item_bytes = 0;  // of variable columns, whose offsets count bytes; else 0

  bool variable() const { return item_bytes > 0; }
  bool operator==(const ColumnRegion&) const = default;
};

inline constexpr std::size_t kSegmentAlignment = 64;
inline constexpr std::size_t kMaxSegmentRows = std::size_t{1} << 28;
inline constexpr std::size_t kMaxSegmentBytes = std::size_t{1} << 46;

/// The layout of one segment, in this process's own memory: readers use it, and never look at the
/// shared header again. Threads: plain data.
struct SegmentLayout {
  std::size_t capacity_rows = 0;
  std::size_t size_bytes = 0;
  std::vector<ColumnRegion> columns;

  /// Lays out `capacity_rows` rows of `schema`; `data_bytes[i]` is the room for the bytes of the
  /// i-th variable column (counting variable columns only). Errors: InvalidArgument for sizes
  /// beyond kMaxSegmentRows or kMaxSegmentBytes.
  static Result<SegmentLayout> Plan(const columnar::Schema& schema, std::size_t capacity_rows,
                                    std::span<const std::size_t> data_bytes);

  /// Writes header and column descriptors to the start of a segment of at least size_bytes.
  void WriteTo(std::byte* base) const;

  /// Reads the layout of a segment that another process wrote, checking every field against
  /// `schema` and `available`, the bytes that are mapped (Mapping::Map has checked those against
  /// fstat). Reads each field once. Errors: DataLoss that says which field is wrong.
  static Result<SegmentLayout> Read(std::span<const std::byte> available,
                                    const columnar::Schema& schema);

  bool operator==(const SegmentLayout&) const = default;
};

}  // namespace arcflow::feed
