// SPDX-License-Identifier: Apache-2.0
// Copies rows of a checked Arrow column to dense memory, at the speed of memcpy where Arrow's
// layout allows.
#include <array>
#include <cstring>

#include "arcflow/base/stream_copy.h"
#include "arcflow/columnar/arrow_view.h"

namespace arcflow::columnar {
namespace {

template <typename T>
T LoadAt(const std::byte* base, std::size_t i) {
  T value;
  std::memcpy(&value, base + i * sizeof(T), sizeof(T));
  return value;
}

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

/// Position in `data` where string `i` begins (or, for the last + 1, where the last one ends).
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

template <typename T>
void CopyEnds(const std::byte* offsets, std::size_t rows, std::int64_t base, std::int64_t* ends) {
  const std::int64_t shift = base - static_cast<std::int64_t>(LoadAt<T>(offsets, 0));
  for (std::size_t i = 0; i < rows; ++i) {
    ends[i] = static_cast<std::int64_t>(LoadAt<T>(offsets, i + 1)) + shift;
  }
}

}  // namespace

void CopyRows(const ColumnView& view, const Column& column, std::size_t begin, std::size_t rows,
              std::byte* out) {
  const std::size_t bytes = rows * column.row_bytes();
  if (bytes == 0) return;
  if (view.layout == ColumnView::Layout::kBits) {
    const std::size_t k = column.row_elements();
    CopyBits(view.data, view.first_bit + begin * k, rows * k, out);
    return;
  }
  StreamCopy(out, view.data + begin * column.row_bytes(), bytes);
}

std::uint64_t StringBytes(const ColumnView& view, std::size_t begin, std::size_t rows) {
  return rows == 0 ? 0 : Position(view, begin + rows) - Position(view, begin);
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
  switch (view.layout) {
    case ColumnView::Layout::kOffsets32:
      CopyEnds<std::int32_t>(view.offsets + begin * 4, rows, base, ends);
      break;
    case ColumnView::Layout::kOffsets64:
      CopyEnds<std::int64_t>(view.offsets + begin * 8, rows, base, ends);
      break;
    default:
      for (std::size_t i = 0; i < rows; ++i) {
        ends[i] = base + static_cast<std::int64_t>((i + 1) * view.value_bytes);
      }
  }
  const std::uint64_t total = StringBytes(view, begin, rows);
  StreamCopy(bytes, view.data + Position(view, begin), total);
}

}  // namespace arcflow::columnar
