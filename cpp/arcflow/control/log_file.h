// SPDX-License-Identifier: Apache-2.0
// LogFile: writes a node's whole output to a file without ever making the agent wait for the disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::control {

/// A file that is appended to by a thread of its own. What comes while kMaxWaiting bytes wait (a
/// disk or a share that hangs) is left out, and a line says how much.
/// Threads: any. Blocking: only Close, until its bound.
class LogFile {
 public:
  static constexpr std::size_t kMaxWaiting = std::size_t{8} << 20;

  /// Makes the file (mode 0600 before the umask, folders included) or goes on with one that is
  /// there. Errors: those of the system, with the path.
  static Result<std::unique_ptr<LogFile>> Open(const std::string& path);
  /// As Close().
  ~LogFile();
  LogFile(const LogFile&) = delete;
  LogFile& operator=(const LogFile&) = delete;

  void Write(std::string_view bytes);
  /// Writes what waits, for at most a few seconds; a write that hangs is left to the process's end.
  void Close();
  /// Bytes left out so far.
  std::uint64_t lost() const;

 private:
  struct Shared;  // outlives us when a write hangs
  explicit LogFile(std::shared_ptr<Shared> shared);
  std::shared_ptr<Shared> shared_;
};

}  // namespace arcflow::control
