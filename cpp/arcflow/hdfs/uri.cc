// SPDX-License-Identifier: Apache-2.0
// Parsing and escaping of names and addresses.
#include "arcflow/hdfs/uri.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <vector>

namespace arcflow::hdfs {
namespace {

bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

bool IsUnreserved(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' ||
         c == '~';
}

std::string Escape(std::string_view text, bool keep_slash) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (IsUnreserved(c) || (keep_slash && c == '/')) {
      out.push_back(c);
      continue;
    }
    const auto byte = static_cast<unsigned char>(c);
    out += {'%', kHex[byte >> 4], kHex[byte & 15]};
  }
  return out;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

bool SameText(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

bool IsScheme(std::string_view text) {
  return !text.empty() && std::isalpha(static_cast<unsigned char>(text[0])) &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) || c == '+' || c == '-' || c == '.';
         });
}

bool IsHost(std::string_view host) {
  return !host.empty() && host.size() <= 255 && std::all_of(host.begin(), host.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' ||
           c == ':';
  });
}

/// Calls `each(begin, end)` for every "key=value" of a query until it returns true.
template <typename Each>
bool FindPair(std::string_view query, Each each) {
  std::size_t at = 0;
  while (at <= query.size() && !query.empty()) {
    const std::size_t end = std::min(query.find('&', at), query.size());
    if (each(at, end)) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace

Result<Uri> ParseUri(std::string_view text) {
  const std::string shown(text.substr(0, 200));
  if (std::any_of(text.begin(), text.end(), IsControl)) {
    return InvalidArgument("a file name holds a control character: " + EscapePath(shown));
  }
  const std::size_t colon = text.find("://");
  if (colon == std::string_view::npos || !IsScheme(text.substr(0, colon))) {
    return InvalidArgument("not a name such as hdfs://cluster/path: " + shown);
  }
  Uri uri;
  uri.scheme = text.substr(0, colon);
  const std::string_view rest = text.substr(colon + 3);
  const std::size_t slash = std::min(rest.find('/'), rest.size());
  uri.authority = rest.substr(0, slash);
  if (uri.authority.find('@') != std::string::npos) {
    return InvalidArgument("a user in " + shown +
                           " has no effect: set HADOOP_USER_NAME or HADOOP_PROXY_USER instead");
  }
  uri.path = CleanPath(rest.substr(slash));
  return uri;
}

std::string CleanPath(std::string_view path) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    const std::string_view part = path.substr(at, end - at);
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
    } else if (!part.empty() && part != ".") {
      parts.push_back(part);
    }
    at = end + 1;
  }
  std::string out;
  for (const std::string_view part : parts) out.append("/").append(part);
  return out.empty() ? "/" : out;
}

std::string ParentPath(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string_view::npos || slash == 0) return "/";
  return std::string(path.substr(0, slash));
}

std::string BaseName(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return std::string(slash == std::string_view::npos ? path : path.substr(slash + 1));
}

bool IsWithin(std::string_view path, std::string_view folder) {
  if (folder == "/") return true;
  return path.substr(0, folder.size()) == folder &&
         (path.size() == folder.size() || path[folder.size()] == '/');
}

std::string HttpUrl::Authority() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

std::string HttpUrl::ToString() const {
  return scheme + "://" + Authority() + path + (query.empty() ? "" : "?" + query);
}

Result<HttpUrl> ParseHostPort(std::string_view text, std::string_view scheme, int default_port) {
  const Status bad = InvalidArgument("not host:port: \"" + std::string(text.substr(0, 200)) + "\"");
  HttpUrl url;
  url.scheme = scheme;
  url.port = default_port;
  std::string_view port;
  if (!text.empty() && text[0] == '[') {
    const std::size_t end = text.find(']');
    if (end == std::string_view::npos) return bad;
    url.host = text.substr(1, end - 1);
    port = text.substr(end + 1);
  } else {
    const std::size_t colon = std::min(text.find(':'), text.size());
    url.host = text.substr(0, colon);
    port = text.substr(colon);
  }
  if (!IsHost(url.host)) return bad;
  if (!port.empty()) {
    if (port[0] != ':') return bad;
    const auto [end, error] = std::from_chars(port.data() + 1, port.data() + port.size(), url.port);
    if (error != std::errc() || end != port.data() + port.size()) return bad;
  }
  if (url.port < 1 || url.port > 65535) return bad;
  return url;
}

Result<HttpUrl> ParseHttpUrl(std::string_view text) {
  // Without the query: it may hold a token.
  const std::string shown = EscapePath(text.substr(0, std::min<std::size_t>(text.find('?'), 200)));
  const std::size_t colon = text.find("://");
  const std::string_view scheme = text.substr(0, std::min(colon, text.size()));
  const bool https = SameText(scheme, "https");
  if (colon == std::string_view::npos || (!https && !SameText(scheme, "http"))) {
    return InvalidArgument("not an http or https address: " + shown);
  }
  const auto unfit = [](char c) { return IsControl(c) || c == ' '; };
  if (std::any_of(text.begin(), text.end(), unfit)) {
    return InvalidArgument("an address holds a blank or control character: " + shown);
  }
  std::string_view rest = text.substr(colon + 3);
  rest = rest.substr(0, rest.find('#'));
  const std::size_t end = std::min(rest.find_first_of("/?"), rest.size());
  ARC_ASSIGN(HttpUrl url,
             ParseHostPort(rest.substr(0, end), https ? "https" : "http", https ? 443 : 80));
  rest = rest.substr(end);
  const std::size_t question = rest.find('?');
  if (question != std::string_view::npos) url.query = rest.substr(question + 1);
  url.path = rest.substr(0, std::min(question, rest.size()));
  if (url.path.empty()) url.path = "/";
  return url;
}

std::string EscapePath(std::string_view path) { return Escape(path, true); }
std::string EscapeQuery(std::string_view value) { return Escape(value, false); }

std::string Unescape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const int high = text[i] == '%' && i + 2 < text.size() ? HexValue(text[i + 1]) : -1;
    const int low = high >= 0 ? HexValue(text[i + 2]) : -1;
    if (low >= 0) {
      out.push_back(static_cast<char>(high * 16 + low));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

std::optional<std::string> QueryValue(std::string_view query, std::string_view key) {
  std::optional<std::string> found;
  FindPair(query, [&](std::size_t begin, std::size_t end) {
    const std::string_view pair = query.substr(begin, end - begin);
    const std::size_t equals = std::min(pair.find('='), pair.size());
    if (!SameText(Unescape(pair.substr(0, equals)), key)) return false;
    found = Unescape(pair.substr(std::min(equals + 1, pair.size())));
    return true;
  });
  return found;
}

std::string WithQueryValue(std::string_view query, std::string_view key, std::string_view value) {
  const std::string pair_text = std::string(key) + "=" + EscapeQuery(value);
  std::string out;
  const bool found = FindPair(query, [&](std::size_t begin, std::size_t end) {
    const std::string_view pair = query.substr(begin, end - begin);
    if (!SameText(pair.substr(0, std::min(pair.find('='), pair.size())), key)) return false;
    out = std::string(query.substr(0, begin)) + pair_text + std::string(query.substr(end));
    return true;
  });
  if (found) return out;
  return query.empty() ? pair_text : std::string(query) + "&" + pair_text;
}

}  // namespace arcflow::hdfs
