// SPDX-License-Identifier: Apache-2.0
// Tokens: reading Hadoop's token file, and the form in which WebHDFS takes and gives a token.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::hdfs {

/// A delegation token, of a token file, or the token of a block, which has no alias.
struct DelegationToken {
  std::string alias;
  std::string identifier;
  std::string password;
  std::string kind;
  std::string service;

  /// URL-safe base64 of Hadoop's Writable form, as the parameter `delegation` holds it.
  std::string ToUrlString() const;
  /// Errors: DataLoss, without the text.
  static Result<DelegationToken> FromUrlString(std::string_view text);
};

constexpr std::size_t kMaxTokenFileBytes = std::size_t{16} << 20;

/// Reads the file that HADOOP_TOKEN_FILE_LOCATION names, in either of its two versions.
/// Errors: DataLoss for anything malformed; messages never hold a secret.
/// Source: org.apache.hadoop.security.Credentials.
Result<std::vector<DelegationToken>> ParseTokenFile(std::string_view bytes);

/// The HDFS token for a service: the one of "ha-hdfs:<name>" or "host:port", else the only HDFS
/// token that there is; null when there is none.
const DelegationToken* FindToken(const std::vector<DelegationToken>& tokens,
                                 std::string_view service);

/// Reads the file and returns the URL form of the service's token; empty when it has none.
/// Errors: of the file.
Result<std::string> LoadToken(const std::string& path, std::string_view service);

}  // namespace arcflow::hdfs
