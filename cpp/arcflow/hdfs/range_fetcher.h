// SPDX-License-Identifier: Apache-2.0
// RangeFetcher: bytes of one file from its DataNodes, whatever happens to one of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/block_client.h"
#include "arcflow/hdfs/http.h"
#include "arcflow/hdfs/name_node.h"
#include "arcflow/hdfs/options.h"

namespace arcflow::hdfs {

/// Reads ranges of one file: by `blocks`, if given, straight from a DataNode where there is such a
/// road; else, and from where that broke off, by WebHDFS, which has the last word about errors. The
/// DataNode of each block is asked for once and remembered; after an error another one is asked
/// for, and the transfer goes on where it broke off.
/// Threads: Fetch from any number at once. The pointers must live longer.
class RangeFetcher {
 public:
  RangeFetcher(std::string path, std::uint64_t block_bytes, NameNode* name_node, HttpClient* http,
               const Options& options, BlockClient* blocks = nullptr)
      : path_(std::move(path)),
        block_bytes_(block_bytes == 0 ? std::uint64_t{1} << 62 : block_bytes),
        name_node_(name_node),
        http_(http),
        options_(options),
        blocks_(blocks) {}

  /// Fills `out` with the bytes from `offset` on; the caller knows that the file has them.
  /// Errors, with path and offset: DataLoss when a server goes on giving fewer or other bytes than
  /// asked for; NotFound when the file is gone; Cancelled after Cancel; else as HttpClient.
  Status Fetch(std::uint64_t offset, std::span<char> out);

  /// Ends transfers that are under way, and those to come.
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  const std::string& path() const { return path_; }

 private:
  struct Address {
    HttpUrl url;
    bool remembered = false;
  };
  Status FetchPiece(std::uint64_t offset, std::span<char> out);
  Status FetchOnce(const HttpUrl& data_node, std::uint64_t offset, std::span<char> out,
                   std::size_t* done);
  bool FetchDirect(std::uint64_t offset, std::span<char> out, std::size_t* done);
  Status FetchFrom(const LocatedBlock& block, std::uint64_t offset, std::span<char> out,
                   std::size_t* done);
  std::shared_ptr<const LocatedBlock> BlockAt(std::uint64_t offset, bool* remembered);
  void ForgetBlock(std::uint64_t offset);
  Result<Address> Find(std::uint64_t block, std::uint64_t offset,
                       const std::set<std::string>& excluded);
  void Forget(std::uint64_t block, const HttpUrl& bad);

  const std::string path_;
  const std::uint64_t block_bytes_;
  NameNode* const name_node_;
  HttpClient* const http_;
  const Options& options_;
  BlockClient* const blocks_;
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::map<std::uint64_t, HttpUrl> addresses_;  // by number of the block
  // By number of the block; null for one that has no direct road.
  std::map<std::uint64_t, std::shared_ptr<const LocatedBlock>> located_;
};

}  // namespace arcflow::hdfs
