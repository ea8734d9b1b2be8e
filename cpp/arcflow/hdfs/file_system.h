// SPDX-License-Identifier: Apache-2.0
// FileSystem: the files of every HDFS cluster that this process can name.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/cluster_config.h"
#include "arcflow/hdfs/file_reader.h"
#include "arcflow/hdfs/file_writer.h"
#include "arcflow/hdfs/options.h"

namespace arcflow::hdfs {

/// Takes whole names (hdfs://, webhdfs://, swebhdfs://, viewfs://). Every error names the path.
/// Threads: any. Readers and writers must not outlive it.
class FileSystem {
 public:
  /// Errors: Unavailable when there is no libcurl.
  static Result<std::unique_ptr<FileSystem>> Make(ClusterConfig config, Options options);
  /// The one of this process, made at the first call from the environment and never deleted; a
  /// child after fork gets its own, and so does another folder of configuration (a program that
  /// sets HADOOP_CONF_DIR late). Errors: as Make and ClusterConfig::Load, and tried
  /// again at the next call.
  static Result<FileSystem*> Default();

  ~FileSystem();

  Result<FileStatus> Stat(std::string_view uri);
  /// Entries of a folder. Errors: NotFound; FailedPrecondition for a file.
  Result<std::vector<FileStatus>> List(std::string_view uri);
  /// As Stat, but may know it from a listing of a moment ago.
  Result<bool> IsDirectory(std::string_view uri);
  /// Whole names that match the pattern, sorted.
  Result<std::vector<std::string>> Glob(std::string_view pattern);

  /// Makes the folder and those above it; nothing to do is no error.
  Status MakeDirectories(std::string_view uri);
  /// Errors: NotFound; FailedPrecondition for a folder with entries unless `recursive`.
  Status Delete(std::string_view uri, bool recursive);
  /// Errors: NotFound; AlreadyExists unless `overwrite`; FailedPrecondition between name spaces.
  Status Rename(std::string_view from, std::string_view to, bool overwrite);

  /// Errors: NotFound; FailedPrecondition for a folder.
  Result<std::unique_ptr<FileReader>> Open(std::string_view uri);
  Result<std::unique_ptr<FileWriter>> Create(std::string_view uri);
  /// A file that does not exist is created.
  Result<std::unique_ptr<FileWriter>> OpenForAppend(std::string_view uri);

  /// Whole small files. Errors: ResourceExhausted over `max_bytes`.
  Result<std::string> ReadAll(std::string_view uri, std::size_t max_bytes);
  /// The file has its name only when it is whole.
  Status WriteAll(std::string_view uri, std::string_view bytes);

  /// A new delegation token in URL form, for processes that cannot prove who they are themselves.
  Result<std::string> NewDelegationToken(std::string_view uri, std::string_view renewer);

  void ForgetListings();

 private:
  struct Impl;
  explicit FileSystem(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::hdfs
