// SPDX-License-Identifier: Apache-2.0
// Answers of WebHDFS: JSON that a server wrote, checked before anything is believed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"

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

RemoteException ParseRemoteException(std::string_view body);

/// What an answer that is no success means. Transient troubles (standby, safe mode, overload) are
/// Unavailable.
Status ErrorOf(int http_status, std::string_view body, std::string_view authenticate);

/// Whether the error says that this NameNode is not the active one.
bool IsStandby(std::string_view body);

}  // namespace arcflow::hdfs
