// SPDX-License-Identifier: Apache-2.0
// Names of files (hdfs://authority/path) and addresses of servers (http://host:port/path?query).
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"

namespace arcflow::hdfs {

/// A file's name. `path` is absolute and clean: no "//", ".", ".." and no slash at the end.
struct Uri {
  std::string scheme;
  std::string authority;
  std::string path;

  std::string ToString() const { return scheme + "://" + authority + path; }
};

/// Errors: InvalidArgument for text without "scheme://", a user in the authority, or a control
/// character.
Result<Uri> ParseUri(std::string_view text);

/// Absolute and clean, as Uri::path. ".." at the top is dropped.
std::string CleanPath(std::string_view path);
/// "/" for "/" and for names directly below it.
std::string ParentPath(std::string_view path);
/// What follows the last slash; empty for "/".
std::string BaseName(std::string_view path);
/// Whether `path` is `folder` or lies below it.
bool IsWithin(std::string_view path, std::string_view folder);

/// An absolute http or https address. `host` has no brackets; `port` is never 0.
struct HttpUrl {
  std::string scheme;
  std::string host;
  int port = 0;
  std::string path;   // escaped, begins with '/'
  std::string query;  // escaped, without '?'

  /// "host:port", an IPv6 host in brackets.
  std::string Authority() const;
  std::string ToString() const;
};

/// Errors: InvalidArgument for another scheme, no host, a user, a bad port, or characters that no
/// address has.
Result<HttpUrl> ParseHttpUrl(std::string_view text);

/// Splits "host:port" or "[v6]:port" (port optional: `default_port`).
/// Errors: InvalidArgument.
Result<HttpUrl> ParseHostPort(std::string_view text, std::string_view scheme, int default_port);

/// Percent-encodes all but unreserved characters and, in a path, '/'.
std::string EscapePath(std::string_view path);
std::string EscapeQuery(std::string_view value);
/// Undoes percent-encoding; bytes that are none stay.
std::string Unescape(std::string_view text);

/// Value of a key, decoded; keys are compared without case, as WebHDFS does.
std::optional<std::string> QueryValue(std::string_view query, std::string_view key);
/// The query with the key's value replaced, or added.
std::string WithQueryValue(std::string_view query, std::string_view key, std::string_view value);

}  // namespace arcflow::hdfs
