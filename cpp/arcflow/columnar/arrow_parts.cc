// SPDX-License-Identifier: Apache-2.0
// Bounds checks of Arrow arrays, with no sum overflowing.
#include "arcflow/columnar/arrow_parts.h"

#include <limits>
#include <type_traits>

namespace arcflow::columnar {
namespace {

constexpr char kRowAdvice[] =
    "tensors have no nulls: drop such rows (df.dropna) or fill them (df.fillna) before feeding, or "
    "say fill= or mask= of the Feed";

std::string RowsText(std::uint64_t n, const char* one, const char* many) {
  return std::to_string(n) + " " + (n == 1 ? one : many);
}

/// Checks `rows + 1` offsets: not negative, never falling, at most `limit`; with `exact`, each step
/// must be that long.
template <typename T>
Status CheckOffsetsOf(const std::byte* offsets, std::size_t rows, std::uint64_t limit,
                      const std::size_t* exact, const char* unit) {
  T bad = 0;
  const T first = LoadAt<T>(offsets, 0);
  if (exact != nullptr && *exact <= static_cast<std::size_t>(std::numeric_limits<T>::max())) {
    const T want = static_cast<T>(*exact);
    for (std::size_t i = 0; i < rows; ++i) {
      // Unsigned, because hostile offsets may differ by more than T holds.
      using U = std::make_unsigned_t<T>;
      const U step =
          static_cast<U>(LoadAt<T>(offsets, i + 1)) - static_cast<U>(LoadAt<T>(offsets, i));
      bad = static_cast<T>(bad | static_cast<T>(step ^ static_cast<U>(want)));
    }
  } else {
    for (std::size_t i = 0; i < rows; ++i) {
      bad = static_cast<T>(bad | static_cast<T>(LoadAt<T>(offsets, i + 1) < LoadAt<T>(offsets, i)));
    }
    if (exact != nullptr) bad = 1;
  }
  const T last = LoadAt<T>(offsets, rows);
  if (bad == 0 && first >= 0 && last >= first && static_cast<std::uint64_t>(last) <= limit) {
    return Status::Ok();
  }
  for (std::size_t i = 0; i < rows; ++i) {
    const T a = LoadAt<T>(offsets, i);
    const T b = LoadAt<T>(offsets, i + 1);
    if (a < 0 || b < a || static_cast<std::uint64_t>(b) > limit) {
      return InvalidArgument("row " + std::to_string(i) + ": corrupt offsets " + std::to_string(a) +
                             " and " + std::to_string(b));
    }
    if (exact != nullptr && static_cast<std::uint64_t>(b - a) != *exact) {
      return InvalidArgument("row " + std::to_string(i) + ": " + std::to_string(b - a) + " " +
                             unit + ", the schema says " + std::to_string(*exact) +
                             "; every row must have the same length: pad or cut it before feeding, "
                             "or say None in shapes=");
    }
  }
  return InvalidArgument("corrupt offsets");
}

}  // namespace

const std::byte* Buffer(const ArrowArray& array, std::int64_t i) {
  if (array.n_buffers <= i || array.buffers == nullptr) return nullptr;
  return static_cast<const std::byte*>(array.buffers[i]);
}

Result<Range> RangeOf(const ArrowArray& array, std::size_t begin, std::size_t rows) {
  constexpr std::int64_t kLimit = std::int64_t{1}
                                  << 56;  // far above real sizes, far below overflow
  if (array.length < 0 || array.offset < 0 || array.length > kLimit || array.offset > kLimit) {
    return InvalidArgument("impossible length " + std::to_string(array.length) + " or offset " +
                           std::to_string(array.offset));
  }
  if (begin + rows > static_cast<std::size_t>(array.length)) {
    return InvalidArgument("holds " + std::to_string(array.length) + " values, needs " +
                           std::to_string(begin + rows));
  }
  return Range{static_cast<std::size_t>(array.offset) + begin, rows};
}

std::size_t CountNulls(const std::byte* bitmap, Range range) {
  std::size_t valid = 0;
  std::size_t i = range.begin;
  const std::size_t end = range.begin + range.rows;
  const auto bit = [&](std::size_t at) {
    return (std::to_integer<unsigned>(bitmap[at / 8]) >> (at % 8)) & 1U;
  };
  for (; i < end && i % 8 != 0; ++i) valid += bit(i);
  for (; i + 64 <= end; i += 64) {
    std::uint64_t word;
    std::memcpy(&word, bitmap + i / 8, sizeof(word));
    valid += static_cast<std::size_t>(__builtin_popcountll(word));
  }
  for (; i < end; ++i) valid += bit(i);
  return range.rows - valid;
}

Result<std::size_t> NullsOf(const ArrowArray& array, Range range) {
  const std::byte* bitmap = Buffer(array, 0);
  if (bitmap != nullptr) return CountNulls(bitmap, range);
  if (array.null_count > 0 && range.rows > 0) {
    return InvalidArgument("says it has nulls but has no validity bitmap");
  }
  return std::size_t{0};
}

Status CheckNoNulls(const ArrowArray& array, Range range) {
  ARC_ASSIGN(const std::size_t nulls, NullsOf(array, range));
  if (nulls == 0) return Status::Ok();
  return InvalidArgument(RowsText(nulls, "null", "nulls") + "; " + kRowAdvice);
}

Status CheckOffsets(bool wide, const std::byte* offsets, std::size_t rows, std::uint64_t limit,
                    const std::size_t* exact, const char* unit) {
  return wide ? CheckOffsetsOf<std::int64_t>(offsets, rows, limit, exact, unit)
              : CheckOffsetsOf<std::int32_t>(offsets, rows, limit, exact, unit);
}

std::uint64_t OffsetAt(bool wide, const std::byte* offsets, std::size_t i) {
  return wide ? static_cast<std::uint64_t>(LoadAt<std::int64_t>(offsets, i))
              : static_cast<std::uint64_t>(LoadAt<std::int32_t>(offsets, i));
}

Status NoBuffer(const char* what) { return InvalidArgument(std::string("has no ") + what); }

}  // namespace arcflow::columnar
