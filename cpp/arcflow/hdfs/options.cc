// SPDX-License-Identifier: Apache-2.0
// Where each setting comes from.
#include "arcflow/hdfs/options.h"

#include <cctype>
#include <charconv>
#include <cstdlib>

#include "arcflow/hdfs/xml_config.h"

namespace arcflow::hdfs {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void AddList(std::string_view text, std::vector<std::string>* out) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    std::string one = Trimmed(text.substr(at, end - at));
    if (!one.empty()) out->push_back(std::move(one));
    at = end + 1;
  }
}

bool IsFalse(std::string_view text) {
  return text == "0" || text == "false" || text == "off" || text == "no";
}

/// Whether DataNodes take requests for blocks in the clear, as far as the configuration tells, and
/// nobody has switched it off.
bool MayReadDirectly(const Properties& properties) {
  const std::string protection = Trimmed(properties.Get("dfs.data.transfer.protection", ""));
  return protection.empty() && properties.Get("dfs.encrypt.data.transfer", "false") != "true" &&
         !IsFalse(properties.Get("arcflow.hdfs.direct", "true")) &&
         !IsFalse(Environment("ARCFLOW_HDFS_DIRECT"));
}

/// "128m", "134217728"; 0 when it is no size.
std::size_t Size(std::string_view text) {
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return 0;
  if (end == text.data() + text.size()) return value;
  if (end + 1 != text.data() + text.size()) return 0;
  constexpr std::string_view kUnits = "kmgt";
  const std::size_t unit = kUnits.find(static_cast<char>(std::tolower(*end)));
  if (unit == std::string_view::npos || value > (std::size_t{1} << 20)) return 0;
  return value << (10 * (unit + 1));
}

}  // namespace

Options Options::From(const Properties& properties) {
  Options o;
  o.user = Environment("HADOOP_USER_NAME");
  if (o.user.empty()) {
    Properties none;
    none.Set("user", "${user.name}");
    o.user = none.Get("user", "");
  }
  o.proxy_user = Environment("HADOOP_PROXY_USER");
  o.kerberos = properties.Get("hadoop.security.authentication", "simple") == "kerberos";
  o.delegation_token = Environment("ARCFLOW_HDFS_TOKEN");
  o.token_file = Environment("HADOOP_TOKEN_FILE_LOCATION");
  o.ca_file = Environment("ARCFLOW_HDFS_CA_FILE");
  if (o.ca_file.empty()) o.ca_file = properties.Get("arcflow.hdfs.ca.file", "");
  AddList(Environment("ARCFLOW_HDFS_ALLOWED_HOSTS"), &o.allowed_hosts);
  AddList(properties.Get("arcflow.hdfs.allowed.hosts", ""), &o.allowed_hosts);
  o.replication = properties.Get("dfs.replication", "");
  if (o.replication.find_first_not_of("0123456789") != std::string::npos) o.replication.clear();
  o.direct = MayReadDirectly(properties);
  o.use_host_names = properties.Get("dfs.client.use.datanode.hostname", "false") == "true";
  o.block_bytes = Size(properties.Get("dfs.blocksize", ""));
  return o;
}

}  // namespace arcflow::hdfs
