// SPDX-License-Identifier: Apache-2.0
// ViewBatch: every check a record batch must pass before one byte of it is copied.
#include "arcflow/columnar/arrow_view.h"

#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>

#include "arcflow/columnar/arrow_format.h"

namespace arcflow::columnar {
namespace {

template <typename T>
T LoadAt(const std::byte* base, std::size_t i) {
  T value;
  std::memcpy(&value, base + i * sizeof(T), sizeof(T));  // Arrow buffers may lie anywhere
  return value;
}

const std::byte* Buffer(const ArrowArray& array, std::int64_t i) {
  if (array.n_buffers <= i || array.buffers == nullptr) return nullptr;
  return static_cast<const std::byte*>(array.buffers[i]);
}

/// Rows [begin, begin + rows) of an array, its own offset included.
struct Range {
  std::size_t begin = 0;
  std::size_t rows = 0;
};

std::string RowsText(std::uint64_t n, const char* one, const char* many) {
  return std::to_string(n) + " " + (n == 1 ? one : many);
}

/// `array.offset + begin` after checking that the array holds `rows` values from `begin`, with no
/// sum overflowing.
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

Status CheckNoNulls(const ArrowArray& array, Range range, const char* advice) {
  const std::byte* bitmap = Buffer(array, 0);
  if (bitmap == nullptr) {
    if (array.null_count > 0 && range.rows > 0) {
      return InvalidArgument("says it has nulls but has no validity bitmap");
    }
    return Status::Ok();
  }
  const std::size_t nulls = CountNulls(bitmap, range);
  if (nulls == 0) return Status::Ok();
  return InvalidArgument(RowsText(nulls, "null", "nulls") + "; " + advice);
}

constexpr char kRowAdvice[] =
    "tensors have no nulls: drop such rows (df.dropna) or fill them (df.fillna) before feeding";

/// Checks `rows + 1` offsets: not negative, never falling, at most `limit`; with `exact`, each step
/// must be that long.
template <typename T>
Status CheckOffsets(const std::byte* offsets, std::size_t rows, std::uint64_t limit,
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
                             "; every row must have the same length: pad or cut it before feeding");
    }
  }
  return InvalidArgument("corrupt offsets");
}

Status CheckOffsets(bool wide, const std::byte* offsets, std::size_t rows, std::uint64_t limit,
                    const std::size_t* exact, const char* unit) {
  return wide ? CheckOffsets<std::int64_t>(offsets, rows, limit, exact, unit)
              : CheckOffsets<std::int32_t>(offsets, rows, limit, exact, unit);
}

std::uint64_t OffsetAt(bool wide, const std::byte* offsets, std::size_t i) {
  return wide ? static_cast<std::uint64_t>(LoadAt<std::int64_t>(offsets, i))
              : static_cast<std::uint64_t>(LoadAt<std::int32_t>(offsets, i));
}

Status WrongType(const Column& column, const ArrowSchema& type) {
  const std::string_view format = type.format;
  std::string advice;
  if (format == "vu" || format == "vz") advice = "; cast views to string or binary";
  if (format == "n") advice = "; the column holds only nulls";
  if (format.substr(0, 2) == "ts" && column.dtype == DType::kInt64) {
    advice = "; only timestamps in microseconds become int64";
  }
  return InvalidArgument("expected " + DescribeColumn(column) + ", found " + DescribeType(type) +
                         advice);
}

Status NoBuffer(const char* what) { return InvalidArgument(std::string("has no ") + what); }

/// Elements [range] of a primitive array as a dense or bit view.
Result<ColumnView> ViewElements(const Column& column, const ArrowArray& array, Range range) {
  ColumnView view;
  if (range.rows == 0) return view;
  const std::byte* data = Buffer(array, 1);
  if (data == nullptr) return NoBuffer("data buffer");
  if (column.dtype == DType::kBool) {
    view.layout = ColumnView::Layout::kBits;
    view.data = data + range.begin / 8;
    view.first_bit = range.begin % 8;
  } else {
    view.data = data + range.begin * SizeOf(column.dtype);
  }
  return view;
}

/// A list column; `range` counts lists.
Result<ColumnView> ViewList(const Column& column, const ArrowSchema& type, const ArrowArray& array,
                            Range range) {
  const std::string_view format = type.format;
  const std::size_t k = column.row_elements();
  if (array.n_children != 1 || array.children == nullptr || array.children[0] == nullptr) {
    return NoBuffer("list values");
  }
  const ArrowArray& child = *array.children[0];
  std::size_t first = 0;
  if (format == "+l" || format == "+L") {
    if (range.rows > 0) {
      const bool wide = format == "+L";
      const std::byte* offsets = Buffer(array, 1);
      if (offsets == nullptr) return NoBuffer("offsets buffer");
      offsets += range.begin * (wide ? 8 : 4);
      const std::uint64_t limit = child.length < 0 ? 0 : static_cast<std::uint64_t>(child.length);
      ARC_TRY(CheckOffsets(wide, offsets, range.rows, limit, &k, "values"));
      first = OffsetAt(wide, offsets, 0);
    }
  } else {
    const std::int64_t size = FixedSizeOf(format, "+w:").value_or(-1);
    if (size < 0 || static_cast<std::size_t>(size) != k) {
      return InvalidArgument("row 0: " + std::to_string(size) + " values, the schema says " +
                             std::to_string(k));
    }
    if (__builtin_mul_overflow(range.begin, k, &first)) return InvalidArgument("impossible offset");
  }
  std::size_t elements = 0;
  std::size_t end = 0;
  if (__builtin_mul_overflow(range.rows, k, &elements) ||
      __builtin_add_overflow(first, elements, &end)) {
    return InvalidArgument("impossible length");
  }
  const Result<Range> values = RangeOf(child, first, elements);
  if (!values.ok()) return values.status().WithContext("list values");
  if (Status s = CheckNoNulls(child, *values, kRowAdvice); !s.ok()) {
    return s.WithContext("list values");
  }
  return ViewElements(column, child, *values);
}

/// Strings and raw values: binary, utf8, their large forms and fixed_size_binary.
Result<ColumnView> ViewBinary(const Column& column, const ArrowSchema& type,
                              const ArrowArray& array, Range range) {
  const std::string_view format = type.format;
  const bool raw = column.source == Source::kRaw;
  const std::size_t row_bytes = column.row_bytes();
  ColumnView view;
  if (const auto size = FixedSizeOf(format, "w:")) {
    const auto n = static_cast<std::size_t>(*size);
    if (raw && n != row_bytes) {
      return InvalidArgument("expected " + DescribeColumn(column) + ", found " +
                             DescribeType(type));
    }
    view.layout = raw ? ColumnView::Layout::kDense : ColumnView::Layout::kFixedSize;
    view.value_bytes = n;
    if (range.rows == 0 || n == 0) return view;
    const std::byte* data = Buffer(array, 1);
    std::size_t skip = 0;
    if (data == nullptr) return NoBuffer("data buffer");
    if (__builtin_mul_overflow(range.begin, n, &skip)) return InvalidArgument("impossible offset");
    view.data = data + skip;
    return view;
  }
  const bool wide = format == "U" || format == "Z";
  view.layout = raw    ? ColumnView::Layout::kDense
                : wide ? ColumnView::Layout::kOffsets64
                       : ColumnView::Layout::kOffsets32;
  if (range.rows == 0) return view;
  const std::byte* offsets = Buffer(array, 1);
  if (offsets == nullptr) return NoBuffer("offsets buffer");
  offsets += range.begin * (wide ? 8 : 4);
  constexpr auto kNoLimit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  ARC_TRY(CheckOffsets(wide, offsets, range.rows, kNoLimit, raw ? &row_bytes : nullptr, "bytes"));
  const std::byte* data = Buffer(array, 2);
  const std::uint64_t first = OffsetAt(wide, offsets, 0);
  if (data == nullptr && OffsetAt(wide, offsets, range.rows) > first)
    return NoBuffer("data buffer");
  view.data = raw && data != nullptr ? data + first : data;
  view.offsets = raw ? nullptr : offsets;
  return view;
}

/// A boolean tensor must hold 0 and 1; raw bytes may hold anything.
Status CheckRawBooleans(const Column& column, const ColumnView& view, std::size_t rows) {
  const std::size_t n = rows * column.row_elements();
  for (std::size_t i = 0; i < n; ++i) {
    if (std::to_integer<unsigned>(view.data[i]) > 1) {
      return InvalidArgument("row " + std::to_string(i / column.row_elements()) + ": byte " +
                             std::to_string(std::to_integer<unsigned>(view.data[i])) +
                             " is no boolean, which is 0 or 1");
    }
  }
  return Status::Ok();
}

bool TypeFits(const Column& column, const ArrowSchema& type) {
  const std::string_view format = type.format;
  const bool binary = format == "z" || format == "Z" || FixedSizeOf(format, "w:").has_value();
  switch (column.source) {
    case Source::kScalar:
      if (column.dtype == DType::kString) return binary || format == "u" || format == "U";
      return IsElementOf(format, column.dtype);
    case Source::kRaw:
      return binary;
    case Source::kList:
      break;
  }
  if (format != "+l" && format != "+L" && !FixedSizeOf(format, "+w:")) return false;
  if (type.n_children != 1 || type.children == nullptr) return false;
  const ArrowSchema* child = type.children[0];
  return child != nullptr && child->format != nullptr && child->dictionary == nullptr &&
         IsElementOf(child->format, column.dtype);
}

Result<ColumnView> ViewColumn(const Column& column, const ArrowSchema& type,
                              const ArrowArray& array, std::size_t begin, std::size_t rows) {
  if (type.format == nullptr) return InvalidArgument("has no Arrow type");
  if (type.dictionary != nullptr || array.dictionary != nullptr) {
    return InvalidArgument("is dictionary-encoded (" + DescribeType(type) +
                           "); decode it to its value type before feeding");
  }
  if (!TypeFits(column, type)) return WrongType(column, type);
  ARC_ASSIGN(const Range range, RangeOf(array, begin, rows));
  ARC_TRY(CheckNoNulls(array, range, kRowAdvice));
  if (column.source == Source::kList) return ViewList(column, type, array, range);
  if (column.source == Source::kScalar && column.dtype != DType::kString) {
    return ViewElements(column, array, range);
  }
  ARC_ASSIGN(ColumnView view, ViewBinary(column, type, array, range));
  if (column.dtype == DType::kBool) ARC_TRY(CheckRawBooleans(column, view, rows));
  return view;
}

Status CheckBatchStructs(const ArrowSchema& type, const ArrowArray& array) {
  if (type.release == nullptr || array.release == nullptr) {
    return InvalidArgument("the Arrow batch was released before it was read");
  }
  if (type.format == nullptr || std::string_view(type.format) != "+s") {
    return InvalidArgument("expected a record batch, found " + DescribeType(type));
  }
  if (type.n_children < 0 || type.n_children != array.n_children ||
      (type.n_children > 0 && (type.children == nullptr || array.children == nullptr))) {
    return InvalidArgument("malformed record batch: type and data have different columns");
  }
  for (std::int64_t i = 0; i < type.n_children; ++i) {
    if (type.children[i] == nullptr || array.children[i] == nullptr) {
      return InvalidArgument("malformed record batch: column " + std::to_string(i) + " is null");
    }
  }
  return Status::Ok();
}

/// Index of every child by name; -1 for a name that is there more than once.
std::unordered_map<std::string_view, std::int64_t> ChildrenByName(const ArrowSchema& type) {
  std::unordered_map<std::string_view, std::int64_t> index;
  index.reserve(static_cast<std::size_t>(type.n_children));
  for (std::int64_t i = 0; i < type.n_children; ++i) {
    const char* name = type.children[i]->name;
    const auto [it, fresh] = index.emplace(name != nullptr ? name : "", i);
    if (!fresh) it->second = -1;
  }
  return index;
}

std::string Names(const ArrowSchema& type) {
  constexpr std::int64_t kShown = 20;
  std::string text;
  for (std::int64_t i = 0; i < type.n_children && i < kShown; ++i) {
    const char* name = type.children[i]->name;
    text += (i > 0 ? ", '" : "'") + std::string(name != nullptr ? name : "") + "'";
  }
  if (type.n_children > kShown) text += ", …";
  return text.empty() ? "none" : text;
}

}  // namespace

Result<BatchView> ViewBatch(const Schema& schema, const ArrowSchema& type,
                            const ArrowArray& array) {
  ARC_TRY(CheckBatchStructs(type, array));
  const std::size_t length = array.length < 0 ? 0 : static_cast<std::size_t>(array.length);
  const Result<Range> range = RangeOf(array, 0, length);
  if (!range.ok()) return range.status().WithContext("record batch");
  if (Status s = CheckNoNulls(array, *range, kRowAdvice); !s.ok()) {
    return s.WithContext("record batch");
  }
  const auto index = ChildrenByName(type);
  BatchView batch;
  batch.rows = range->rows;
  batch.columns.reserve(schema.columns.size());
  for (const Column& column : schema.columns) {
    const std::string label = "column '" + column.name + "'";
    const auto it = index.find(column.name);
    if (it == index.end()) {
      return InvalidArgument(label + ": missing; the batch has " + Names(type));
    }
    if (it->second < 0) return InvalidArgument(label + ": there twice in the batch");
    Result<ColumnView> view = ViewColumn(column, *type.children[it->second],
                                         *array.children[it->second], range->begin, range->rows);
    if (!view.ok()) return view.status().WithContext(label);
    batch.columns.push_back(*view);
  }
  return batch;
}

}  // namespace arcflow::columnar
