// SPDX-License-Identifier: Apache-2.0
// Schema: names and sizes of element types, strict reading of the JSON form.
#include "arcflow/columnar/schema.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>

namespace arcflow::columnar {
namespace {

using nlohmann::json;

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  std::size_t size;
};
constexpr std::array<DTypeInfo, 9> kDTypes = {{{DType::kFloat32, "float32", 4},
                                               {DType::kFloat64, "float64", 8},
                                               {DType::kInt32, "int32", 4},
                                               {DType::kUInt8, "uint8", 1},
                                               {DType::kInt16, "int16", 2},
                                               {DType::kInt8, "int8", 1},
                                               {DType::kString, "string", 0},
                                               {DType::kInt64, "int64", 8},
                                               {DType::kBool, "bool", 1}}};

constexpr std::array<std::pair<Source, std::string_view>, 3> kSources = {
    {{Source::kScalar, "scalar"}, {Source::kList, "list"}, {Source::kRaw, "raw"}}};

std::string_view SourceName(Source source) {
  for (const auto& [value, name] : kSources) {
    if (value == source) return name;
  }
  return "unknown";
}

Result<Source> SourceFromName(std::string_view name) {
  for (const auto& [value, text] : kSources) {
    if (text == name) return value;
  }
  return InvalidArgument("unknown source '" + std::string(name) + "'; one of scalar, list, raw");
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

Result<std::vector<std::int64_t>> ShapeField(const json& object) {
  std::vector<std::int64_t> shape;
  const auto it = object.find("shape");
  if (it == object.end()) return shape;
  if (!it->is_array()) {
    return InvalidArgument("'shape' must be an array, is " + std::string(it->type_name()));
  }
  if (it->size() > Schema::kMaxRank) {
    return InvalidArgument("shape has " + std::to_string(it->size()) + " dimensions, at most " +
                           std::to_string(Schema::kMaxRank) + " are possible");
  }
  for (const json& dim : *it) {
    if (!dim.is_number_integer()) {
      return InvalidArgument("a dimension must be an integer, is " + dim.dump());
    }
    constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    const bool too_large = dim.is_number_unsigned() && dim.get<std::uint64_t>() > kMax;
    if (too_large || (!dim.is_number_unsigned() && dim.get<std::int64_t>() < 0)) {
      return InvalidArgument("dimension " + dim.dump() + " is not possible");
    }
    shape.push_back(dim.get<std::int64_t>());
  }
  return shape;
}

/// Bytes of a row without overflow; nothing above `limit`.
std::optional<std::size_t> BoundedRowBytes(const Column& column, std::size_t limit) {
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

Status CheckColumn(const Column& column) {
  if (column.name.empty()) return InvalidArgument("the name is empty");
  if (column.name.find('\0') != std::string::npos) return InvalidArgument("the name holds a NUL");
  if (column.dtype == DType::kString) {
    if (column.source != Source::kScalar) {
      return InvalidArgument("dtype string needs source scalar, has " +
                             std::string(SourceName(column.source)));
    }
    if (!column.row_shape.empty()) return InvalidArgument("a string has no row shape");
  }
  if (column.source == Source::kScalar && !column.row_shape.empty()) {
    return InvalidArgument("source scalar has no row shape; use source list or raw");
  }
  if (!BoundedRowBytes(column, Schema::kMaxRowBytes)) {
    return InvalidArgument("a row is larger than " + std::to_string(Schema::kMaxRowBytes) +
                           " bytes");
  }
  return Status::Ok();
}

Result<Column> ParseColumn(const json& entry) {
  if (!entry.is_object()) {
    return InvalidArgument("must be an object, is " + std::string(entry.type_name()));
  }
  ARC_TRY(CheckKeys(entry, {"name", "dtype", "source", "shape"}));
  Column column;
  ARC_ASSIGN(column.name, StringField(entry, "name"));
  ARC_ASSIGN(const std::string dtype, StringField(entry, "dtype"));
  ARC_ASSIGN(column.dtype, DTypeFromName(dtype));
  ARC_ASSIGN(const std::string source, StringField(entry, "source", "scalar"));
  ARC_ASSIGN(column.source, SourceFromName(source));
  ARC_ASSIGN(column.row_shape, ShapeField(entry));
  ARC_TRY(CheckColumn(column));
  return column;
}

}  // namespace

std::size_t SizeOf(DType dtype) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.dtype == dtype) return info.size;
  }
  return 0;
}

std::string_view NameOf(DType dtype) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.dtype == dtype) return info.name;
  }
  return "unknown";
}

Result<DType> DTypeFromName(std::string_view name) {
  std::string known;
  for (const DTypeInfo& info : kDTypes) {
    if (info.name == name) return info.dtype;
    known += (known.empty() ? "" : ", ") + std::string(info.name);
  }
  return InvalidArgument("unknown dtype '" + std::string(name) + "'; one of " + known);
}

std::size_t Column::row_elements() const {
  std::size_t elements = 1;
  for (std::int64_t dim : row_shape) elements *= static_cast<std::size_t>(dim);
  return elements;
}

Result<Schema> Schema::FromJson(const nlohmann::json& json_value) {
  if (!json_value.is_object()) return InvalidArgument("schema: must be a JSON object");
  if (Status s = CheckKeys(json_value, {"columns"}); !s.ok()) return s.WithContext("schema");
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
  return schema;
}

nlohmann::json Schema::ToJson() const {
  json out = json::array();
  for (const Column& c : columns) {
    out.push_back(json{{"name", c.name},
                       {"dtype", std::string(NameOf(c.dtype))},
                       {"source", std::string(SourceName(c.source))},
                       {"shape", c.row_shape}});
  }
  return json{{"columns", std::move(out)}};
}

}  // namespace arcflow::columnar
