// SPDX-License-Identifier: Apache-2.0
// Text: bytes as text for JSON, and other people's text made safe to pass on.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"

namespace arcflow::control {

/// Two lower-case digits a byte; the way back takes both cases. Errors: InvalidArgument.
std::string HexEncode(std::string_view bytes);
Result<std::string> HexDecode(std::string_view hex);

/// RFC 4648, section 4, with padding. Decoding is strict: InvalidArgument for anything an encoder
/// would not have written.
std::string Base64Encode(std::string_view bytes);
Result<std::string> Base64Decode(std::string_view text);

/// `text` as valid UTF-8 (each bad byte becomes '?') without control characters and terminal
/// colours (newline and tab stay), at most `max_bytes` long: a longer text keeps its beginning and
/// its end. So one byte of it takes at most two in JSON.
std::string CleanText(std::string_view text, std::size_t max_bytes);

}  // namespace arcflow::control
