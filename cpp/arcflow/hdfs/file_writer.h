// SPDX-License-Identifier: Apache-2.0
// FileWriter: writes a file that appears under its name only when it is whole, or when flushed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/http.h"
#include "arcflow/hdfs/name_node.h"
#include "arcflow/hdfs/options.h"
#include "arcflow/hdfs/upload.h"

namespace arcflow::hdfs {

/// A file that is written. Bytes are collected; up to Options::write_buffer_bytes go out in one
/// request when the file is flushed or closed, more are streamed while they come.
///
/// A new file is written beside its name, as `.<name>.arcflow-<random>.tmp`, and renamed over it by
/// Close; the first Flush asks for the bytes to be seen and renames then. What is appended to an
/// existing file goes to that file.
///
/// Errors stay: after one, every call but Discard returns it, and a file that has not its name yet
/// is deleted. Threads: one at a time.
class FileWriter {
 public:
  enum class Mode : std::uint8_t { kReplace, kAppend };

  /// `size` is the length of the file that is appended to. `name_node`, `http` and `options` must
  /// live longer.
  FileWriter(std::string path, Mode mode, std::uint64_t size, NameNode* name_node, HttpClient* http,
             const Options& options);
  /// As Close, with the error lost; a program that has not closed a file may still want it.
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  /// Errors, with path and offset: ResourceExhausted (quota, no room), PermissionDenied, NotFound
  /// (the file or folder vanished), DataLoss, Unavailable.
  Status Append(std::string_view bytes);
  /// What was appended is in HDFS and seen by readers when this returns.
  Status Flush();
  /// Flush, and the file has its name. Again: the same result, nothing else.
  Status Close();
  /// Ends without a file: what was not flushed is gone.
  void Discard();

  /// Bytes of the file, those included that have not been sent.
  std::uint64_t position() const { return sent_ + buffer_.size(); }

 private:
  Status Send();
  Status SendBuffer();
  Status StartStream();
  Status EndStream();
  Status Publish();
  Operation NextOperation() const;
  Result<HttpUrl> LocateBut(const Operation& operation, std::string* excluded);
  Result<std::uint64_t> LengthThere();
  Status Fail(Status status);

  const std::string path_;    // its name
  std::string written_path_;  // where the bytes go: beside it, or path_
  NameNode* const name_node_;
  HttpClient* const http_;
  const Options& options_;
  bool exists_;         // written_path_ has been created
  std::uint64_t sent_;  // bytes in HDFS or in the stream
  std::string buffer_;  // not sent
  std::unique_ptr<Upload> stream_;
  bool closed_ = false;
  Status failure_;
};

/// Renames, over what stands there if `overwrite`. A broken connection does not make it fail when
/// the rename was done. Errors: NotFound, AlreadyExists, FailedPrecondition, as NameNode::Call.
Status RenameFile(NameNode* name_node, const std::string& from, const std::string& to,
                  bool overwrite);

}  // namespace arcflow::hdfs
