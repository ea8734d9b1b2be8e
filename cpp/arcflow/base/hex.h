// SPDX-License-Identifier: Apache-2.0
// Bytes as hexadecimal text.
#pragma once

#include <string>
#include <string_view>

#include "arcflow/base/status.h"

namespace arcflow {

/// Two lower-case digits for each byte.
std::string ToHex(std::string_view bytes);
/// InvalidArgument for anything that ToHex did not make.
Result<std::string> FromHex(std::string_view text);

}  // namespace arcflow
