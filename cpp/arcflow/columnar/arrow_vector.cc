// SPDX-License-Identifier: Apache-2.0
// Vectors of Spark's ML library: dense and sparse ones, which may be mixed, as dense rows or as
// the positions of their entries.
#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "arcflow/columnar/arrow_cast.h"
#include "arcflow/columnar/arrow_format.h"
#include "arcflow/columnar/arrow_walk.h"

namespace arcflow::columnar {
namespace {

constexpr std::int8_t kSparse = 0;
constexpr std::int8_t kDense = 1;

/// A list field of the struct, by position in the struct's buffers.
struct ListField {
  const std::byte* offsets = nullptr;  // from the struct's position 0
  const std::byte* data = nullptr;     // of the values, from list value 0
  bool wide = false;

  struct Entries {
    std::size_t begin = 0;
    std::size_t count = 0;
  };
  Entries At(std::size_t position) const {
    const auto begin = static_cast<std::size_t>(OffsetAt(wide, offsets, position));
    return {begin, static_cast<std::size_t>(OffsetAt(wide, offsets, position + 1)) - begin};
  }
};

/// The four fields of the struct, checked: type int8, size int32, indices list<int32>, values
/// list<float64>. Which of them are null is told by `type`, as Spark writes them.
class VectorFields {
 public:
  static Result<VectorFields> Of(const Walk& walk) {
    VectorFields out;
    out.first_ = walk.range.begin;
    ARC_ASSIGN(out.types_, Plain(walk, "type", "c", 1));
    ARC_ASSIGN(out.sizes_, Plain(walk, "size", "i", 4));
    ARC_ASSIGN(out.indices_, List(walk, "indices", "i", 4));
    ARC_ASSIGN(out.values_, List(walk, "values", "g", 8));
    return out;
  }

  std::int8_t type(std::size_t at) const { return LoadAt<std::int8_t>(types_, at - first_); }
  std::int32_t size(std::size_t at) const { return LoadAt<std::int32_t>(sizes_, at - first_); }
  ListField::Entries indices(std::size_t at) const { return indices_.At(at - first_); }
  ListField::Entries values(std::size_t at) const { return values_.At(at - first_); }
  std::int32_t index(std::size_t i) const { return LoadAt<std::int32_t>(indices_.data, i); }
  const std::byte* value(std::size_t i) const { return values_.data + i * sizeof(double); }

  /// Nothing that a vector of `limit` elements cannot be.
  Status Check(std::size_t at, std::int64_t limit) const {
    const std::size_t count = values(at).count;
    if (type(at) == kDense) {
      if (count == static_cast<std::size_t>(limit)) return Status::Ok();
      return WrongSize(static_cast<std::int64_t>(count), limit);
    }
    if (type(at) != kSparse) {
      return InvalidArgument("no vector: type " + std::to_string(type(at)));
    }
    if (size(at) != limit) return WrongSize(size(at), limit);
    const ListField::Entries where = indices(at);
    if (where.count != count) {
      return InvalidArgument("corrupt vector: " + std::to_string(where.count) + " indices for " +
                             std::to_string(count) + " values");
    }
    std::int64_t before = -1;
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t each = index(where.begin + i);
      if (each <= before || each >= limit) {
        return InvalidArgument("corrupt vector: index " + std::to_string(each) + " of " +
                               std::to_string(limit) + " elements after " + std::to_string(before));
      }
      before = each;
    }
    return Status::Ok();
  }

 private:
  static Status WrongSize(std::int64_t found, std::int64_t limit) {
    return InvalidArgument("a vector of " + std::to_string(found) + " elements, the schema says " +
                           std::to_string(limit) + "; all vectors must have the same size");
  }

  static Result<const ArrowArray*> Field(const Walk& walk, const char* name,
                                         std::string_view format, const ArrowSchema** type) {
    ARC_ASSIGN(const std::int64_t i, FieldIndex(*walk.type, *walk.array, name));
    *type = walk.type->children[i];
    const char* found = (*type)->format;
    if (found == nullptr || (*type)->dictionary != nullptr ||
        (format != found && !(format == "+l" && std::string_view(found) == "+L"))) {
      return InvalidArgument(std::string("no vector: field '") + name + "' is " +
                             DescribeType(**type));
    }
    return static_cast<const ArrowArray*>(walk.array->children[i]);
  }

  /// Data of a primitive field, from the walk's first row.
  static Result<const std::byte*> Plain(const Walk& walk, const char* name, std::string_view format,
                                        std::size_t size) {
    const ArrowSchema* type = nullptr;
    ARC_ASSIGN(const ArrowArray* array, Field(walk, name, format, &type));
    ARC_ASSIGN(const Range range, RangeOf(*array, walk.range.begin, walk.range.rows));
    const std::byte* data = Buffer(*array, 1);
    if (data == nullptr && range.rows > 0) return NoBuffer("data buffer");
    return data == nullptr ? data : data + range.begin * size;
  }

  static Result<ListField> List(const Walk& walk, const char* name, std::string_view element,
                                std::size_t size) {
    const ArrowSchema* type = nullptr;
    ARC_ASSIGN(const ArrowArray* array, Field(walk, name, "+l", &type));
    ARC_ASSIGN(const Range range, RangeOf(*array, walk.range.begin, walk.range.rows));
    if (type->n_children != 1 || array->n_children != 1 || type->children == nullptr ||
        array->children == nullptr || type->children[0] == nullptr ||
        array->children[0] == nullptr || type->children[0]->format == nullptr) {
      return NoBuffer("list values");
    }
    if (element != type->children[0]->format) {
      return InvalidArgument(std::string("no vector: field '") + name + "' is " +
                             DescribeType(*type));
    }
    const ArrowArray& child = *array->children[0];
    ListField out;
    if (range.rows == 0) return out;
    out.wide = std::string_view(type->format) == "+L";
    out.offsets = Buffer(*array, 1);
    if (out.offsets == nullptr) return NoBuffer("offsets buffer");
    out.offsets += range.begin * (out.wide ? 8 : 4);
    const auto limit = static_cast<std::uint64_t>(child.length < 0 ? 0 : child.length);
    ARC_TRY(CheckOffsets(out.wide, out.offsets, range.rows, limit, nullptr, "values"));
    ARC_ASSIGN(
        const Range values,
        RangeOf(child, 0, static_cast<std::size_t>(OffsetAt(out.wide, out.offsets, range.rows))));
    ARC_ASSIGN(const std::size_t nulls, NullsOf(child, values));
    if (nulls > 0) return InvalidArgument(std::string("no vector: nulls in '") + name + "'");
    out.data = Buffer(child, 1);
    if (out.data == nullptr && values.rows > 0) return NoBuffer("data buffer");
    if (out.data != nullptr) out.data += values.begin * size;
    return out;
  }

  std::size_t first_ = 0;
  const std::byte* types_ = nullptr;
  const std::byte* sizes_ = nullptr;
  ListField indices_;
  ListField values_;
};

double FillOf(const Column& column) {
  const auto* fill = std::get_if<double>(&column.fill);
  return fill == nullptr ? 0.0 : *fill;
}

/// Rows of `limit` numbers; a view of Spark's values where every vector is dense.
ColumnView DenseRows(const Column& column, const Walk& walk, const VectorFields& fields,
                     std::size_t rows) {
  ColumnView view;
  view.cast = column.dtype != DType::kFloat64;
  view.cast_from = DType::kFloat64;
  view.type = column.dtype;
  const auto limit = static_cast<std::size_t>(column.limit);
  bool all_dense = walk.contiguous;
  for (std::size_t row = 0; row < rows && all_dense; ++row) {
    all_dense = fields.type(walk.range.begin + row) == kDense;
  }
  if (all_dense && rows > 0) {
    // Every row has `limit` values, and lists without nulls lie one behind the other.
    view.data = fields.value(fields.values(walk.range.begin).begin);
    return view;
  }
  auto out = std::make_shared<std::vector<double>>(rows * limit);
  for (std::size_t row = 0; row < rows; ++row) {
    double* to = out->data() + row * limit;
    const std::int64_t at = walk.at(row);
    if (at == Walk::kNull) {
      std::fill_n(to, limit, FillOf(column));
      continue;
    }
    const auto position = static_cast<std::size_t>(at);
    const ListField::Entries values = fields.values(position);
    if (fields.type(position) == kDense) {
      if (limit > 0) std::memcpy(to, fields.value(values.begin), limit * sizeof(double));
      continue;
    }
    const std::size_t where = fields.indices(position).begin;
    for (std::size_t i = 0; i < values.count; ++i) {
      std::memcpy(to + fields.index(where + i), fields.value(values.begin + i), sizeof(double));
    }
  }
  view.data = reinterpret_cast<const std::byte*>(out->data());
  view.owned = std::move(out);
  return view;
}

/// Where the entries lie: as sparse vectors say; in dense ones everywhere.
ColumnView Positions(const Column& column, const Walk& walk, const VectorFields& fields,
                     std::size_t rows) {
  auto both = std::make_shared<std::pair<std::vector<std::int64_t>, std::vector<std::int64_t>>>();
  auto& [positions, ends] = *both;
  ends.push_back(0);
  for (std::size_t row = 0; row < rows; ++row) {
    if (const std::int64_t at = walk.at(row); at != Walk::kNull) {
      const auto position = static_cast<std::size_t>(at);
      const bool dense = fields.type(position) == kDense;
      const std::size_t count = fields.values(position).count;
      const std::size_t where = dense ? 0 : fields.indices(position).begin;
      for (std::size_t i = 0; i < count; ++i) {
        positions.push_back(dense ? static_cast<std::int64_t>(i) : fields.index(where + i));
      }
    }
    ends.push_back(static_cast<std::int64_t>(positions.size()));
  }
  ColumnView view;
  view.layout = ColumnView::Layout::kOffsets64;
  view.data = reinterpret_cast<const std::byte*>(positions.data());
  view.offsets = reinterpret_cast<const std::byte*>(ends.data());
  view.item_bytes = column.item_bytes();
  view.owned = both;
  return view;
}

}  // namespace

Result<ColumnView> ViewVectors(const Column& column, const Walk& walk, std::size_t rows) {
  ARC_ASSIGN(const VectorFields fields, VectorFields::Of(walk));
  for (std::size_t row = 0; row < rows; ++row) {
    const std::int64_t at = walk.at(row);
    if (at == Walk::kNull) continue;
    if (Status s = fields.Check(static_cast<std::size_t>(at), column.limit); !s.ok()) {
      return s.WithContext("row " + std::to_string(row));
    }
  }
  if (column.source == Source::kVectorIndices) return Positions(column, walk, fields, rows);
  return DenseRows(column, walk, fields, rows);
}

}  // namespace arcflow::columnar
