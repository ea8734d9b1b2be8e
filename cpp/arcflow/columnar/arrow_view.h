// SPDX-License-Identifier: Apache-2.0
// BatchView: a record batch of the Arrow C data interface, checked against a Schema, ready to be
// copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/columnar/schema.h"

namespace arcflow::columnar {

/// Where the values of one column lie; every offset of the batch, the column and its children is
/// already in the pointers. Buffers need no alignment. Valid as long as the ArrowArray it was made
/// from.
struct ColumnView {
  enum class Layout : int {
    kDense = 0,  // fixed width: rows one after the other from `data`
    kBits = 1,   // bool: one bit an element, least significant first, element 0 is bit `first_bit`
                 // of `data`
    kOffsets32 = 2,  // variable: `offsets` is int32[rows + 1], numbers of items in `data`
    kOffsets64 = 3,  // variable: `offsets` is int64[rows + 1], numbers of items in `data`
    kFixedSize = 4,  // strings of `value_bytes` each, one after the other from `data`
  };
  Layout layout = Layout::kDense;
  const std::byte* data = nullptr;     // may be null when there is nothing to copy
  const std::byte* offsets = nullptr;  // variable columns with offsets only
  std::size_t first_bit = 0;
  std::size_t value_bytes = 0;
  std::size_t item_bytes = 1;     // variable: bytes of an item in the segment
  std::size_t item_elements = 1;  // variable, with `cast_from`: elements of an item
  DType type = DType::kUInt8;     // with `cast`: of the elements in the segment
  DType cast_from = DType::kUInt8;
  bool cast = false;                  // the elements at `data` are of `cast_from`
  std::shared_ptr<const void> owned;  // what `data` or `offsets` lie in, if not in Arrow's buffers
};

/// The rows of a batch; `columns` are in the schema's order.
struct BatchView {
  std::size_t rows = 0;
  std::vector<ColumnView> columns;
};

/// Checks a record batch (format "+s") against `schema`: children are found by name in any order,
/// others are ignored. Slices are honoured on every level: the batch's, the column's and the list
/// child's offset. Cost: reads validity bitmaps and offsets of lists and strings; values only of
/// raw booleans, integers to be cast to smaller ones, and columns that must be put together anew
/// (those with nulls to fill, decimals, vectors, lengths), which `owned` memory then holds.
/// Errors: InvalidArgument that names the column and, where there is one, the first bad row of the
/// batch, for: a released or malformed array, a column that is missing or there twice, another type
/// than the schema says (both are named), dictionary encoding, nulls without a fill (counted, not
/// believed), a list or raw value of another length, offsets that are negative or fall, a number
/// that the column's type does not hold, an expected field with another value.
Result<BatchView> ViewBatch(const Schema& schema, const ArrowSchema& type, const ArrowArray& array);

/// Copies rows [begin, begin + rows) of a fixed-width column to `out` (rows * column.row_bytes());
/// one memcpy, but for bits and casts. Requires the range to lie in the view.
void CopyRows(const ColumnView& view, const Column& column, std::size_t begin, std::size_t rows,
              std::byte* out);

/// Bytes that rows [begin, begin + rows) of a variable column take in a segment. Constant cost.
std::uint64_t StringBytes(const ColumnView& view, std::size_t begin, std::size_t rows);

/// How many of the rows [begin, begin + rows) together take at most `max_bytes`. Logarithmic
/// cost.
std::size_t StringsThatFit(const ColumnView& view, std::size_t begin, std::size_t rows,
                           std::uint64_t max_bytes);

/// Copies rows [begin, begin + rows) of a variable column to `bytes` (StringBytes() of them, one
/// memcpy, but for casts) and their ends to `ends`: `ends[i]` is `base` plus the bytes of the first
/// i + 1 rows. `ends` must be aligned to 8 bytes.
void CopyStrings(const ColumnView& view, std::size_t begin, std::size_t rows, std::int64_t base,
                 std::int64_t* ends, std::byte* bytes);

}  // namespace arcflow::columnar
