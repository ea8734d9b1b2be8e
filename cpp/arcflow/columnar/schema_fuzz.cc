// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any bytes as the JSON of a schema and as an Arrow format string; what is accepted
// must round trip.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/columnar/arrow_format.h"
#include "arcflow/columnar/schema.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using arcflow::columnar::Schema;
  const std::string text(reinterpret_cast<const char*>(data), size);

  ArrowSchema type{text.c_str(), "x", nullptr, 0, 0, nullptr, nullptr, nullptr, nullptr};
  if (arcflow::columnar::DescribeType(type).empty()) std::abort();

  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) return 0;
  const arcflow::Result<Schema> schema = Schema::FromJson(json);
  if (!schema.ok()) return 0;
  for (const auto& column : schema->columns) {
    if (column.row_bytes() > Schema::kMaxRowBytes) std::abort();
    if (column.variable() && column.item_bytes() == 0) std::abort();
  }
  const arcflow::Result<Schema> again = Schema::FromJson(schema->ToJson());
  // As text, because a NaN to fill with is not equal to itself.
  if (!again.ok() || again->ToJson() != schema->ToJson()) std::abort();
  return 0;
}
