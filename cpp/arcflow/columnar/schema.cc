// SPDX-License-Identifier: Apache-2.0
// Schema: names and sizes of element types, and what a column's fields come to.
#include "arcflow/columnar/schema.h"

#include <algorithm>
#include <array>

namespace arcflow::columnar {
namespace {

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

bool Column::variable() const {
  return dtype == DType::kString || source == Source::kBytes || source == Source::kVectorIndices ||
         std::find(levels.begin(), levels.end(), kVariable) != levels.end();
}

std::size_t Column::row_elements() const {
  std::size_t elements = 1;
  for (std::int64_t dim : row_shape) elements *= static_cast<std::size_t>(dim);
  return elements;
}

std::size_t Column::item_bytes() const {
  return dtype == DType::kString ? 1 : row_elements() * SizeOf(dtype);
}

std::vector<std::int64_t> Column::list_levels() const {
  if (source != Source::kList || !levels.empty()) return levels;
  return {static_cast<std::int64_t>(row_elements())};
}

}  // namespace arcflow::columnar
