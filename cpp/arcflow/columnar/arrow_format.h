// SPDX-License-Identifier: Apache-2.0
// Format strings of the Arrow C data interface: what a type is called and whether a column can be
// made of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/columnar/schema.h"

namespace arcflow::columnar {

/// A name people know, e.g. "list<float32>", "timestamp[us, tz=UTC]", "dictionary<int32, string>".
/// Never fails: what this version does not know is shown as its format string. Bounded depth, so a
/// cyclic type cannot exhaust the stack. Source:
/// https://arrow.apache.org/docs/format/CDataInterface.html#data-type-description-format-strings
std::string DescribeType(const ArrowSchema& type);

/// What Schema's column asks for, in the same words: "float32", "list<float32> of length 784",
/// "binary of 3136 bytes", ….
std::string DescribeColumn(const Column& column);

/// Whether the primitive Arrow type `format` holds elements of `dtype`. date32 counts as int32
/// (days), a timestamp in microseconds as int64.
bool IsElementOf(std::string_view format, DType dtype);

/// N of "w:N" or "+w:N"; nothing when `format` is no such type or N is no number from 0 to 2^31
/// - 1.
std::optional<std::int64_t> FixedSizeOf(std::string_view format, std::string_view prefix);

}  // namespace arcflow::columnar
