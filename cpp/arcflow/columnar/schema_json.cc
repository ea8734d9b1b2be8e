// SPDX-License-Identifier: Apache-2.0
// Schema: strict reading of the JSON form, and the contradictions that it refuses.
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

#include "arcflow/columnar/arrow_cast.h"
#include "arcflow/columnar/schema.h"

namespace arcflow::columnar {
namespace {

using nlohmann::json;

constexpr std::array<std::pair<Source, std::string_view>, 8> kSources = {
    {{Source::kScalar, "scalar"},
     {Source::kList, "list"},
     {Source::kRaw, "raw"},
     {Source::kLengths, "lengths"},
     {Source::kBytes, "bytes"},
     {Source::kMask, "mask"},
     {Source::kVector, "vector"},
     {Source::kVectorIndices, "vector_indices"}}};

constexpr std::int32_t kMaxScale = 38;
constexpr std::size_t kMaxExpected = 16;
constexpr std::size_t kMaxFillBytes = 1 << 20;

std::string_view SourceName(Source source) {
  for (const auto& [value, name] : kSources) {
    if (value == source) return name;
  }
  return "unknown";
}

Result<Source> SourceFromName(std::string_view name) {
  std::string known;
  for (const auto& [value, text] : kSources) {
    if (text == name) return value;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  return InvalidArgument("unknown source '" + std::string(name) + "'; one of " + known);
}

/// How messages call column `i`: by name where it has one.
std::string Label(const json& entry, std::size_t i) {
  if (entry.is_object()) {
    const auto it = entry.find("name");
    if (it != entry.end() && it->is_string()) return "column '" + it->get<std::string>() + "'";
  }
  return "column " + std::to_string(i);
}

Status CheckKeys(const json& object, std::initializer_list<std::string_view> known) {
  for (const auto& item : object.items()) {
    bool found = false;
    for (std::string_view k : known) found = found || item.key() == k;
    if (!found) return InvalidArgument("unknown key '" + item.key() + "'");
  }
  return Status::Ok();
}

Result<std::string> StringField(const json& object, const char* key,
                                std::optional<std::string> absent = std::nullopt) {
  const auto it = object.find(key);
  if (it == object.end()) {
    if (absent) return *std::move(absent);
    return InvalidArgument("'" + std::string(key) + "' is missing");
  }
  if (!it->is_string()) {
    return InvalidArgument("'" + std::string(key) + "' must be a string, is " + it->type_name());
  }
  return it->get<std::string>();
}

/// An integer from `least` on; no float, nothing that int64 does not hold.
Result<std::int64_t> Integer(const json& value, const std::string& what, std::int64_t least) {
  if (!value.is_number_integer()) {
    return InvalidArgument(what + " must be an integer, is " + value.dump());
  }
  constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const bool too_large = value.is_number_unsigned() && value.get<std::uint64_t>() > kMax;
  if (too_large || value.get<std::int64_t>() < least) {
    return InvalidArgument(what + " " + value.dump() + " is not possible");
  }
  return value.get<std::int64_t>();
}

Result<std::vector<std::int64_t>> DimensionsField(const json& object, const char* key,
                                                  std::int64_t least) {
  std::vector<std::int64_t> out;
  const auto it = object.find(key);
  if (it == object.end()) return out;
  if (!it->is_array()) {
    return InvalidArgument("'" + std::string(key) + "' must be an array, is " +
                           std::string(it->type_name()));
  }
  if (it->size() > Schema::kMaxRank) {
    return InvalidArgument(std::string(key) + " has " + std::to_string(it->size()) +
                           " dimensions, at most " + std::to_string(Schema::kMaxRank) +
                           " are possible");
  }
  for (const json& dim : *it) {
    ARC_ASSIGN(const std::int64_t n, Integer(dim, "a dimension", least));
    out.push_back(n);
  }
  return out;
}

Result<std::vector<std::string>> PathField(const json& object) {
  std::vector<std::string> path;
  const auto it = object.find("path");
  if (it == object.end()) return path;
  if (!it->is_array() || it->size() > Schema::kMaxPath) {
    return InvalidArgument("'path' must be an array of at most " +
                           std::to_string(Schema::kMaxPath) + " names");
  }
  for (const json& name : *it) {
    if (!name.is_string()) return InvalidArgument("'path' must hold strings");
    path.push_back(name.get<std::string>());
  }
  return path;
}

Result<std::vector<std::pair<std::string, std::int64_t>>> ExpectField(const json& object) {
  std::vector<std::pair<std::string, std::int64_t>> out;
  const auto it = object.find("expect");
  if (it == object.end()) return out;
  if (!it->is_object() || it->size() > kMaxExpected) {
    return InvalidArgument("'expect' must be an object of at most " + std::to_string(kMaxExpected) +
                           " integers");
  }
  for (const auto& item : it->items()) {
    ARC_ASSIGN(const std::int64_t value, Integer(item.value(), "expected '" + item.key() + "'",
                                                 std::numeric_limits<std::int64_t>::min()));
    out.emplace_back(item.key(), value);
  }
  return out;
}

/// JSON has no infinities and no NaN; they come as strings.
std::optional<double> SpecialNumber(const std::string& text) {
  if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (text == "inf") return std::numeric_limits<double>::infinity();
  if (text == "-inf") return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

template <typename T>
bool Holds(std::int64_t value) {
  return value >= std::numeric_limits<T>::min() && value <= std::numeric_limits<T>::max();
}

bool IntegerFits(DType dtype, std::int64_t value) {
  switch (dtype) {
    case DType::kInt8:
      return Holds<std::int8_t>(value);
    case DType::kInt16:
      return Holds<std::int16_t>(value);
    case DType::kInt32:
      return Holds<std::int32_t>(value);
    case DType::kUInt8:
      return Holds<std::uint8_t>(value);
    default:
      return true;
  }
}

/// The fill as the column's type needs it: bool, int64, double or string.
Result<Fill> FillField(const json& object, DType dtype) {
  const auto it = object.find("fill");
  if (it == object.end()) return Fill();
  const Status wrong =
      InvalidArgument("fill " + it->dump().substr(0, 64) + " is no " + std::string(NameOf(dtype)));
  if (dtype == DType::kString) {
    if (!it->is_string() || it->get_ref<const std::string&>().size() > kMaxFillBytes) return wrong;
    return Fill(it->get<std::string>());
  }
  if (dtype == DType::kBool) {
    if (!it->is_boolean()) return wrong;
    return Fill(it->get<bool>());
  }
  if (dtype == DType::kFloat32 || dtype == DType::kFloat64) {
    if (it->is_number()) return Fill(it->get<double>());
    const auto special =
        it->is_string() ? SpecialNumber(it->get<std::string>()) : std::optional<double>();
    if (!special) return wrong;
    return Fill(*special);
  }
  const Result<std::int64_t> value = Integer(*it, "fill", std::numeric_limits<std::int64_t>::min());
  if (!value.ok() || !IntegerFits(dtype, *value)) return wrong;
  return Fill(*value);
}

/// Bytes of a row or an item without overflow; nothing above `limit`.
std::optional<std::size_t> BoundedBytes(const Column& column, std::size_t limit) {
  // A zero anywhere makes the product zero, however large the others are; but those others are
  // refused too, because whoever multiplies in another order would overflow.
  std::size_t elements = 1;
  for (std::int64_t dim : column.row_shape) {
    const auto d = static_cast<std::uint64_t>(dim);
    if (d > limit) return std::nullopt;
    if (d > 0 && elements > limit / d) return std::nullopt;
    if (d > 0) elements *= static_cast<std::size_t>(d);
  }
  const std::size_t size = SizeOf(column.dtype);
  if (size > 0 && elements > limit / size) return std::nullopt;
  return column.row_elements() * size;
}

/// The fixed lengths behind the last variable one (all of them when none is) must make `row_shape`.
Status CheckLevels(const Column& column) {
  const bool takes = column.source == Source::kList || column.source == Source::kLengths ||
                     column.source == Source::kBytes || column.source == Source::kMask;
  if (column.levels.empty()) return Status::Ok();
  if (!takes) {
    return InvalidArgument("source " + std::string(SourceName(column.source)) + " has no levels");
  }
  if (column.source == Source::kBytes) return Status::Ok();  // any number of bytes anyway
  std::size_t elements = 1;
  for (const std::int64_t n : column.levels) {
    if (n == kVariable) {
      elements = 1;
    } else if (__builtin_mul_overflow(elements, static_cast<std::size_t>(n), &elements)) {
      return InvalidArgument("levels are too large");
    }
  }
  if (elements != column.row_elements()) {
    return InvalidArgument("levels make " + std::to_string(elements) +
                           " elements, the shape says " + std::to_string(column.row_elements()));
  }
  return Status::Ok();
}

Status CheckType(const Column& column) {
  const std::string source(SourceName(column.source));
  const auto needs = [&](DType dtype) {
    if (column.dtype == dtype) return Status::Ok();
    return InvalidArgument("source " + source + " needs dtype " + std::string(NameOf(dtype)) +
                           ", has " + std::string(NameOf(column.dtype)));
  };
  switch (column.source) {
    case Source::kScalar:
      if (column.dtype == DType::kString || column.row_shape.empty()) break;
      return InvalidArgument("source scalar has no row shape; use source list or raw");
    case Source::kList:
    case Source::kRaw:
      break;
    case Source::kLengths:
      return needs(DType::kInt64);
    case Source::kBytes:
      ARC_TRY(needs(DType::kUInt8));
      if (!column.row_shape.empty()) return InvalidArgument("source bytes has no row shape");
      break;
    case Source::kMask:
      return needs(DType::kBool);
    case Source::kVector:
      if (column.dtype != DType::kFloat64 && column.dtype != DType::kFloat32) {
        return InvalidArgument("source vector needs dtype float64 or float32");
      }
      if (column.row_shape != std::vector<std::int64_t>{column.limit}) {
        return InvalidArgument("source vector needs the shape [limit]");
      }
      break;
    case Source::kVectorIndices:
      if (!column.row_shape.empty()) return InvalidArgument("source " + source + " has no shape");
      return needs(DType::kInt64);
  }
  if (column.dtype != DType::kString) return Status::Ok();
  if (column.source != Source::kScalar) {
    return InvalidArgument("dtype string needs source scalar, has " + source);
  }
  if (!column.row_shape.empty()) return InvalidArgument("a string has no row shape");
  return Status::Ok();
}

Status CheckConversion(const Column& column) {
  const bool elements = column.source == Source::kScalar || column.source == Source::kList;
  if (column.from) {
    if (!elements && column.source != Source::kVector) {
      return InvalidArgument("'from' needs source scalar, list or vector");
    }
    if (column.decimal_scale) return InvalidArgument("'from' and 'decimal' exclude one another");
    if (!CanCast(*column.from, column.dtype)) {
      return InvalidArgument("cannot cast " + std::string(NameOf(*column.from)) + " to " +
                             std::string(NameOf(column.dtype)));
    }
    if (column.source == Source::kVector && *column.from != DType::kFloat64) {
      return InvalidArgument("a vector holds float64");
    }
  } else if (column.source == Source::kVector && column.dtype != DType::kFloat64) {
    return InvalidArgument("a vector holds float64: say from");
  }
  if (!column.expect.empty() && column.path.size() < 2) {
    return InvalidArgument("'expect' needs a path into a struct");
  }
  if (!column.decimal_scale) return Status::Ok();
  if (!elements || (column.dtype != DType::kFloat64 && column.dtype != DType::kFloat32 &&
                    column.dtype != DType::kInt64 && column.dtype != DType::kString)) {
    return InvalidArgument("a decimal becomes float64, float32, int64 or string");
  }
  return Status::Ok();
}

Status CheckColumn(const Column& column) {
  if (column.name.empty()) return InvalidArgument("the name is empty");
  if (column.name.find('\0') != std::string::npos) return InvalidArgument("the name holds a NUL");
  ARC_TRY(CheckType(column));
  ARC_TRY(CheckLevels(column));
  ARC_TRY(CheckConversion(column));
  const bool vector = column.source == Source::kVector || column.source == Source::kVectorIndices;
  if (!vector && column.limit != 0) return InvalidArgument("'limit' is for vectors only");
  if (!BoundedBytes(column, Schema::kMaxRowBytes)) {
    return InvalidArgument("a row is larger than " + std::to_string(Schema::kMaxRowBytes) +
                           " bytes");
  }
  if (column.variable() && column.item_bytes() == 0) {
    return InvalidArgument("items of no elements have no number");
  }
  return Status::Ok();
}

Result<Column> ParseColumn(const json& entry) {
  if (!entry.is_object()) {
    return InvalidArgument("must be an object, is " + std::string(entry.type_name()));
  }
  ARC_TRY(CheckKeys(entry, {"name", "dtype", "source", "shape", "levels", "path", "from", "decimal",
                            "fill", "expect", "limit"}));
  Column column;
  ARC_ASSIGN(column.name, StringField(entry, "name"));
  ARC_ASSIGN(const std::string dtype, StringField(entry, "dtype"));
  ARC_ASSIGN(column.dtype, DTypeFromName(dtype));
  ARC_ASSIGN(const std::string source, StringField(entry, "source", "scalar"));
  ARC_ASSIGN(column.source, SourceFromName(source));
  ARC_ASSIGN(column.row_shape, DimensionsField(entry, "shape", 0));
  ARC_ASSIGN(column.levels, DimensionsField(entry, "levels", kVariable));
  ARC_ASSIGN(column.path, PathField(entry));
  ARC_ASSIGN(const std::string from, StringField(entry, "from", ""));
  if (!from.empty()) {
    ARC_ASSIGN(column.from, DTypeFromName(from));
    if (*column.from == column.dtype) column.from.reset();
  }
  if (entry.contains("decimal")) {
    ARC_ASSIGN(const std::int64_t scale, Integer(entry["decimal"], "'decimal'", -kMaxScale));
    if (scale > kMaxScale) return InvalidArgument("'decimal' is above 38 digits");
    column.decimal_scale = static_cast<std::int32_t>(scale);
  }
  ARC_ASSIGN(column.fill, FillField(entry, column.dtype));
  ARC_ASSIGN(column.expect, ExpectField(entry));
  if (entry.contains("limit")) {
    ARC_ASSIGN(column.limit, Integer(entry["limit"], "'limit'", 0));
  }
  ARC_TRY(CheckColumn(column));
  return column;
}

json FillToJson(const Fill& fill) {
  if (const auto* b = std::get_if<bool>(&fill)) return *b;
  if (const auto* i = std::get_if<std::int64_t>(&fill)) return *i;
  if (const auto* s = std::get_if<std::string>(&fill)) return *s;
  const double d = std::get<double>(fill);
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d > 0 ? "inf" : "-inf";
  return d;
}

json ColumnToJson(const Column& c) {
  json out{{"name", c.name},
           {"dtype", std::string(NameOf(c.dtype))},
           {"source", std::string(SourceName(c.source))},
           {"shape", c.row_shape}};
  if (!c.levels.empty()) out["levels"] = c.levels;
  if (!c.path.empty()) out["path"] = c.path;
  if (c.from) out["from"] = std::string(NameOf(*c.from));
  if (c.decimal_scale) out["decimal"] = *c.decimal_scale;
  if (c.nulls_allowed()) out["fill"] = FillToJson(c.fill);
  for (const auto& [name, value] : c.expect) out["expect"][name] = value;
  if (c.limit != 0) out["limit"] = c.limit;
  return out;
}

Status CheckVersion(const json& schema) {
  const auto it = schema.find("version");
  if (it == schema.end()) return Status::Ok();
  ARC_ASSIGN(const std::int64_t version, Integer(*it, "version", 1));
  if (version <= Schema::kVersion) return Status::Ok();
  return InvalidArgument("version " + std::to_string(version) + ", this program reads version " +
                         std::to_string(Schema::kVersion));
}

}  // namespace

Result<Schema> Schema::FromJson(const nlohmann::json& json_value) {
  if (!json_value.is_object()) return InvalidArgument("schema: must be a JSON object");
  Status keys = CheckKeys(json_value, {"version", "columns", "values"});
  if (keys.ok()) keys = CheckVersion(json_value);
  if (!keys.ok()) return keys.WithContext("schema");
  const auto it = json_value.find("columns");
  if (it == json_value.end() || !it->is_array()) {
    return InvalidArgument("schema: 'columns' must be an array");
  }
  if (it->empty()) return InvalidArgument("schema: there are no columns");
  if (it->size() > kMaxColumns) {
    return InvalidArgument("schema: " + std::to_string(it->size()) + " columns, at most " +
                           std::to_string(kMaxColumns) + " are possible");
  }
  Schema schema;
  schema.columns.reserve(it->size());
  std::unordered_set<std::string> names;
  for (std::size_t i = 0; i < it->size(); ++i) {
    const json& entry = (*it)[i];
    Result<Column> column = ParseColumn(entry);
    if (!column.ok()) return column.status().WithContext("schema: " + Label(entry, i));
    if (!names.insert(column->name).second) {
      return InvalidArgument("schema: " + Label(entry, i) + ": the name is there twice");
    }
    schema.columns.push_back(std::move(*column));
  }
  if (const auto values = json_value.find("values"); values != json_value.end()) {
    if (!values->is_array()) return InvalidArgument("schema: 'values' must be an array");
    schema.values = values->dump();
  }
  return schema;
}

nlohmann::json Schema::ToJson() const {
  json out{{"version", kVersion}, {"columns", json::array()}};
  for (const Column& c : columns) out["columns"].push_back(ColumnToJson(c));
  if (!values.empty()) out["values"] = json::parse(values, nullptr, false);
  return out;
}

}  // namespace arcflow::columnar
