// SPDX-License-Identifier: Apache-2.0
// Parts of Arrow arrays behind bounds checks: buffers, ranges, validity and offsets. Used by the
// views of this layer only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "arcflow/base/status.h"
#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/columnar/arrow_view.h"
#include "arcflow/columnar/schema.h"

namespace arcflow::columnar {

/// Element `i` at `base`, which needs no alignment: Arrow buffers may lie anywhere.
template <typename T>
T LoadAt(const std::byte* base, std::size_t i) {
  T value;
  std::memcpy(&value, base + i * sizeof(T), sizeof(T));
  return value;
}

/// Bit `i` of `bits`, least significant first.
inline bool BitAt(const std::byte* bits, std::size_t i) {
  return ((std::to_integer<unsigned>(bits[i / 8]) >> (i % 8)) & 1U) != 0;
}

/// Buffer `i` of an array; nullptr when there is none.
const std::byte* Buffer(const ArrowArray& array, std::int64_t i);

/// Values [begin, begin + rows) of an array's buffers: its own offset is included.
struct Range {
  std::size_t begin = 0;
  std::size_t rows = 0;
};

/// `array.offset + begin` after checking that the array holds `rows` values from `begin`, with no
/// sum overflowing.
Result<Range> RangeOf(const ArrowArray& array, std::size_t begin, std::size_t rows);

std::size_t CountNulls(const std::byte* bitmap, Range range);
/// Nulls of an array in a range; InvalidArgument when it claims some and has no bitmap.
Result<std::size_t> NullsOf(const ArrowArray& array, Range range);
/// InvalidArgument with the number of nulls and what to do.
Status CheckNoNulls(const ArrowArray& array, Range range);

/// Checks `rows + 1` offsets: not negative, never falling, at most `limit`; with `exact`, each step
/// must be that long. `wide`: int64, else int32.
Status CheckOffsets(bool wide, const std::byte* offsets, std::size_t rows, std::uint64_t limit,
                    const std::size_t* exact, const char* unit);
std::uint64_t OffsetAt(bool wide, const std::byte* offsets, std::size_t i);

Status NoBuffer(const char* what);
/// What the column expects and what was found.
Status WrongType(const Column& column, const ArrowSchema& type);

/// Strings and raw values: binary, utf8, their large forms and fixed_size_binary.
Result<ColumnView> ViewBinary(const Column& column, const ArrowSchema& type,
                              const ArrowArray& array, Range range);

}  // namespace arcflow::columnar
