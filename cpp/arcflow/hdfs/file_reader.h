// SPDX-License-Identifier: Apache-2.0
// FileReader: reads a file at any offset; what is read in order is fetched ahead.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/options.h"
#include "arcflow/hdfs/range_fetcher.h"
#include "arcflow/hdfs/work_pool.h"

namespace arcflow::hdfs {

/// An open file. Reads that follow one another are served from ranges that worker threads fetch
/// ahead, several at once; single reads elsewhere fetch exactly what is asked for, large ones in
/// parallel pieces. Threads: Read from any; reads in order by several threads share one window.
class FileReader {
 public:
  /// Learns the file's present length.
  using Measure = std::function<Result<std::uint64_t>()>;

  /// `pool`, `options` and `readahead` (bytes fetched ahead by all readers) must live longer.
  FileReader(std::unique_ptr<RangeFetcher> fetcher, std::uint64_t size, Measure measure,
             WorkPool* pool, const Options& options, std::atomic<std::size_t>* readahead);
  /// Ends fetching ahead; transfers that are under way break off.
  ~FileReader();

  /// Bytes put into `out` from `offset` on: fewer than asked for only at the end of the file. A
  /// file that has grown since it was opened is read to its new end.
  /// Errors: as RangeFetcher::Fetch.
  Result<std::size_t> Read(std::uint64_t offset, std::span<char> out);

  /// Length as last seen, in bytes.
  std::uint64_t size() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;  // shared with tasks that fetch ahead
};

}  // namespace arcflow::hdfs
