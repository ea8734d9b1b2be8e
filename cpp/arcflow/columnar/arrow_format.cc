// SPDX-License-Identifier: Apache-2.0
// Arrow format strings: names for messages, and which of them fit an element type.
#include "arcflow/columnar/arrow_format.h"

#include <array>
#include <charconv>
#include <limits>
#include <utility>

namespace arcflow::columnar {
namespace {

constexpr int kMaxDepth = 8;

constexpr std::array<std::pair<std::string_view, std::string_view>, 31> kPlainNames = {{
    {"n", "null"},
    {"b", "bool"},
    {"c", "int8"},
    {"C", "uint8"},
    {"s", "int16"},
    {"S", "uint16"},
    {"i", "int32"},
    {"I", "uint32"},
    {"l", "int64"},
    {"L", "uint64"},
    {"e", "float16"},
    {"f", "float32"},
    {"g", "float64"},
    {"z", "binary"},
    {"Z", "large_binary"},
    {"u", "string"},
    {"U", "large_string"},
    {"vz", "binary_view"},
    {"vu", "string_view"},
    {"tdD", "date32"},
    {"tdm", "date64"},
    {"tts", "time32[s]"},
    {"ttm", "time32[ms]"},
    {"ttu", "time64[us]"},
    {"ttn", "time64[ns]"},
    {"tDs", "duration[s]"},
    {"tDm", "duration[ms]"},
    {"tDu", "duration[us]"},
    {"tDn", "duration[ns]"},
    {"tiM", "interval[months]"},
    {"tiD", "interval[days, ms]"},
}};

std::string Describe(const ArrowSchema& type, int depth);

std::string DescribeChild(const ArrowSchema& type, std::int64_t i, int depth) {
  if (type.n_children <= i || type.children == nullptr || type.children[i] == nullptr) return "?";
  return Describe(*type.children[i], depth + 1);
}

std::string DescribeTimestamp(std::string_view format) {
  std::string unit = format[2] == 'u' || format[2] == 'n' || format[2] == 'm'
                         ? std::string(1, format[2]) + "s"
                         : std::string(1, format[2]);
  const std::string_view zone = format.size() > 4 ? format.substr(4) : std::string_view();
  return "timestamp[" + unit + (zone.empty() ? "" : ", tz=" + std::string(zone)) + "]";
}

std::string DescribeNested(const ArrowSchema& type, std::string_view format, int depth) {
  const std::string child = DescribeChild(type, 0, depth);
  if (format == "+l") return "list<" + child + ">";
  if (format == "+L") return "large_list<" + child + ">";
  if (format == "+vl" || format == "+vL") return "list_view<" + child + ">";
  if (format == "+m") return "map";
  if (format == "+s") return "struct";
  if (format.substr(0, 3) == "+ud" || format.substr(0, 3) == "+us") return "union";
  if (format == "+r") return "run_end_encoded";
  if (const auto n = FixedSizeOf(format, "+w:")) {
    return "fixed_size_list<" + child + ">[" + std::to_string(*n) + "]";
  }
  return "type '" + std::string(format) + "'";
}

std::string Describe(const ArrowSchema& type, int depth) {
  if (depth > kMaxDepth) return "…";
  const std::string_view format = type.format != nullptr ? type.format : "";
  if (type.dictionary != nullptr) {
    return "dictionary<" + std::string(format) + ", " + Describe(*type.dictionary, depth + 1) + ">";
  }
  for (const auto& [text, name] : kPlainNames) {
    if (text == format) return std::string(name);
  }
  if (const auto n = FixedSizeOf(format, "w:")) {
    return "fixed_size_binary[" + std::to_string(*n) + "]";
  }
  if (format.substr(0, 2) == "d:") return "decimal(" + std::string(format.substr(2)) + ")";
  if (format.size() >= 4 && format.substr(0, 2) == "ts") return DescribeTimestamp(format);
  if (!format.empty() && format[0] == '+') return DescribeNested(type, format, depth);
  return "type '" + std::string(format) + "'";
}

}  // namespace

std::string DescribeType(const ArrowSchema& type) { return Describe(type, 0); }

std::string DescribeColumn(const Column& column) {
  std::string dtype(NameOf(column.from.value_or(column.dtype)));
  if (column.decimal_scale) {
    dtype = "decimal of scale " + std::to_string(*column.decimal_scale);
  } else if (column.dtype == DType::kString) {
    dtype = "string or binary";
  }
  switch (column.source) {
    case Source::kScalar:
    case Source::kMask:
      return dtype;
    case Source::kList:
      break;
    case Source::kRaw:
      return "binary of " + std::to_string(column.row_bytes()) + " bytes (" +
             std::to_string(column.row_elements()) + " x " + dtype + ")";
    case Source::kLengths:
      dtype = "list or string";
      break;
    case Source::kBytes:
      dtype = "string or binary";
      break;
    case Source::kVector:
    case Source::kVectorIndices:
      return "vector (struct of type, size, indices and values)";
  }
  const std::vector<std::int64_t> levels = column.list_levels();
  for (auto level = levels.rbegin(); level != levels.rend(); ++level) {
    dtype = "list<" + dtype + ">";
    if (*level != kVariable) dtype += " of length " + std::to_string(*level);
  }
  return dtype;
}

bool IsElementOf(std::string_view format, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return format == "f";
    case DType::kFloat64:
      return format == "g";
    case DType::kInt32:
      return format == "i" || format == "tdD";
    case DType::kUInt8:
      return format == "C";
    case DType::kInt16:
      return format == "s";
    case DType::kInt8:
      return format == "c";
    case DType::kInt64:
      return format == "l" || format.substr(0, 4) == "tsu:";
    case DType::kBool:
      return format == "b";
    case DType::kString:
      return false;
  }
  return false;
}

std::optional<std::int64_t> FixedSizeOf(std::string_view format, std::string_view prefix) {
  if (format.substr(0, prefix.size()) != prefix) return std::nullopt;
  const std::string_view digits = format.substr(prefix.size());
  std::int64_t n = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), n);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  if (n < 0 || n > std::numeric_limits<std::int32_t>::max()) return std::nullopt;
  return n;
}

}  // namespace arcflow::columnar
