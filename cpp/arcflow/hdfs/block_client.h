// SPDX-License-Identifier: Apache-2.0
// BlockClient: ranges of blocks straight from the DataNodes that hold them.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/options.h"

namespace arcflow::hdfs {

/// Reads by Hadoop's data transfer protocol, every byte checked by the checksum that was stored
/// with it. Connections are kept for the next range. A DataNode that cannot be reached, or does not
/// speak the protocol in the clear (SASL, encryption), is left alone for a while.
/// Threads: any; each call waits. A child after fork starts without connections.
class BlockClient {
 public:
  explicit BlockClient(const Options& options);
  BlockClient(const BlockClient&) = delete;
  BlockClient& operator=(const BlockClient&) = delete;
  ~BlockClient();

  /// Fills `out` with the bytes of `block` from `offset` (within the block) on, from the DataNode
  /// at `host`:`port`. What has come before an error is good and counted in `*done`.
  /// Errors: FailedPrecondition, at once, for a DataNode that is left alone; Unavailable when it
  /// cannot be reached, breaks off or stalls; Unauthenticated when the block's token is not valid
  /// any more; DataLoss for wrong checksums and malformed messages; Unknown with the DataNode's
  /// words when it refuses; Cancelled.
  Status Read(const LocatedBlock& block, const std::string& host, int port, std::uint64_t offset,
              std::span<char> out, std::size_t* done, const std::atomic<bool>* cancelled);

  /// Connections that wait for another request: few, however many DataNodes there are.
  std::size_t kept_connections();

  /// Bytes that were read so by all clients of this process.
  static std::uint64_t bytes_read();

 private:
  class Transfer;
  struct Idle {
    Fd socket;
    Deadline::Clock::time_point since;
  };

  Result<Fd> Connect(const std::string& host, int port, const std::atomic<bool>* cancelled) const;
  Fd TakeIdle(const std::string& key);
  void Keep(const std::string& key, Fd socket);
  bool IsLeftAlone(const std::string& key);
  void LeaveAlone(const std::string& key);

  const Options& options_;
  const std::string name_;  // by which DataNodes log this client
  std::mutex mutex_;
  pid_t owner_;
  std::map<std::string, std::vector<Idle>> idle_;  // by "host:port"
  std::map<std::string, Deadline> left_alone_;
};

}  // namespace arcflow::hdfs
