// SPDX-License-Identifier: Apache-2.0
// ClusterConfig: which NameNodes serve a file's name, by the cluster's own configuration.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/uri.h"
#include "arcflow/hdfs/xml_config.h"

namespace arcflow::hdfs {

/// One name space: a NameNode, or the NameNodes of an HA pair.
struct Service {
  std::string name;  // the nameservice, or "host:port"
  std::vector<HttpUrl> namenodes;
};

/// What a name stands for.
struct Place {
  Service service;
  std::string path;  // within the name space
  /// A folder that only the mount table knows: names directly below it. Then there is no service.
  bool is_mount_folder = false;
  std::vector<std::string> children;
};

/// Maps hdfs://, webhdfs://, swebhdfs:// and viewfs:// to NameNodes. Immutable; threads: any.
class ClusterConfig {
 public:
  ClusterConfig() = default;
  explicit ClusterConfig(Properties properties) : properties_(std::move(properties)) {}

  /// Reads core-site.xml and hdfs-site.xml of a folder; a file that is not there counts as empty.
  /// Errors: InvalidArgument for malformed files, the code of errno for unreadable ones.
  static Result<ClusterConfig> Load(const std::string& folder);
  /// The first that is set of HADOOP_CONF_DIR, YARN_CONF_DIR, $HADOOP_HOME/etc/hadoop,
  /// /etc/hadoop/conf.
  static std::string EnvironmentFolder();

  /// Errors: InvalidArgument for a scheme that is not ours, a name without a cluster when
  /// fs.defaultFS has none, a nameservice without addresses; NotFound for a name outside a mount
  /// table.
  Result<Place> Resolve(const Uri& uri) const;

  const Properties& properties() const { return properties_; }

 private:
  Result<Place> ResolveMount(const Uri& uri) const;
  Result<Service> FindService(const Uri& uri) const;
  Result<Service> Nameservice(const std::string& name, bool https) const;
  Result<HttpUrl> HttpAddress(const std::string& suffix, std::string_view rpc_host,
                              bool https) const;

  Properties properties_;
};

}  // namespace arcflow::hdfs
