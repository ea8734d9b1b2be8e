// SPDX-License-Identifier: Apache-2.0
// ViewBatch: every check a record batch must pass before one byte of it is copied.
#include "arcflow/columnar/arrow_view.h"

#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>

#include "arcflow/columnar/arrow_format.h"
#include "arcflow/columnar/arrow_parts.h"
#include "arcflow/columnar/arrow_walk.h"

namespace arcflow::columnar {

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

namespace {

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
  if (Status s = CheckNoNulls(child, *values); !s.ok()) {
    return s.WithContext("list values");
  }
  return ViewElements(column, child, *values);
}

}  // namespace

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

namespace {

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
    default:
      break;
  }
  if (format != "+l" && format != "+L" && !FixedSizeOf(format, "+w:")) return false;
  if (type.n_children != 1 || type.children == nullptr) return false;
  const ArrowSchema* child = type.children[0];
  return child != nullptr && child->format != nullptr && child->dictionary == nullptr &&
         IsElementOf(child->format, column.dtype);
}

/// Whether the column is one Arrow array as it is: no copy but the one into the segment.
bool IsPlain(const Column& column) {
  return column.path.size() <= 1 && column.levels.size() <= 1 && !column.from &&
         !column.decimal_scale && !column.nulls_allowed() && column.source <= Source::kRaw &&
         (column.dtype == DType::kString || !column.variable());
}

Result<ColumnView> ViewColumn(const Column& column, const ArrowSchema& type,
                              const ArrowArray& array, std::size_t begin, std::size_t rows) {
  if (!IsPlain(column)) {
    ARC_ASSIGN(ColumnView walked, ViewWalked(column, type, array, begin, rows));
    if (column.source == Source::kRaw && column.dtype == DType::kBool) {
      ARC_TRY(CheckRawBooleans(column, walked, rows));
    }
    return walked;
  }
  if (type.format == nullptr) return InvalidArgument("has no Arrow type");
  if (type.dictionary != nullptr || array.dictionary != nullptr) {
    return InvalidArgument("is dictionary-encoded (" + DescribeType(type) +
                           "); decode it to its value type before feeding");
  }
  if (!TypeFits(column, type)) return WrongType(column, type);
  ARC_ASSIGN(const Range range, RangeOf(array, begin, rows));
  ARC_TRY(CheckNoNulls(array, range));
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
  if (Status s = CheckNoNulls(array, *range); !s.ok()) {
    return s.WithContext("record batch");
  }
  const auto index = ChildrenByName(type);
  BatchView batch;
  batch.rows = range->rows;
  batch.columns.reserve(schema.columns.size());
  for (const Column& column : schema.columns) {
    const std::string label = "column '" + column.name + "'";
    const auto it = index.find(column.path.empty() ? column.name : column.path.front());
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
