// SPDX-License-Identifier: Apache-2.0
// Nameservices, HA pairs and mount tables out of Hadoop's properties.
#include "arcflow/hdfs/cluster_config.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>

namespace arcflow::hdfs {
namespace {

constexpr int kHttpPort = 9870;
constexpr int kHttpsPort = 9871;
constexpr int kMaxMountDepth = 4;

std::vector<std::string> Split(std::string_view text) {
  std::vector<std::string> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    std::string one = Trimmed(text.substr(at, end - at));
    if (!one.empty()) out.push_back(std::move(one));
    at = end + 1;
  }
  return out;
}

Status AddFile(const std::string& path, Properties* properties) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    if (errno == ENOENT) return Status::Ok();
    return Status::FromErrno(errno, "cannot read " + path);
  }
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) return Status::FromErrno(EIO, "cannot read " + path);
  return properties->Add(text, path);
}

struct Mount {
  std::string from;
  std::string to;
};

}  // namespace

Result<ClusterConfig> ClusterConfig::Load(const std::string& folder) {
  Properties properties;
  for (const char* name : {"/core-site.xml", "/hdfs-site.xml", "/viewfs-mount-table.xml"}) {
    ARC_TRY(AddFile(folder + name, &properties));
  }
  return ClusterConfig(std::move(properties));
}

std::string ClusterConfig::EnvironmentFolder() {
  for (const char* name : {"HADOOP_CONF_DIR", "YARN_CONF_DIR"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return value;
  }
  const char* home = std::getenv("HADOOP_HOME");
  if (home != nullptr && *home != '\0') return std::string(home) + "/etc/hadoop";
  return "/etc/hadoop/conf";
}

Result<Place> ClusterConfig::Resolve(const Uri& uri) const {
  Uri whole = uri;
  for (int depth = 0; depth < kMaxMountDepth; ++depth) {
    const std::string& s = whole.scheme;
    if (s != "hdfs" && s != "webhdfs" && s != "swebhdfs" && s != "viewfs") {
      return InvalidArgument(uri.ToString() +
                             ": the scheme is not hdfs, webhdfs, swebhdfs or viewfs");
    }
    if (s == "viewfs") {
      ARC_ASSIGN(Place place, ResolveMount(whole));
      if (place.is_mount_folder) return place;
      ARC_ASSIGN(whole, ParseUri(place.path));
      continue;
    }
    if (whole.authority.empty()) {
      const std::string name = properties_.Get("fs.defaultFS", "");
      auto base = ParseUri(name);
      if (!base.ok() || base->authority.empty() || base->scheme == "file") {
        return InvalidArgument(uri.ToString() + " names no cluster, and fs.defaultFS is \"" + name +
                               "\": write hdfs://host/path, or set HADOOP_CONF_DIR");
      }
      base->path = whole.path;
      whole = *base;
      continue;
    }
    Place place;
    ARC_ASSIGN(place.service, FindService(whole));
    place.path = whole.path;
    return place;
  }
  return InvalidArgument(uri.ToString() + ": the mount table leads in a circle");
}

/// The place's `path` is the whole name that a link leads to.
Result<Place> ClusterConfig::ResolveMount(const Uri& uri) const {
  const std::string table = uri.authority.empty() ? "default" : uri.authority;
  const std::string prefix = "fs.viewfs.mounttable." + table + ".";
  std::vector<Mount> links;
  std::string fallback = properties_.Get(prefix + "linkMergeSlash", "");
  if (fallback.empty()) fallback = properties_.Get(prefix + "linkFallback", "");
  properties_.ForEach(prefix + "link./", [&](const std::string& name, const std::string& value) {
    links.push_back({CleanPath(name.substr(prefix.size() + 5)), Trimmed(value)});
  });
  if (links.empty() && fallback.empty()) {
    return InvalidArgument(uri.ToString() + ": the configuration has no mount table \"" + table +
                           "\" (" + prefix + "link.…)");
  }
  const Mount* best = nullptr;
  std::set<std::string> children;
  for (const Mount& link : links) {
    if (IsWithin(uri.path, link.from)) {
      if (best == nullptr || link.from.size() > best->from.size()) best = &link;
    } else if (IsWithin(link.from, uri.path)) {
      const std::size_t skip = uri.path == "/" ? 1 : uri.path.size() + 1;
      children.insert(link.from.substr(skip, link.from.find('/', skip) - skip));
    }
  }
  Place place;
  if (best == nullptr && !children.empty()) {
    place.is_mount_folder = true;
    place.path = uri.path;
    place.children.assign(children.begin(), children.end());
    return place;
  }
  if (best == nullptr && fallback.empty()) {
    return NotFound(uri.ToString() + " lies outside the mount table \"" + table + "\"");
  }
  const std::string rest =
      best == nullptr || best->from == "/" ? uri.path : uri.path.substr(best->from.size());
  ARC_ASSIGN(Uri to, ParseUri(best == nullptr ? fallback : best->to));
  to.path = CleanPath(to.path + "/" + rest);
  place.path = to.ToString();
  return place;
}

Result<Service> ClusterConfig::FindService(const Uri& uri) const {
  const bool https =
      uri.scheme == "swebhdfs" ||
      (uri.scheme == "hdfs" && properties_.Get("dfs.http.policy", "HTTP_ONLY") == "HTTPS_ONLY");
  const auto services = Split(properties_.Get("dfs.nameservices", ""));
  if (std::find(services.begin(), services.end(), uri.authority) != services.end()) {
    return Nameservice(uri.authority, https);
  }
  Service service;
  service.name = uri.authority;
  ARC_ASSIGN(HttpUrl address, ParseHostPort(uri.authority, https ? "https" : "http",
                                            https ? kHttpsPort : kHttpPort));
  if (uri.scheme != "hdfs") {  // the port of the name is that of HTTP
    service.namenodes.push_back(std::move(address));
    return service;
  }
  // The port of the name is that of RPC; the address for HTTP stands in hdfs-site.xml if the name
  // is the configured cluster's.
  const auto configured = [&](std::string_view key) {
    const std::string value = properties_.Get(key, "");
    return value == uri.authority || ParseUri(value).ok()
               ? value == uri.authority || ParseUri(value)->authority == uri.authority
               : false;
  };
  if (configured("fs.defaultFS") || configured("dfs.namenode.rpc-address")) {
    ARC_ASSIGN(address, HttpAddress("", address.host, https));
  } else {
    address.port = https ? kHttpsPort : kHttpPort;
  }
  service.namenodes.push_back(std::move(address));
  return service;
}

Result<Service> ClusterConfig::Nameservice(const std::string& name, bool https) const {
  Service service;
  service.name = name;
  const auto nodes = Split(properties_.Get("dfs.ha.namenodes." + name, ""));
  std::vector<std::string> suffixes;
  for (const std::string& node : nodes) suffixes.push_back("." + name + "." + node);
  if (nodes.empty()) suffixes.push_back("." + name);
  for (const std::string& suffix : suffixes) {
    const std::string rpc = properties_.Get("dfs.namenode.rpc-address" + suffix, "");
    auto host = ParseHostPort(rpc.empty() ? "0.0.0.0" : rpc, "http", 1);
    ARC_ASSIGN(HttpUrl address, HttpAddress(suffix, host.ok() ? host->host : "", https));
    if (address.host == "0.0.0.0") {
      return InvalidArgument("nameservice " + name + ": neither dfs.namenode.http" +
                             (https ? "s" : "") + "-address" + suffix +
                             " nor dfs.namenode.rpc-address" + suffix + " names a host");
    }
    service.namenodes.push_back(std::move(address));
  }
  return service;
}

/// Address for HTTP; a wildcard host in it means the host of the RPC address.
Result<HttpUrl> ClusterConfig::HttpAddress(const std::string& suffix, std::string_view rpc_host,
                                           bool https) const {
  const std::string key =
      std::string(https ? "dfs.namenode.https-address" : "dfs.namenode.http-address") + suffix;
  const std::string value = properties_.Get(key, "0.0.0.0");
  auto address = ParseHostPort(value, https ? "https" : "http", https ? kHttpsPort : kHttpPort);
  if (!address.ok()) return address.status().WithContext(key);
  if (address->host == "0.0.0.0" || address->host == "::") address->host = rpc_host;
  if (address->host.empty()) address->host = "0.0.0.0";
  return address;
}

}  // namespace arcflow::hdfs
