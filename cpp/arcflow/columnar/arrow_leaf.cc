// SPDX-License-Identifier: Apache-2.0
// ViewWalked: what becomes of the elements that a walk has found: views where they lie as they
// should, else memory of our own.
#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "arcflow/columnar/arrow_cast.h"
#include "arcflow/columnar/arrow_format.h"
#include "arcflow/columnar/arrow_walk.h"

namespace arcflow::columnar {
namespace {

using Int128 = __int128;
constexpr std::int64_t kNull = Walk::kNull;

bool IsBinary(std::string_view format) {
  return format == "z" || format == "Z" || format == "u" || format == "U" ||
         FixedSizeOf(format, "w:").has_value();
}

/// Row boundaries in items, kept by the view.
void SetEdges(const Column& column, const Walk& walk, ColumnView* view,
              std::shared_ptr<const void> data_owner) {
  const std::size_t k = column.row_elements();
  auto offsets = std::make_shared<std::vector<std::int64_t>>(walk.edges.size());
  for (std::size_t i = 0; i < walk.edges.size(); ++i) {
    (*offsets)[i] = static_cast<std::int64_t>(walk.edges[i] / k);
  }
  view->layout = ColumnView::Layout::kOffsets64;
  view->offsets = reinterpret_cast<const std::byte*>(offsets->data());
  view->item_bytes = column.item_bytes();
  view->item_elements = k;
  view->owned = std::make_shared<std::pair<std::shared_ptr<const void>, decltype(offsets)>>(
      std::move(data_owner), std::move(offsets));
}

/// A view of `data`, which lies in `owner`, as all elements of the walk.
ColumnView OwnedElements(const Column& column, const Walk& walk, const void* data,
                         std::shared_ptr<const void> owner) {
  ColumnView view;
  view.data = static_cast<const std::byte*>(data);
  if (column.variable()) {
    SetEdges(column, walk, &view, std::move(owner));
  } else {
    view.owned = std::move(owner);
  }
  return view;
}

void StoreFill(const Fill& fill, DType dtype, std::byte* out) {
  const auto store = [out](auto value) { std::memcpy(out, &value, sizeof(value)); };
  const auto* i = std::get_if<std::int64_t>(&fill);
  const auto* d = std::get_if<double>(&fill);
  switch (dtype) {
    case DType::kFloat32:
      return store(static_cast<float>(d == nullptr ? 0.0 : *d));
    case DType::kFloat64:
      return store(d == nullptr ? 0.0 : *d);
    case DType::kInt64:
      return store(i == nullptr ? std::int64_t{0} : *i);
    case DType::kInt32:
      return store(static_cast<std::int32_t>(i == nullptr ? 0 : *i));
    case DType::kInt16:
      return store(static_cast<std::int16_t>(i == nullptr ? 0 : *i));
    case DType::kInt8:
      return store(static_cast<std::int8_t>(i == nullptr ? 0 : *i));
    case DType::kUInt8:
      return store(static_cast<std::uint8_t>(i == nullptr ? 0 : *i));
    default: {
      const auto* b = std::get_if<bool>(&fill);
      return store(static_cast<std::uint8_t>(b != nullptr && *b ? 1 : 0));
    }
  }
}

Status Misfit(const Column& column, const Walk& walk, std::size_t element, std::size_t rows,
              const std::string& value) {
  return InvalidArgument("row " + std::to_string(walk.RowOf(element, rows)) + ": " + value +
                         " is out of the range of " + std::string(NameOf(column.dtype)) +
                         "; cast= to a wider type");
}

std::string IntegerText(DType dtype, const std::byte* data, std::size_t i) {
  switch (dtype) {
    case DType::kInt64:
      return std::to_string(LoadAt<std::int64_t>(data, i));
    case DType::kInt32:
      return std::to_string(LoadAt<std::int32_t>(data, i));
    case DType::kInt16:
      return std::to_string(LoadAt<std::int16_t>(data, i));
    case DType::kUInt8:
      return std::to_string(LoadAt<std::uint8_t>(data, i));
    default:
      return std::to_string(LoadAt<std::int8_t>(data, i));
  }
}

// ---- Numbers -----------------------------------------------------------------------------------

/// Elements that lie one after the other: nothing is copied.
Result<ColumnView> ContiguousNumbers(const Column& column, const Walk& walk, std::size_t rows) {
  const DType from = column.from.value_or(column.dtype);
  const std::size_t n = walk.elements();
  const std::byte* data = Buffer(*walk.array, 1);
  if (data == nullptr && n > 0) return NoBuffer("data buffer");
  ColumnView view;
  view.cast = from != column.dtype;
  view.cast_from = from;
  view.type = column.dtype;
  if (from == DType::kBool) {
    view.layout = ColumnView::Layout::kBits;
    view.data = data == nullptr ? nullptr : data + walk.range.begin / 8;
    view.first_bit = walk.range.begin % 8;
    if (!column.variable()) return view;
    // Rows of bits may begin anywhere in a byte: made bytes first.
    auto bytes = std::make_shared<std::vector<std::uint8_t>>(n);
    for (std::size_t i = 0; i < n; ++i) (*bytes)[i] = BitAt(data, walk.range.begin + i) ? 1 : 0;
    const void* begin = bytes->data();
    ColumnView out = OwnedElements(column, walk, begin, std::move(bytes));
    out.cast = view.cast;
    out.cast_from = from;
    out.type = column.dtype;
    return out;
  }
  view.data = data == nullptr ? nullptr : data + walk.range.begin * SizeOf(from);
  if (const auto bad = FirstMisfit(from, column.dtype, view.data, n)) {
    return Misfit(column, walk, *bad, rows, IntegerText(from, view.data, *bad));
  }
  if (column.variable()) SetEdges(column, walk, &view, nullptr);
  return view;
}

/// Elements with nulls between them: gathered, cast, and the nulls filled.
Result<ColumnView> FilledNumbers(const Column& column, const Walk& walk, std::size_t rows) {
  const DType from = column.from.value_or(column.dtype);
  const std::size_t n = walk.elements();
  const std::size_t size = SizeOf(from);
  const std::byte* data = Buffer(*walk.array, 1);
  if (data == nullptr && walk.range.rows > 0) return NoBuffer("data buffer");
  std::vector<std::byte> gathered(n * size);
  for (std::size_t i = 0; i < n; ++i) {
    if (walk.index[i] == kNull) continue;
    const auto at = static_cast<std::size_t>(walk.index[i]);
    if (from == DType::kBool) {
      gathered[i] = static_cast<std::byte>(BitAt(data, at) ? 1 : 0);
    } else {
      std::memcpy(gathered.data() + i * size, data + at * size, size);
    }
  }
  if (const auto bad = FirstMisfit(from, column.dtype, gathered.data(), n)) {
    return Misfit(column, walk, *bad, rows, IntegerText(from, gathered.data(), *bad));
  }
  const std::size_t out_size = SizeOf(column.dtype);
  auto out = std::make_shared<std::vector<std::byte>>(n * out_size);
  CastElements(from, column.dtype, gathered.data(), n, out->data());
  std::array<std::byte, 8> fill{};
  StoreFill(column.fill, column.dtype, fill.data());
  for (std::size_t i = 0; i < n; ++i) {
    if (walk.index[i] == kNull) std::memcpy(out->data() + i * out_size, fill.data(), out_size);
  }
  const void* begin = out->data();
  return OwnedElements(column, walk, begin, std::move(out));
}

// ---- Decimals ----------------------------------------------------------------------------------

std::string DecimalText(Int128 value, std::int32_t scale) {
  const bool negative = value < 0;
  auto rest =
      negative ? -static_cast<unsigned __int128>(value) : static_cast<unsigned __int128>(value);
  std::string digits;
  for (; rest > 0; rest /= 10)
    digits.push_back(static_cast<char>('0' + static_cast<int>(rest % 10)));
  const auto point = static_cast<std::size_t>(std::max(scale, 0));
  while (digits.size() <= point) digits.push_back('0');
  std::reverse(digits.begin(), digits.end());
  if (scale < 0 && digits != "0") digits.append(static_cast<std::size_t>(-scale), '0');
  if (point > 0) digits.insert(digits.size() - point, 1, '.');
  return negative ? "-" + digits : digits;
}

/// The nearest double.
double DecimalNumber(Int128 value, std::int32_t scale) {
  constexpr Int128 kExact = Int128{1} << 53;
  static constexpr double kPowers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                       1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                       1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  if (value >= -kExact && value <= kExact && scale >= 0 && scale <= 22) {
    return static_cast<double>(static_cast<std::int64_t>(value)) / kPowers[scale];
  }
  const std::string text = DecimalText(value, scale);
  double number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

/// Scale of "d:precision,scale" of 128 bits.
std::optional<std::int32_t> ScaleOf(std::string_view format) {
  if (format.substr(0, 2) != "d:") return std::nullopt;
  format.remove_prefix(2);
  const std::size_t comma = format.find(',');
  if (comma == std::string_view::npos) return std::nullopt;
  format.remove_prefix(comma + 1);
  const std::size_t second = format.find(',');
  if (second != std::string_view::npos && format.substr(second + 1) != "128") return std::nullopt;
  format = format.substr(0, second);
  std::int32_t scale = 0;
  const auto [end, error] = std::from_chars(format.data(), format.data() + format.size(), scale);
  if (error != std::errc() || end != format.data() + format.size()) return std::nullopt;
  return scale;
}

/// Strings that were put together anew, with where each ends.
ColumnView OwnedStrings(std::string bytes, std::vector<std::int64_t> offsets) {
  auto both = std::make_shared<std::pair<std::string, std::vector<std::int64_t>>>(
      std::move(bytes), std::move(offsets));
  ColumnView view;
  view.layout = ColumnView::Layout::kOffsets64;
  view.data = reinterpret_cast<const std::byte*>(both->first.data());
  view.offsets = reinterpret_cast<const std::byte*>(both->second.data());
  view.owned = std::move(both);
  return view;
}

Int128 LoadDecimal(const std::byte* data, std::int64_t at) {
  return LoadAt<Int128>(data, static_cast<std::size_t>(at));
}

Result<ColumnView> DecimalStrings(const Column& column, const Walk& walk, const std::byte* data) {
  std::string bytes;
  std::vector<std::int64_t> offsets{0};
  for (std::size_t i = 0; i < walk.elements(); ++i) {
    const std::int64_t at = walk.at(i);
    bytes += at == kNull ? std::get<std::string>(column.fill)
                         : DecimalText(LoadDecimal(data, at), *column.decimal_scale);
    offsets.push_back(static_cast<std::int64_t>(bytes.size()));
  }
  return OwnedStrings(std::move(bytes), std::move(offsets));
}

Result<ColumnView> Decimals(const Column& column, const Walk& walk, std::size_t rows) {
  const std::byte* data = Buffer(*walk.array, 1);
  if (data == nullptr && walk.range.rows > 0) return NoBuffer("data buffer");
  if (column.dtype == DType::kString) return DecimalStrings(column, walk, data);
  const std::size_t size = SizeOf(column.dtype);
  const std::int32_t scale = *column.decimal_scale;
  auto out = std::make_shared<std::vector<std::byte>>(walk.elements() * size);
  for (std::size_t i = 0; i < walk.elements(); ++i) {
    std::byte* to = out->data() + i * size;
    const std::int64_t at = walk.at(i);
    if (at == kNull) {
      StoreFill(column.fill, column.dtype, to);
      continue;
    }
    const Int128 value = LoadDecimal(data, at);
    if (column.dtype == DType::kInt64) {
      const auto narrow = static_cast<std::int64_t>(value);
      if (narrow != value) return Misfit(column, walk, i, rows, DecimalText(value, 0));
      std::memcpy(to, &narrow, size);
    } else if (column.dtype == DType::kFloat64) {
      const double number = DecimalNumber(value, scale);
      std::memcpy(to, &number, size);
    } else {
      const auto number = static_cast<float>(DecimalNumber(value, scale));
      std::memcpy(to, &number, size);
    }
  }
  const void* begin = out->data();
  return OwnedElements(column, walk, begin, std::move(out));
}

// ---- Strings and raw bytes ---------------------------------------------------------------------

/// Strings of any Arrow type by position in the buffers.
struct StringArray {
  const std::byte* offsets = nullptr;
  const std::byte* data = nullptr;
  bool wide = false;
  std::size_t size = 0;  // fixed_size_binary

  static Result<StringArray> Of(const Walk& walk) {
    const std::string_view format = walk.type->format;
    StringArray out;
    if (const auto size = FixedSizeOf(format, "w:")) {
      out.size = static_cast<std::size_t>(*size);
      out.data = Buffer(*walk.array, 1);
      if (out.data == nullptr && walk.range.rows > 0 && *size > 0) return NoBuffer("data buffer");
      return out;
    }
    out.wide = format == "U" || format == "Z";
    out.data = Buffer(*walk.array, 2);
    if (walk.range.rows == 0) return out;
    out.offsets = Buffer(*walk.array, 1);
    if (out.offsets == nullptr) return NoBuffer("offsets buffer");
    const std::byte* first = out.offsets + walk.range.begin * (out.wide ? 8 : 4);
    constexpr auto kNoLimit = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    ARC_TRY(CheckOffsets(out.wide, first, walk.range.rows, kNoLimit, nullptr, "bytes"));
    if (out.data == nullptr &&
        OffsetAt(out.wide, first, walk.range.rows) > OffsetAt(out.wide, first, 0)) {
      return NoBuffer("data buffer");
    }
    return out;
  }
  std::uint64_t Begin(std::size_t at) const {
    return offsets == nullptr ? at * size : OffsetAt(wide, offsets, at);
  }
  std::string_view Get(std::int64_t position) const {
    const auto at = static_cast<std::size_t>(position);
    const std::uint64_t begin = Begin(at);
    const std::uint64_t length = Begin(at + 1) - begin;
    if (length == 0) return {};
    return {reinterpret_cast<const char*>(data) + begin, length};
  }
};

Result<ColumnView> FilledStrings(const Column& column, const Walk& walk) {
  ARC_ASSIGN(const StringArray strings, StringArray::Of(walk));
  std::string bytes;
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t at : walk.index) {
    bytes += at == kNull ? std::string_view(std::get<std::string>(column.fill)) : strings.Get(at);
    offsets.push_back(static_cast<std::int64_t>(bytes.size()));
  }
  return OwnedStrings(std::move(bytes), std::move(offsets));
}

Result<ColumnView> FilledRaw(const Column& column, const Walk& walk) {
  ARC_ASSIGN(const StringArray strings, StringArray::Of(walk));
  const std::size_t size = SizeOf(column.dtype);
  const std::size_t row_bytes = column.row_bytes();
  auto out = std::make_shared<std::vector<std::byte>>(walk.elements() * row_bytes);
  for (std::size_t row = 0; row < walk.elements(); ++row) {
    std::byte* to = out->data() + row * row_bytes;
    if (walk.index[row] == kNull) {
      for (std::size_t i = 0; i < row_bytes; i += size)
        StoreFill(column.fill, column.dtype, to + i);
      continue;
    }
    const std::string_view value = strings.Get(walk.index[row]);
    if (value.size() != row_bytes) {
      return InvalidArgument("row " + std::to_string(row) + ": " + std::to_string(value.size()) +
                             " bytes, the schema says " + std::to_string(row_bytes));
    }
    if (!value.empty()) std::memcpy(to, value.data(), value.size());
  }
  const void* begin = out->data();
  return OwnedElements(column, walk, begin, std::move(out));
}

/// All bytes of a row's strings.
Result<ColumnView> BytesOf(const Walk& walk, std::size_t rows) {
  ARC_ASSIGN(const StringArray strings, StringArray::Of(walk));
  const std::size_t n = walk.elements();
  std::vector<std::int64_t> ends{0};  // by element
  std::string bytes;
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t at = walk.at(i);
    if (walk.contiguous) {
      const auto first = static_cast<std::size_t>(walk.range.begin);
      ends.push_back(static_cast<std::int64_t>(strings.Begin(static_cast<std::size_t>(at) + 1) -
                                               strings.Begin(first)));
      continue;
    }
    if (at != kNull) bytes += strings.Get(at);
    ends.push_back(static_cast<std::int64_t>(bytes.size()));
  }
  const std::size_t per_row = rows == 0 ? 0 : n / rows;
  std::vector<std::int64_t> offsets(rows + 1);
  for (std::size_t row = 0; row <= rows; ++row) {
    offsets[row] = ends[walk.edges.empty() ? row * per_row : walk.edges[row]];
  }
  ColumnView view = OwnedStrings(std::move(bytes), std::move(offsets));
  if (walk.contiguous) {
    view.data = n == 0 || strings.data == nullptr ? nullptr
                                                  : strings.data + strings.Begin(walk.range.begin);
  }
  return view;
}

// ---- Lengths and masks -------------------------------------------------------------------------

Result<ColumnView> Lengths(const Column& column, const Walk& walk) {
  const std::string_view format = walk.type->format;
  const auto list_size = FixedSizeOf(format, "+w:");
  const std::size_t n = walk.elements();
  auto out = std::make_shared<std::vector<std::int64_t>>(n);
  if (list_size) {
    for (std::size_t i = 0; i < n; ++i) (*out)[i] = walk.at(i) == kNull ? 0 : *list_size;
  } else {
    StringArray offsets;  // lists have the same offsets as strings
    if (IsBinary(format)) {
      ARC_ASSIGN(offsets, StringArray::Of(walk));
    } else if (walk.range.rows > 0) {
      offsets.wide = format == "+L";
      offsets.offsets = Buffer(*walk.array, 1);
      if (offsets.offsets == nullptr) return NoBuffer("offsets buffer");
      const std::byte* first = offsets.offsets + walk.range.begin * (offsets.wide ? 8 : 4);
      constexpr auto kNoLimit =
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      ARC_TRY(CheckOffsets(offsets.wide, first, walk.range.rows, kNoLimit, nullptr, "values"));
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (walk.at(i) == kNull) continue;
      const auto at = static_cast<std::size_t>(walk.at(i));
      (*out)[i] = static_cast<std::int64_t>(offsets.Begin(at + 1) - offsets.Begin(at));
    }
  }
  const void* begin = out->data();
  return OwnedElements(column, walk, begin, std::move(out));
}

Result<ColumnView> Mask(const Column& column, const Walk& walk) {
  auto out = std::make_shared<std::vector<std::uint8_t>>(walk.elements(), std::uint8_t{1});
  for (std::size_t i = 0; i < walk.index.size(); ++i) {
    if (walk.index[i] == kNull) (*out)[i] = 0;
  }
  const void* begin = out->data();
  return OwnedElements(column, walk, begin, std::move(out));
}

/// Whether the elements are of the Arrow type that the column says.
Status CheckLeafType(const Column& column, const Walk& walk) {
  const std::string_view format = walk.type->format;
  bool fits = true;
  switch (column.source) {
    case Source::kScalar:
    case Source::kList:
      if (column.decimal_scale) {
        fits = ScaleOf(format) == column.decimal_scale;
      } else if (column.dtype == DType::kString) {
        fits = IsBinary(format);
      } else {
        fits = IsElementOf(format, column.from.value_or(column.dtype));
      }
      break;
    case Source::kRaw:
    case Source::kBytes:
      fits = IsBinary(format);
      break;
    case Source::kLengths:
      fits = IsBinary(format) || format == "+l" || format == "+L" || FixedSizeOf(format, "+w:");
      break;
    case Source::kVector:
    case Source::kVectorIndices:
      fits = format == "+s";
      break;
    case Source::kMask:
      break;
  }
  return fits ? Status::Ok() : WrongType(column, *walk.field);
}

}  // namespace

Result<ColumnView> ViewWalked(const Column& column, const ArrowSchema& type,
                              const ArrowArray& array, std::size_t begin, std::size_t rows) {
  ARC_ASSIGN(const Walk walk, WalkColumn(column, type, array, begin, rows));
  ARC_TRY(CheckLeafType(column, walk));
  switch (column.source) {
    case Source::kLengths:
      return Lengths(column, walk);
    case Source::kBytes:
      return BytesOf(walk, rows);
    case Source::kMask:
      return Mask(column, walk);
    case Source::kVector:
    case Source::kVectorIndices:
      return ViewVectors(column, walk, rows);
    case Source::kRaw:
      if (!walk.contiguous) return FilledRaw(column, walk);
      return ViewBinary(column, *walk.type, *walk.array, walk.range);
    case Source::kScalar:
    case Source::kList:
      break;
  }
  if (column.decimal_scale) return Decimals(column, walk, rows);
  if (column.dtype == DType::kString) {
    if (!walk.contiguous) return FilledStrings(column, walk);
    return ViewBinary(column, *walk.type, *walk.array, walk.range);
  }
  return walk.contiguous ? ContiguousNumbers(column, walk, rows)
                         : FilledNumbers(column, walk, rows);
}

}  // namespace arcflow::columnar
