// SPDX-License-Identifier: Apache-2.0
// Answers of WebHDFS: JSON that a server wrote, checked before anything is believed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/credentials.h"

namespace arcflow::hdfs {

/// One file or folder. Source: the FileStatus schema of Hadoop's WebHDFS page.
struct FileStatus {
  std::string name;  // below the folder that was listed; empty for the path itself
  bool is_directory = false;
  std::uint64_t length = 0;  // bytes
  std::uint64_t block_bytes = 0;
  std::int64_t modified_ms = 0;  // since 1970
  std::string owner;
  std::string permission;  // octal
  /// Whether the bytes on the DataNodes are the file's: not encrypted there, not striped.
  bool is_plain = true;
};

/// Where a DataNode takes requests for blocks.
struct TransferAddress {
  std::string ip;
  std::string host;
  int port = 0;
};

/// One block of a file that is written to its end. Source: JsonUtil of Hadoop's WebHDFS.
struct LocatedBlock {
  std::uint64_t offset = 0;  // in the file
  std::uint64_t length = 0;  // bytes
  std::string pool;
  std::uint64_t id = 0;
  std::uint64_t generation = 0;
  DelegationToken token;  // empty on clusters without security
  std::vector<TransferAddress> places;
};

/// Hadoop's description of an exception. Empty strings when the body is none.
struct RemoteException {
  std::string exception;
  std::string message;
};

/// Each parser's errors: DataLoss for a body that is not JSON, lacks a field, or has one of the
/// wrong type, a negative size, or a name that leads elsewhere.
Result<FileStatus> ParseFileStatus(std::string_view body);
Result<std::vector<FileStatus>> ParseFileStatuses(std::string_view body);
Result<bool> ParseBoolean(std::string_view body);
/// The URL form of a new delegation token.
Result<std::string> ParseToken(std::string_view body);
/// Blocks of a GET_BLOCK_LOCATIONS answer, in order. Left out are those that a client cannot read
/// by itself: corrupt or striped ones, and all of a file that is being written.
Result<std::vector<LocatedBlock>> ParseBlockLocations(std::string_view body);

RemoteException ParseRemoteException(std::string_view body);

/// What an answer that is no success means. Transient troubles (standby, safe mode, overload) are
/// Unavailable.
Status ErrorOf(int http_status, std::string_view body, std::string_view authenticate);

/// Whether the error says that this NameNode is not the active one.
bool IsStandby(std::string_view body);

}  // namespace arcflow::hdfs
