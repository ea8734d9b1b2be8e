// SPDX-License-Identifier: Apache-2.0
// NameNode: operations on one name space, whichever NameNode of an HA pair is active.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/cluster_config.h"
#include "arcflow/hdfs/http.h"
#include "arcflow/hdfs/options.h"

namespace arcflow::hdfs {

/// One operation of WebHDFS.
struct Operation {
  std::string method = "GET";
  std::string name;  // "LISTSTATUS"
  std::string path;
  std::vector<std::pair<std::string, std::string>> parameters;
};

/// Asks the NameNodes of a service. Threads: any; each call waits.
class NameNode {
 public:
  /// `http` must live longer.
  NameNode(Service service, const Options& options, HttpClient* http);

  /// Body of the answer to an operation that succeeds at the NameNode itself. Tries again, and the
  /// other NameNode, after what is transient, until `deadline` or Options::operation_timeout.
  /// Errors: as ErrorOf, with operation and path; DataLoss, Unavailable, DeadlineExceeded.
  /// `uncertain`, if given, becomes true when a try broke off that may have been done.
  Result<std::string> Call(const Operation& operation, Deadline deadline = Deadline::Infinite(),
                           bool* uncertain = nullptr);

  /// The DataNode (or HttpFS itself) that the NameNode names for an operation on data.
  /// Errors: as Call, and of CheckRedirect.
  Result<HttpUrl> Locate(const Operation& operation, Deadline deadline = Deadline::Infinite());

  /// Blocks of a file that can be read straight from DataNodes, those from `offset` on for at least
  /// `length` bytes. Empty when there is no such road: a gateway that tells no blocks (remembered),
  /// https, a file that is being written. Each place's `ip` or `host` is cleared when a redirect
  /// must not lead there. Asked once, without trying again. Errors: as Call.
  Result<std::vector<LocatedBlock>> Blocks(const std::string& path, std::uint64_t offset,
                                           std::uint64_t length);

  const Service& service() const { return service_; }

 private:
  struct Try;
  Result<HttpResponse> Send(const Operation& operation, Deadline deadline, HttpUrl* asked,
                            bool* uncertain, int rounds);
  int Rounds() const;
  Try Once(const Operation& operation, Deadline deadline, std::size_t index);
  Result<HttpUrl> MakeUrl(const Operation& operation, std::size_t index);
  Result<std::string> Token();
  bool ReloadToken();

  const Service service_;
  const Options& options_;
  HttpClient* const http_;
  std::atomic<bool> tells_blocks_{true};
  std::atomic<std::size_t> active_{0};  // a guess; wrong ones cost one request
  std::mutex token_mutex_;
  bool token_loaded_ = false;
  std::string token_;
};

/// A pause that doubles from Options::first_pause to longest_pause; ends at the deadline.
void Pause(const Options& options, int attempt, Deadline deadline);

}  // namespace arcflow::hdfs
