// SPDX-License-Identifier: Apache-2.0
// Hadoop's token storage: version 0 is Writable, version 1 protocol buffers.
#include "arcflow/hdfs/credentials.h"

#include <cerrno>
#include <cstdint>
#include <fstream>
#include <iterator>

#include "arcflow/hdfs/wire.h"

namespace arcflow::hdfs {
namespace {

constexpr std::string_view kMagic = "HDTS";

Status Bad(std::string_view why) {
  return DataLoss("the token file is malformed: " + std::string(why));
}

Result<std::vector<DelegationToken>> ParseWritable(WireInput in) {
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
  WireInput in{message};
  while (const auto field = NextField(&in)) {
    if (field->type == 2 && !each(field->id, field->bytes)) return false;
  }
  return in.left.empty();
}

bool ReadTokenProto(std::string_view bytes, DelegationToken* t) {
  return ForEachField(bytes, [t](std::uint64_t field, std::string_view value) {
    if (field == 1) t->identifier = value;
    if (field == 2) t->password = value;
    if (field == 3) t->kind = value;
    if (field == 4) t->service = value;
    return true;
  });
}

Result<std::vector<DelegationToken>> ParseProto(WireInput in) {
  std::uint64_t size = 0;
  std::string_view message;
  if (!in.Varint(&size) || !in.Bytes(size, &message)) return Bad("it is shorter than it says");
  std::vector<DelegationToken> tokens;
  const bool fine = ForEachField(message, [&](std::uint64_t field, std::string_view entry) {
    if (field != 1) return true;
    DelegationToken t;
    const bool whole = ForEachField(entry, [&](std::uint64_t part, std::string_view value) {
      if (part == 1) t.alias = value;
      return part != 2 || ReadTokenProto(value, &t);
    });
    tokens.push_back(std::move(t));
    return whole;
  });
  if (!fine) return Bad("a field cannot be read");
  return tokens;
}

void AppendCounted(std::string_view bytes, std::string* out) {
  AppendVint(bytes.size(), out);
  out->append(bytes);
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

Result<DelegationToken> DelegationToken::FromUrlString(std::string_view text) {
  const auto bytes = FromUrlBase64(text);
  if (!bytes) return DataLoss("a token is malformed: it is no base64");
  WireInput in{*bytes};
  DelegationToken t;
  if (!in.Counted(&t.identifier) || !in.Counted(&t.password) || !in.Counted(&t.kind) ||
      !in.Counted(&t.service)) {
    return DataLoss("a token is malformed: it ends early");
  }
  return t;
}

Result<std::vector<DelegationToken>> ParseTokenFile(std::string_view bytes) {
  if (bytes.size() > kMaxTokenFileBytes) return Bad("it is too large");
  if (bytes.substr(0, kMagic.size()) != kMagic) return Bad("it does not begin with HDTS");
  WireInput in{bytes.substr(kMagic.size())};
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
