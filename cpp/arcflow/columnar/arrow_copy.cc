// SPDX-License-Identifier: Apache-2.0
// Copies rows of a checked Arrow column to dense memory, at the speed of memcpy where Arrow's
// layout allows.
#include <algorithm>
#include <array>
#include <cstring>

#include "arcflow/base/stream_copy.h"
#include "arcflow/columnar/arrow_cast.h"
#include "arcflow/columnar/arrow_parts.h"
#include "arcflow/columnar/arrow_view.h"

namespace arcflow::columnar {
namespace {

constexpr std::array<std::array<std::uint8_t, 8>, 256> MakeBitTable() {
  std::array<std::array<std::uint8_t, 8>, 256> table{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (unsigned bit = 0; bit < 8; ++bit) table[byte][bit] = (byte >> bit) & 1U;
  }
  return table;
}
constexpr auto kBits = MakeBitTable();

void CopyBits(const std::byte* bits, std::size_t first, std::size_t count, std::byte* out) {
  const std::size_t end = first + count;
  std::size_t i = first;
  const auto one = [&] {
    *out++ = static_cast<std::byte>((std::to_integer<unsigned>(bits[i / 8]) >> (i % 8)) & 1U);
    ++i;
  };
  while (i < end && i % 8 != 0) one();
  for (; i + 8 <= end; i += 8, out += 8) {
    std::memcpy(out, kBits[std::to_integer<unsigned>(bits[i / 8])].data(), 8);
  }
  while (i < end) one();
}

/// Number of the item of `data` with which row `i` begins (or, for the last + 1, ends).
std::uint64_t Position(const ColumnView& view, std::size_t i) {
  switch (view.layout) {
    case ColumnView::Layout::kOffsets32:
      return view.offsets == nullptr
                 ? 0
                 : static_cast<std::uint64_t>(LoadAt<std::int32_t>(view.offsets, i));
    case ColumnView::Layout::kOffsets64:
      return view.offsets == nullptr
                 ? 0
                 : static_cast<std::uint64_t>(LoadAt<std::int64_t>(view.offsets, i));
    default:
      return static_cast<std::uint64_t>(i) * view.value_bytes;
  }
}

/// `unit` is the bytes of an item.
template <typename T>
void CopyEnds(const std::byte* offsets, std::size_t rows, std::int64_t unit, std::int64_t base,
              std::int64_t* ends) {
  const auto first = static_cast<std::int64_t>(LoadAt<T>(offsets, 0));
  for (std::size_t i = 0; i < rows; ++i) {
    ends[i] = (static_cast<std::int64_t>(LoadAt<T>(offsets, i + 1)) - first) * unit + base;
  }
}

/// Bits as bytes and, with a cast, those as something else.
void CopyBitElements(const ColumnView& view, std::size_t first, std::size_t count, std::byte* out) {
  if (!view.cast) return CopyBits(view.data, view.first_bit + first, count, out);
  std::array<std::byte, 1024> bytes;
  for (std::size_t done = 0; done < count; done += bytes.size()) {
    const std::size_t n = std::min(bytes.size(), count - done);
    CopyBits(view.data, view.first_bit + first + done, n, bytes.data());
    CastElements(DType::kBool, view.type, bytes.data(), n, out + done * SizeOf(view.type));
  }
}

}  // namespace

void CopyRows(const ColumnView& view, const Column& column, std::size_t begin, std::size_t rows,
              std::byte* out) {
  const std::size_t bytes = rows * column.row_bytes();
  if (bytes == 0) return;
  const std::size_t k = column.row_elements();
  if (view.layout == ColumnView::Layout::kBits) {
    return CopyBitElements(view, begin * k, rows * k, out);
  }
  if (view.cast) {
    const std::byte* from = view.data + begin * k * SizeOf(view.cast_from);
    return CastElements(view.cast_from, view.type, from, rows * k, out);
  }
  StreamCopy(out, view.data + begin * column.row_bytes(), bytes);
}

std::uint64_t StringBytes(const ColumnView& view, std::size_t begin, std::size_t rows) {
  return rows == 0 ? 0 : (Position(view, begin + rows) - Position(view, begin)) * view.item_bytes;
}

std::size_t StringsThatFit(const ColumnView& view, std::size_t begin, std::size_t rows,
                           std::uint64_t max_bytes) {
  std::size_t low = 0;  // fits
  std::size_t high = rows;
  while (low < high) {
    const std::size_t middle = low + (high - low + 1) / 2;
    if (StringBytes(view, begin, middle) <= max_bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

void CopyStrings(const ColumnView& view, std::size_t begin, std::size_t rows, std::int64_t base,
                 std::int64_t* ends, std::byte* bytes) {
  if (rows == 0) return;
  const auto unit = static_cast<std::int64_t>(view.item_bytes);
  switch (view.layout) {
    case ColumnView::Layout::kOffsets32:
      CopyEnds<std::int32_t>(view.offsets + begin * 4, rows, unit, base, ends);
      break;
    case ColumnView::Layout::kOffsets64:
      CopyEnds<std::int64_t>(view.offsets + begin * 8, rows, unit, base, ends);
      break;
    default:
      for (std::size_t i = 0; i < rows; ++i) {
        ends[i] = base + static_cast<std::int64_t>((i + 1) * view.value_bytes);
      }
  }
  const std::uint64_t total = StringBytes(view, begin, rows);
  if (total == 0) return;
  const std::uint64_t first = Position(view, begin);
  if (view.cast) {
    const std::size_t skip = first * view.item_elements * SizeOf(view.cast_from);
    const std::size_t elements = total / view.item_bytes * view.item_elements;
    return CastElements(view.cast_from, view.type, view.data + skip, elements, bytes);
  }
  StreamCopy(bytes, view.data + first * view.item_bytes, total);
}

}  // namespace arcflow::columnar
