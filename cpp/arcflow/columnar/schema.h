// SPDX-License-Identifier: Apache-2.0
// Schema of a feed: which columns rows have and the layout that tensors made of them will have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::columnar {

/// Element type of a column. Numbers are those of tensorflow::DataType, so that the plug-in casts
/// (static_assert there).
enum class DType : std::int32_t {
  kFloat32 = 1,
  kFloat64 = 2,
  kInt32 = 3,
  kUInt8 = 4,
  kInt16 = 5,
  kInt8 = 6,
  kString = 7,  // bytes of any length; Spark string and binary
  kInt64 = 9,
  kBool = 10,  // one byte each
};
/// Bytes of one element; 0 for kString.
std::size_t SizeOf(DType dtype);
/// "float32", "string", …: NumPy's names.
std::string_view NameOf(DType dtype);
Result<DType> DTypeFromName(std::string_view name);

/// How a row's value arrives from Arrow.
enum class Source : std::int32_t {
  kScalar = 0,  // primitive, boolean, date32 (int32 days), timestamp (int64 microseconds), or
                // string/binary when dtype is kString
  kList = 1,    // list, large_list or fixed_size_list of a primitive, every row of the same length:
                // row_shape product
  kRaw = 2,     // binary or fixed_size_binary whose bytes are row_elements() little-endian elements
};

/// One column. `row_shape` is the shape of one row's value: {} for a scalar, {784} for a list of
/// 784.
struct Column {
  std::string name;
  DType dtype = DType::kFloat32;
  Source source = Source::kScalar;
  std::vector<std::int64_t> row_shape;

  std::size_t row_elements() const;
  /// Bytes of one row; 0 for kString, whose rows differ.
  std::size_t row_bytes() const { return row_elements() * SizeOf(dtype); }
  bool operator==(const Column&) const = default;
};

/// The columns of one feed, in order. JSON form: docs/formats/schema.md
///   {"columns": [{"name": "x", "dtype": "float32", "source": "list", "shape": [784]}, …]}
struct Schema {
  std::vector<Column> columns;

  /// InvalidArgument with the column's name for: no columns, more than kMaxColumns, an unknown
  /// dtype or source, a dimension < 0, more than kMaxRank dimensions, row_bytes above kMaxRowBytes,
  /// a string with a row shape, double names.
  static Result<Schema> FromJson(const nlohmann::json& json);
  nlohmann::json ToJson() const;
  bool operator==(const Schema&) const = default;

  static constexpr std::size_t kMaxColumns = 4096;
  static constexpr std::size_t kMaxRank = 6;
  static constexpr std::size_t kMaxRowBytes = std::size_t{1} << 31;
};

}  // namespace arcflow::columnar
