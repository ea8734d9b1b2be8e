// SPDX-License-Identifier: Apache-2.0
// Hexadecimal text, there and back.
#include "arcflow/base/hex.h"

namespace arcflow {

std::string ToHex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    text += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return text;
}

Result<std::string> FromHex(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    const auto digit = [&](std::size_t at) {
      return std::string_view("0123456789abcdef").find(text[at]);
    };
    if (digit(i) > 15 || digit(i + 1) > 15) break;
    bytes += static_cast<char>(digit(i) * 16 + digit(i + 1));
  }
  if (bytes.size() * 2 != text.size()) return InvalidArgument("not hexadecimal");
  return bytes;
}

}  // namespace arcflow
