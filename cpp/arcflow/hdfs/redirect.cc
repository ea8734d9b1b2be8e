// SPDX-License-Identifier: Apache-2.0
// The rule about strangers.
#include "arcflow/hdfs/redirect.h"

#include <algorithm>
#include <cctype>

namespace arcflow::hdfs {
namespace {

std::string Lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

bool IsLiteral(std::string_view host) {
  return host.find(':') != std::string_view::npos ||
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

bool IsLoopback(std::string_view host) {
  return host == "localhost" || host == "::1" || (IsLiteral(host) && host.substr(0, 4) == "127.");
}

/// "cluster.example.org" for "nn1.cluster.example.org"; empty unless two labels are left.
std::string_view Domain(std::string_view host) {
  const std::size_t dot = host.find('.');
  if (IsLiteral(host) || dot == std::string_view::npos) return {};
  const std::string_view rest = host.substr(dot + 1);
  return rest.find('.') == std::string_view::npos ? std::string_view() : rest;
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() > end.size() && text.substr(text.size() - end.size()) == end;
}

bool SameNetwork(const std::string& from, const std::string& to) {
  if (to == from) return true;
  if (IsLoopback(from) || IsLoopback(to)) return IsLoopback(from) && IsLoopback(to);
  if (IsLiteral(from) || IsLiteral(to)) return IsLiteral(from) && IsLiteral(to);
  const bool one_label = to.find('.') == std::string::npos;
  if (from.find('.') == std::string::npos) return one_label;
  const std::string_view domain = Domain(from);
  return !domain.empty() && EndsWith(to, "." + std::string(domain));
}

bool Named(const std::string& host, const std::vector<std::string>& allowed) {
  return std::any_of(allowed.begin(), allowed.end(), [&](const std::string& one) {
    const std::string name = Lower(one);
    return name == "*" || name == host || (name[0] == '.' && EndsWith(host, name));
  });
}

}  // namespace

bool MaySendTo(const HttpUrl& from, std::string_view host,
               const std::vector<std::string>& allowed) {
  const std::string name = Lower(host);
  return SameNetwork(Lower(from.host), name) || Named(name, allowed);
}

Result<HttpUrl> CheckRedirect(const HttpUrl& from, std::string_view location,
                              const std::vector<std::string>& allowed) {
  const auto refuse = [&](const std::string& why) {
    return Status(Code::kPermissionDenied, "redirect of " + from.Authority() + " refused: " + why);
  };
  auto to = ParseHttpUrl(location);
  if (!to.ok()) return refuse(std::string(to.status().message()));
  if (from.scheme == "https" && to->scheme != "https") {
    return refuse("it leads from https to " + to->scheme + "://" + to->Authority());
  }
  if (Unescape(to->path) != Unescape(from.path)) {
    return refuse("it leads to another path: " + to->Authority() + to->path);
  }
  const auto op = QueryValue(to->query, "op");
  if (!op || Lower(*op) != Lower(QueryValue(from.query, "op").value_or(""))) {
    return refuse("it is not for the same operation: " + to->Authority() +
                  " op=" + op.value_or("(none)"));
  }
  if (!MaySendTo(from, to->host, allowed)) {
    return refuse(to->Authority() +
                  " is a stranger; if it is a DataNode of this cluster, name it or its domain "
                  "(.example.org) in ARCFLOW_HDFS_ALLOWED_HOSTS or arcflow.hdfs.allowed.hosts");
  }
  return to;
}

}  // namespace arcflow::hdfs
