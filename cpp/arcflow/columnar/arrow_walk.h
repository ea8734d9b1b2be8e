// SPDX-License-Identifier: Apache-2.0
// Walks from a row of a batch down fields and lists to the elements that a column is made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/columnar/arrow_parts.h"
#include "arcflow/columnar/arrow_view.h"

namespace arcflow::columnar {

/// The elements of some rows, in order, behind all fields and lists.
struct Walk {
  const ArrowSchema* field = nullptr;  // what column.path leads to, with its lists
  const ArrowSchema* type = nullptr;
  const ArrowArray* array = nullptr;
  Range range;                      // of the array's buffers: holds all elements
  bool contiguous = true;           // they are exactly `range`, none of them null
  std::vector<std::int64_t> index;  // otherwise: where each lies in the buffers, or kNull
  std::vector<std::size_t> edges;   // where rows begin and the last ends, in elements; empty when
                                    // each row has the same number

  static constexpr std::int64_t kNull = -1;
  std::size_t elements() const { return contiguous ? range.rows : index.size(); }
  std::int64_t at(std::size_t i) const {
    return contiguous ? static_cast<std::int64_t>(range.begin + i) : index[i];
  }
  /// For messages: the row to which element `i` of `rows` rows belongs.
  std::size_t RowOf(std::size_t i, std::size_t rows) const;
};

/// Follows column.path from the top-level field (`type`, `array`) and then column.list_levels().
/// Rows are [begin, begin + rows) of that field. A null anywhere on the way makes its elements
/// null: as many as the fixed levels say, none behind a variable one. Errors: InvalidArgument for a
/// missing field, another type, nulls (unless the column has a fill or is a mask), a list of
/// another length, corrupt arrays, an expected field with another value.
Result<Walk> WalkColumn(const Column& column, const ArrowSchema& type, const ArrowArray& array,
                        std::size_t begin, std::size_t rows);

/// View of a column that is not one array as it is: see ViewBatch.
Result<ColumnView> ViewWalked(const Column& column, const ArrowSchema& type,
                              const ArrowArray& array, std::size_t begin, std::size_t rows);

/// Spark's vectors: struct<type, size, indices, values>. kVector and kVectorIndices.
Result<ColumnView> ViewVectors(const Column& column, const Walk& walk, std::size_t rows);

/// The child of a struct by name. InvalidArgument that lists what there is.
Result<std::int64_t> FieldIndex(const ArrowSchema& type, const ArrowArray& array,
                                const std::string& name);

}  // namespace arcflow::columnar
