// SPDX-License-Identifier: Apache-2.0
// Checked reading of WebHDFS's JSON, and what its exceptions mean.
#include "arcflow/hdfs/answers.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

namespace arcflow::hdfs {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kShown = 300;

std::string Shown(std::string_view body) {
  std::string out;
  for (const char c : body.substr(0, kShown)) {
    out.push_back(static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c);
  }
  return body.size() > kShown ? out + "…" : out;
}

Status Malformed(std::string_view what, std::string_view body) {
  return DataLoss("malformed answer (" + std::string(what) + "): " + Shown(body));
}

Result<Json> ParseObject(std::string_view body) {
  Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Malformed("not a JSON object", body);
  return json;
}

const Json* Find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() ? nullptr : &*it;
}

std::string Text(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>() : "";
}

bool Truth(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

/// A whole number that is not negative; 0 when it is absent and may be.
bool Number(const Json& object, const char* key, bool required, std::uint64_t* out) {
  const Json* value = Find(object, key);
  if (value == nullptr) return !required;
  if (!value->is_number_integer()) return false;
  if (!value->is_number_unsigned() && value->get<std::int64_t>() < 0) return false;
  *out = value->get<std::uint64_t>();
  return *out <= std::uint64_t{1} << 62;
}

bool IsName(std::string_view name) {
  return name != "." && name != ".." && name.find('/') == std::string_view::npos &&
         std::none_of(name.begin(), name.end(),
                      [](char c) { return static_cast<unsigned char>(c) < 0x20; });
}

bool ReadStatus(const Json& json, FileStatus* out) {
  const std::string type = Text(json, "type");
  if (type != "FILE" && type != "DIRECTORY" && type != "SYMLINK") return false;
  out->is_directory = type == "DIRECTORY";
  out->name = Text(json, "pathSuffix");
  std::uint64_t modified = 0;
  const bool fine = Number(json, "length", true, &out->length) &&
                    Number(json, "blockSize", false, &out->block_bytes) &&
                    Number(json, "modificationTime", false, &modified) && IsName(out->name);
  out->modified_ms = static_cast<std::int64_t>(modified);
  out->owner = Text(json, "owner");
  out->permission = Text(json, "permission");
  out->is_plain = !Truth(json, "encBit") && !Truth(json, "ecBit");
  return fine;
}

constexpr std::uint64_t kMaxPort = 65535;

bool ReadPlaces(const Json& locations, std::vector<TransferAddress>* out) {
  if (!locations.is_array()) return false;
  for (const Json& one : locations) {
    std::uint64_t port = 0;
    TransferAddress place{Text(one, "ipAddr"), Text(one, "hostName"), 0};
    if (!Number(one, "xferPort", true, &port) || port == 0 || port > kMaxPort) return false;
    place.port = static_cast<int>(port);
    out->push_back(std::move(place));
  }
  return true;
}

/// A block's parts, and whether a client can read it by itself.
bool ReadBlock(const Json& json, LocatedBlock* out, bool* readable) {
  const Json* block = Find(json, "block");
  const Json* places = Find(json, "locations");
  const Json* token = Find(json, "blockToken");
  if (block == nullptr || places == nullptr || !block->is_object()) return false;
  const Json* id = Find(*block, "blockId");
  if (id == nullptr || !id->is_number_integer()) return false;
  // Groups of striped blocks have negative ids.
  const bool negative = !id->is_number_unsigned() && id->get<std::int64_t>() < 0;
  out->pool = Text(*block, "blockPoolId");
  if (token != nullptr) {
    auto read = DelegationToken::FromUrlString(Text(*token, "urlString"));
    if (!read.ok()) return false;
    out->token = std::move(*read);
  }
  if (!ReadPlaces(*places, &out->places) || out->pool.empty() ||
      !Number(json, "startOffset", true, &out->offset) ||
      !Number(*block, "numBytes", true, &out->length) ||
      !Number(*block, "generationStamp", true, &out->generation)) {
    return false;
  }
  out->id = negative ? 0 : id->get<std::uint64_t>();
  *readable = !negative && !Truth(json, "isCorrupt");
  return true;
}

struct Meaning {
  std::string_view exception;
  Code code;
  std::string_view advice;
};

constexpr Meaning kMeanings[] = {
    {"FileNotFoundException", Code::kNotFound, ""},
    {"PathNotFoundException", Code::kNotFound, ""},
    {"AccessControlException", Code::kPermissionDenied, ""},
    {"SecurityException", Code::kPermissionDenied, ""},
    {"AuthorizationException", Code::kPermissionDenied, ""},
    {"FileAlreadyExistsException", Code::kAlreadyExists, ""},
    {"AlreadyBeingCreatedException", Code::kUnavailable, ""},
    {"RecoveryInProgressException", Code::kUnavailable, ""},
    {"StandbyException", Code::kUnavailable, ""},
    {"RetriableException", Code::kUnavailable, ""},
    {"SafeModeException", Code::kUnavailable, ""},
    {"ServerTooBusyException", Code::kUnavailable, ""},
    {"ConnectException", Code::kUnavailable, ""},
    {"NotReplicatedYetException", Code::kUnavailable, ""},
    {"UnsupportedOperationException", Code::kUnimplemented, ""},
    {"IllegalArgumentException", Code::kInvalidArgument, ""},
    {"InvalidPathException", Code::kInvalidArgument, ""},
    {"ParentNotDirectoryException", Code::kFailedPrecondition, ""},
    {"PathIsNotDirectoryException", Code::kFailedPrecondition, ""},
    {"PathIsNotEmptyDirectoryException", Code::kFailedPrecondition, ""},
    {"DSQuotaExceededException", Code::kResourceExhausted,
     "the folder's space quota is used up (hdfs dfsadmin -setSpaceQuota)"},
    {"NSQuotaExceededException", Code::kResourceExhausted,
     "the folder's quota of names is used up (hdfs dfsadmin -setQuota)"},
    {"QuotaByStorageTypeExceededException", Code::kResourceExhausted, ""},
    {"DiskOutOfSpaceException", Code::kResourceExhausted, ""},
    {"InvalidToken", Code::kUnauthenticated,
     "the delegation token is expired or not this cluster's; get a new one"},
    {"SecretManager$InvalidToken", Code::kUnauthenticated,
     "the delegation token is expired or not this cluster's; get a new one"},
};

Code CodeOfHttp(int status) {
  switch (status) {
    case 400:
      return Code::kInvalidArgument;
    case 401:
      return Code::kUnauthenticated;
    case 403:
      return Code::kPermissionDenied;
    case 404:
      return Code::kNotFound;
    case 408:
    case 429:
      return Code::kUnavailable;
    default:
      return status >= 500 ? Code::kUnavailable : Code::kUnknown;
  }
}

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

}  // namespace

Result<FileStatus> ParseFileStatus(std::string_view body) {
  ARC_ASSIGN(const Json json, ParseObject(body));
  const Json* status = Find(json, "FileStatus");
  FileStatus out;
  if (status == nullptr || !ReadStatus(*status, &out)) return Malformed("FileStatus", body);
  return out;
}

Result<std::vector<FileStatus>> ParseFileStatuses(std::string_view body) {
  ARC_ASSIGN(const Json json, ParseObject(body));
  const Json* outer = Find(json, "FileStatuses");
  const Json* list = outer == nullptr ? nullptr : Find(*outer, "FileStatus");
  if (list == nullptr || !list->is_array()) return Malformed("FileStatuses", body);
  std::vector<FileStatus> out;
  out.reserve(list->size());
  for (const Json& one : *list) {
    FileStatus status;
    if (!ReadStatus(one, &status))
      return Malformed("FileStatuses", one.dump(-1, ' ', true, Json::error_handler_t::replace));
    out.push_back(std::move(status));
  }
  return out;
}

Result<bool> ParseBoolean(std::string_view body) {
  ARC_ASSIGN(const Json json, ParseObject(body));
  const Json* value = Find(json, "boolean");
  if (value == nullptr || !value->is_boolean()) return Malformed("boolean", body);
  return value->get<bool>();
}

Result<std::string> ParseToken(std::string_view body) {
  ARC_ASSIGN(const Json json, ParseObject(body));
  const Json* token = Find(json, "Token");
  std::string text = token == nullptr ? "" : Text(*token, "urlString");
  if (text.empty()) return Malformed("Token", "not shown");  // a secret may be in it
  return text;
}

Result<std::vector<LocatedBlock>> ParseBlockLocations(std::string_view body) {
  const auto bad = [](const char* what) {  // without the body: it holds tokens
    return DataLoss("malformed answer (" + std::string(what) + ") about the blocks of a file");
  };
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  const Json* located = Find(json, "LocatedBlocks");
  const Json* list = located == nullptr ? nullptr : Find(*located, "locatedBlocks");
  if (list == nullptr || !list->is_array()) return bad("no list of blocks");
  std::vector<LocatedBlock> blocks;
  if (Truth(*located, "isUnderConstruction")) return blocks;
  for (const Json& one : *list) {
    LocatedBlock block;
    bool readable = false;
    if (!ReadBlock(one, &block, &readable)) return bad("a block");
    if (!blocks.empty() && block.offset < blocks.back().offset + blocks.back().length) {
      return bad("blocks that overlap");
    }
    if (readable) blocks.push_back(std::move(block));
  }
  return blocks;
}

RemoteException ParseRemoteException(std::string_view body) {
  RemoteException out;
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  const Json* outer = Find(json, "RemoteException");
  if (outer == nullptr) return out;
  out.exception = Text(*outer, "exception");
  out.message = Text(*outer, "message");
  return out;
}

bool IsStandby(std::string_view body) {
  const RemoteException remote = ParseRemoteException(body);
  return remote.exception == "StandbyException" ||
         (remote.exception == "RemoteException" && Contains(remote.message, "StandbyException"));
}

Status ErrorOf(int http_status, std::string_view body, std::string_view authenticate) {
  const RemoteException remote = ParseRemoteException(body);
  if (remote.exception.empty()) {
    std::string message = "HTTP status " + std::to_string(http_status);
    if (http_status == 401) {
      message += Contains(authenticate, "Negotiate")
                     ? ": the server asks for Kerberos: run kinit before, or give a delegation "
                       "token, and set hadoop.security.authentication in core-site.xml"
                     : ": the server does not accept who we are";
    } else if (!body.empty()) {
      message += ": " + Shown(body);
    }
    return Status(CodeOfHttp(http_status), std::move(message));
  }
  const std::string text = remote.exception + ": " + Shown(remote.message);
  for (const Meaning& m : kMeanings) {
    if (m.exception != remote.exception) continue;
    return Status(m.code, m.advice.empty() ? text : text + " — " + std::string(m.advice));
  }
  // Only IOException carries several meanings.
  if (Contains(remote.message, "could only be written to 0 of the") ||
      Contains(remote.message, "No space left on device")) {
    return ResourceExhausted(text + " — the DataNodes have no room or are gone");
  }
  if (Contains(remote.message, "nodes contain this block")) return Unavailable(text);
  if (Contains(remote.message, "token") && http_status == 403) return Unauthenticated(text);
  if (Contains(remote.message, "is non empty") || Contains(remote.message, "not a directory")) {
    return FailedPrecondition(text);
  }
  // Whatever failed in the server, 403 goes with every IOException.
  const bool unclear = remote.exception == "IOException" && http_status == 403;
  return Status(unclear ? Code::kUnknown : CodeOfHttp(http_status), text);
}

}  // namespace arcflow::hdfs
