// SPDX-License-Identifier: Apache-2.0
// Schema of a feed: which columns rows have and the layout that tensors made of them will have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
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

/// How a row's value arrives from Arrow; each as far down as `path` and `levels` lead.
enum class Source : std::int32_t {
  kScalar = 0,  // primitive, boolean, date32 (int32 days), timestamp (int64 microseconds), decimal,
                // or string/binary when dtype is kString
  kList = 1,    // list, large_list or fixed_size_list of a primitive, nested as `levels` says
  kRaw = 2,     // binary or fixed_size_binary whose bytes are row_elements() little-endian elements
  kLengths = 3,        // int64: lengths of the lists or strings behind `levels` lists
  kBytes = 4,          // uint8: the bytes of all strings behind `levels` lists, one after the other
  kMask = 5,           // bool: whether the value behind `levels` lists is there, i.e. not null
  kVector = 6,         // Spark's vector struct, dense or sparse, as row_shape {limit} elements
  kVectorIndices = 7,  // int64: where the entries of such a vector of `limit` elements lie
};

/// Said in place of a list's length: every row has its own.
inline constexpr std::int64_t kVariable = -1;

/// What stands for a null; none: a null is an error.
using Fill = std::variant<std::monostate, bool, std::int64_t, double, std::string>;

/// One column as it lies in segments. A fixed-width column has `row_shape` elements a row: {} for a
/// scalar, {784} for a list of 784. A variable() one has any number of items a row: the bytes of a
/// string, or elements of `row_shape` when a list's length varies.
struct Column {
  std::string name;
  DType dtype = DType::kFloat32;
  Source source = Source::kScalar;
  std::vector<std::int64_t> row_shape;
  /// Length of the Arrow lists, outermost first, or kVariable; empty with kList: one list of
  /// row_elements().
  std::vector<std::int64_t> levels = {};
  /// Names of the Arrow fields that lead to the value; empty: the field `name`.
  std::vector<std::string> path = {};
  /// Element type in Arrow when it is not `dtype`: CanCast(*from, dtype).
  std::optional<DType> from = {};
  /// The Arrow value is a decimal of this many digits behind the point; dtype int64 is the number
  /// without the point.
  std::optional<std::int32_t> decimal_scale = {};
  Fill fill = {};
  /// Integer fields beside the value (of the same struct) that must hold these in every row.
  std::vector<std::pair<std::string, std::int64_t>> expect = {};
  std::int64_t limit = 0;  // kVector and kVectorIndices: elements of each vector

  /// Rows differ in their number of bytes.
  bool variable() const;
  /// Elements of a row, or of an item of a variable column that is no string.
  std::size_t row_elements() const;
  /// Bytes of an item; 1 for strings.
  std::size_t item_bytes() const;
  /// Bytes of one row; 0 for variable columns.
  std::size_t row_bytes() const { return variable() ? 0 : row_elements() * SizeOf(dtype); }
  /// `levels`, or what an empty one stands for.
  std::vector<std::int64_t> list_levels() const;
  bool nulls_allowed() const { return fill.index() != 0; }
  bool operator==(const Column&) const = default;
};

/// The columns of one feed, in order. JSON form: docs/formats/schema.md
///   {"columns": [{"name": "x", "dtype": "float32", "source": "list", "shape": [784]}, …]}
struct Schema {
  std::vector<Column> columns;
  /// JSON text of the key `values`: how Python composes tensors of columns. Not looked into here.
  std::string values = {};

  /// InvalidArgument with the column's name for: no columns, more than kMaxColumns, an unknown
  /// dtype or source, a dimension < 0, more than kMaxRank dimensions, a row above kMaxRowBytes,
  /// double names, and any contradiction between the fields of a column.
  static Result<Schema> FromJson(const nlohmann::json& json);
  nlohmann::json ToJson() const;
  bool operator==(const Schema&) const = default;

  static constexpr std::int64_t kVersion = 2;
  static constexpr std::size_t kMaxColumns = 4096;
  static constexpr std::size_t kMaxRank = 6;
  static constexpr std::size_t kMaxPath = 16;
  static constexpr std::size_t kMaxRowBytes = std::size_t{1} << 31;
};

}  // namespace arcflow::columnar
