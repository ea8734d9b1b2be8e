// SPDX-License-Identifier: Apache-2.0
// Hadoop's token storage: version 0 is Writable, version 1 protocol buffers.
#include "arcflow/hdfs/credentials.h"

#include <cerrno>
#include <cstdint>
#include <fstream>
#include <iterator>

namespace arcflow::hdfs {
namespace {

constexpr std::string_view kMagic = "HDTS";

Status Bad(std::string_view why) {
  return DataLoss("the token file is malformed: " + std::string(why));
}

/// Takes from the front of the bytes; false when there is not enough.
struct Input {
  std::string_view left;

  bool Byte(std::uint8_t* out) {
    if (left.empty()) return false;
    *out = static_cast<std::uint8_t>(left[0]);
    left.remove_prefix(1);
    return true;
  }
  bool Bytes(std::uint64_t n, std::string* out) {
    if (n > left.size()) return false;
    out->assign(left.substr(0, n));
    left.remove_prefix(n);
    return true;
  }
  /// WritableUtils.readVLong, positive numbers only.
  bool Vint(std::uint64_t* out) {
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
  /// A protocol buffer's varint.
  bool Varint(std::uint64_t* out) {
    *out = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      std::uint8_t byte = 0;
      if (!Byte(&byte)) return false;
      *out |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return true;
    }
    return false;
  }
  bool Counted(std::string* out) {
    std::uint64_t n = 0;
    return Vint(&n) && Bytes(n, out);
  }
};

Result<std::vector<DelegationToken>> ParseWritable(Input in) {
  std::uint64_t count = 0;
  if (!in.Vint(&count) || count > in.left.size()) return Bad("count of tokens");
  std::vector<DelegationToken> tokens;
  for (std::uint64_t i = 0; i < count; ++i) {
    DelegationToken t;
    if (!in.Counted(&t.alias) || !in.Counted(&t.identifier) || !in.Counted(&t.password) ||
        !in.Counted(&t.kind) || !in.Counted(&t.service)) {
      return Bad("it ends within token " + std::to_string(i));
    }
    tokens.push_back(std::move(t));
  }
  return tokens;  // what follows are secrets that are not ours
}

/// Calls `each(field, bytes)` for every length-delimited field of a message; false if malformed.
template <typename Each>
bool ForEachField(std::string_view message, Each each) {
  Input in{message};
  while (!in.left.empty()) {
    std::uint64_t key = 0;
    std::uint64_t number = 0;
    std::string bytes;
    if (!in.Varint(&key)) return false;
    switch (key & 7) {
      case 0:
        if (!in.Varint(&number)) return false;
        break;
      case 1:
        if (!in.Bytes(8, &bytes)) return false;
        break;
      case 2:
        if (!in.Varint(&number) || !in.Bytes(number, &bytes) || !each(key >> 3, bytes)) {
          return false;
        }
        break;
      case 5:
        if (!in.Bytes(4, &bytes)) return false;
        break;
      default:
        return false;
    }
  }
  return true;
}

bool ReadTokenProto(const std::string& bytes, DelegationToken* t) {
  return ForEachField(bytes, [t](std::uint64_t field, const std::string& value) {
    if (field == 1) t->identifier = value;
    if (field == 2) t->password = value;
    if (field == 3) t->kind = value;
    if (field == 4) t->service = value;
    return true;
  });
}

Result<std::vector<DelegationToken>> ParseProto(Input in) {
  std::uint64_t size = 0;
  std::string message;
  if (!in.Varint(&size) || !in.Bytes(size, &message)) return Bad("it is shorter than it says");
  std::vector<DelegationToken> tokens;
  const bool fine = ForEachField(message, [&](std::uint64_t field, const std::string& entry) {
    if (field != 1) return true;
    DelegationToken t;
    const bool whole = ForEachField(entry, [&](std::uint64_t part, const std::string& value) {
      if (part == 1) t.alias = value;
      return part != 2 || ReadTokenProto(value, &t);
    });
    tokens.push_back(std::move(t));
    return whole;
  });
  if (!fine) return Bad("a field cannot be read");
  return tokens;
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

void AppendCounted(std::string_view bytes, std::string* out) {
  AppendVint(bytes.size(), out);
  out->append(bytes);
}

std::string UrlBase64(std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::string out;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : bytes) {
    bits = bits << 8 | static_cast<unsigned char>(c);
    for (count += 8; count >= 6; count -= 6) out.push_back(kDigits[bits >> (count - 6) & 63]);
  }
  if (count > 0) out.push_back(kDigits[bits << (6 - count) & 63]);
  return out;  // Hadoop leaves the padding out
}

bool IsHdfs(const DelegationToken& t) {
  return t.kind == "HDFS_DELEGATION_TOKEN" || t.kind == "WEBHDFS delegation" ||
         t.kind == "SWEBHDFS delegation";
}

}  // namespace

std::string DelegationToken::ToUrlString() const {
  std::string bytes;
  AppendCounted(identifier, &bytes);
  AppendCounted(password, &bytes);
  AppendCounted(kind, &bytes);
  AppendCounted(service, &bytes);
  return UrlBase64(bytes);
}

Result<std::vector<DelegationToken>> ParseTokenFile(std::string_view bytes) {
  if (bytes.size() > kMaxTokenFileBytes) return Bad("it is too large");
  if (bytes.substr(0, kMagic.size()) != kMagic) return Bad("it does not begin with HDTS");
  Input in{bytes.substr(kMagic.size())};
  std::uint8_t version = 0;
  if (!in.Byte(&version)) return Bad("it has no version");
  if (version == 0) return ParseWritable(in);
  if (version == 1) return ParseProto(in);
  return Bad("its version is " + std::to_string(version));
}

const DelegationToken* FindToken(const std::vector<DelegationToken>& tokens,
                                 std::string_view service) {
  const DelegationToken* only = nullptr;
  int count = 0;
  for (const DelegationToken& t : tokens) {
    if (!IsHdfs(t)) continue;
    if (t.service == service || t.service == "ha-hdfs:" + std::string(service)) return &t;
    only = &t;
    ++count;
  }
  return count == 1 ? only : nullptr;
}

Result<std::string> LoadToken(const std::string& path, std::string_view service) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return Status::FromErrno(errno, "cannot read HADOOP_TOKEN_FILE_LOCATION " + path);
  }
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  auto tokens = ParseTokenFile(bytes);
  if (!tokens.ok()) return tokens.status().WithContext(path);
  const DelegationToken* found = FindToken(*tokens, service);
  return found == nullptr ? std::string() : found->ToUrlString();
}

}  // namespace arcflow::hdfs
