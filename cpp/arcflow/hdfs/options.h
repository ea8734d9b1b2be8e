// SPDX-License-Identifier: Apache-2.0
// Options: how a client speaks to HDFS; the defaults come from the environment and the cluster's
// files.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace arcflow::hdfs {

class Properties;

/// Settings of a client. Plain data.
struct Options {
  /// Sent as user.name when neither Kerberos nor a token is used.
  std::string user;
  /// Sent as doas: act for this user (the cluster must allow it). Empty: nobody.
  std::string proxy_user;
  /// Prove who we are with the Kerberos ticket of this process (SPNEGO).
  bool kerberos = false;
  /// A delegation token in its URL form; wins over the tokens of `token_file`.
  std::string delegation_token;
  /// Hadoop's token file (HADOOP_TOKEN_FILE_LOCATION), as YARN writes it for containers.
  std::string token_file;
  /// PEM file of the authorities that sign the servers' certificates; empty: the system's.
  std::string ca_file;
  /// Hosts or domains (".example.org") that a redirect may lead to besides the cluster's own.
  std::vector<std::string> allowed_hosts;
  /// Passed to CREATE; empty or 0: what the NameNode has.
  std::string replication;
  std::size_t block_bytes = 0;

  /// Read blocks straight from DataNodes where the cluster allows it in the clear; else, and
  /// whenever that fails, by WebHDFS.
  bool direct = true;
  /// Reach DataNodes by the names they have instead of their addresses.
  bool use_host_names = false;

  std::chrono::milliseconds connect_timeout{10'000};
  /// To a DataNode's port for blocks, which a firewall may close.
  std::chrono::milliseconds direct_connect_timeout{2'000};
  /// A transfer that moves no byte for so long has failed.
  std::chrono::seconds stall_timeout{30};
  /// One operation with all its tries; a transfer that goes on moving may take longer.
  std::chrono::milliseconds operation_timeout{120'000};
  /// Tries of one step; between them a growing pause.
  int attempts = 8;
  /// Rounds over the NameNodes of an HA pair.
  int failover_rounds = 15;
  std::chrono::milliseconds first_pause{100};
  std::chrono::milliseconds longest_pause{3'000};

  /// Ranges that are read ahead, and how many of them at once for one file.
  std::size_t chunk_bytes = std::size_t{4} << 20;
  int parallel_reads = 4;
  /// Read-ahead memory of all files of a client.
  std::size_t readahead_bytes = std::size_t{256} << 20;
  /// Files up to this size are written in one request; larger ones are streamed through this much.
  std::size_t write_buffer_bytes = std::size_t{8} << 20;

  /// HADOOP_USER_NAME, HADOOP_PROXY_USER, HADOOP_TOKEN_FILE_LOCATION, ARCFLOW_HDFS_CA_FILE,
  /// ARCFLOW_HDFS_ALLOWED_HOSTS, ARCFLOW_HDFS_TOKEN, ARCFLOW_HDFS_DIRECT
  /// and the properties of the cluster.
  static Options From(const Properties& properties);
};

}  // namespace arcflow::hdfs
