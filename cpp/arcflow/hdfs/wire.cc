// SPDX-License-Identifier: Apache-2.0
// Reading and writing Writable, protocol buffers and base64.
#include "arcflow/hdfs/wire.h"

namespace arcflow::hdfs {
namespace {

constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

std::uint64_t Little(std::string_view bytes) {
  std::uint64_t n = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) n = n << 8 | static_cast<unsigned char>(bytes[i]);
  return n;
}

template <typename T>
bool Big(WireInput* in, T* out) {
  std::string_view bytes;
  if (!in->Bytes(sizeof(T), &bytes)) return false;
  *out = 0;
  for (const char c : bytes) *out = static_cast<T>(*out << 8 | static_cast<unsigned char>(c));
  return true;
}

}  // namespace

bool WireInput::Byte(std::uint8_t* out) {
  if (left.empty()) return false;
  *out = static_cast<std::uint8_t>(left[0]);
  left.remove_prefix(1);
  return true;
}

bool WireInput::Bytes(std::uint64_t n, std::string_view* out) {
  if (n > left.size()) return false;
  *out = left.substr(0, n);
  left.remove_prefix(n);
  return true;
}

bool WireInput::Big16(std::uint16_t* out) { return Big(this, out); }
bool WireInput::Big32(std::uint32_t* out) { return Big(this, out); }

bool WireInput::Vint(std::uint64_t* out) {
  std::uint8_t first = 0;
  if (!Byte(&first)) return false;
  const auto head = static_cast<std::int8_t>(first);
  if (head >= 0) {
    *out = first;
    return true;
  }
  if (head < -120) return false;   // negative
  if (head >= -112) return false;  // negative, one byte
  *out = 0;
  for (int n = -112 - head; n > 0; --n) {
    std::uint8_t byte = 0;
    if (!Byte(&byte)) return false;
    *out = *out << 8 | byte;
  }
  return true;
}

bool WireInput::Counted(std::string* out) {
  std::uint64_t n = 0;
  std::string_view bytes;
  if (!Vint(&n) || !Bytes(n, &bytes)) return false;
  out->assign(bytes);
  return true;
}

bool WireInput::Varint(std::uint64_t* out) {
  *out = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    std::uint8_t byte = 0;
    if (!Byte(&byte)) return false;
    *out |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

std::optional<WireField> NextField(WireInput* in) {
  if (in->left.empty()) return std::nullopt;
  const WireInput before = *in;
  WireField field;
  std::uint64_t key = 0;
  bool fine = in->Varint(&key);
  field.id = key >> 3;
  field.type = static_cast<int>(key & 7);
  switch (field.type) {
    case 0:
      fine = fine && in->Varint(&field.number);
      break;
    case 1:
    case 5:
      fine = fine && in->Bytes(field.type == 1 ? 8 : 4, &field.bytes);
      field.number = Little(field.bytes);
      break;
    case 2:
      fine = fine && in->Varint(&field.number) && in->Bytes(field.number, &field.bytes);
      break;
    default:
      fine = false;
  }
  if (fine) return field;
  *in = before;  // so that `left` is not empty
  return std::nullopt;
}

void AppendVint(std::uint64_t n, std::string* out) {
  if (n <= 127) {
    out->push_back(static_cast<char>(n));
    return;
  }
  int bytes = 0;
  for (std::uint64_t rest = n; rest != 0; rest >>= 8) ++bytes;
  out->push_back(static_cast<char>(-112 - bytes));
  for (int shift = (bytes - 1) * 8; shift >= 0; shift -= 8) {
    out->push_back(static_cast<char>(n >> shift & 0xff));
  }
}

void AppendVarint(std::uint64_t n, std::string* out) {
  for (; n > 0x7f; n >>= 7) out->push_back(static_cast<char>((n & 0x7f) | 0x80));
  out->push_back(static_cast<char>(n));
}

void AppendNumberField(std::uint64_t id, std::uint64_t n, std::string* out) {
  AppendVarint(id << 3, out);
  AppendVarint(n, out);
}

void AppendBytesField(std::uint64_t id, std::string_view bytes, std::string* out) {
  AppendVarint(id << 3 | 2, out);
  AppendVarint(bytes.size(), out);
  out->append(bytes);
}

std::string UrlBase64(std::string_view bytes) {
  std::string out;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : bytes) {
    bits = bits << 8 | static_cast<unsigned char>(c);
    for (count += 8; count >= 6; count -= 6) out.push_back(kDigits[bits >> (count - 6) & 63]);
  }
  if (count > 0) out.push_back(kDigits[bits << (6 - count) & 63]);
  return out;
}

std::optional<std::string> FromUrlBase64(std::string_view text) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  std::string out;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out.push_back(static_cast<char>(bits >> count & 0xff));
    }
  }
  return out;
}

}  // namespace arcflow::hdfs
