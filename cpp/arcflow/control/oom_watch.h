// SPDX-License-Identifier: Apache-2.0
// OomWatch: whether the kernel killed something for want of memory, and whose limit it was.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace arcflow::control {

/// Where the kernel shows its state; tests put a tree of their own there.
struct OomPaths {
  std::string proc = "/proc";
  std::string cgroups = "/sys/fs/cgroup";
};

/// The memory cgroup of a process, version 1 or 2, and what the kernel counts there.
struct MemoryCgroup {
  std::string path;                    // as /proc/<pid>/cgroup names it; "" when there is none
  std::string folder;                  // where it is mounted; "" when this process cannot see it
  bool exact = false;                  // the folder has the whole of that name, no part of it
  bool unified = false;                // version 2
  std::uint64_t limit_bytes = 0;       // the lowest of its own and its ancestors'; 0 = none
  std::optional<std::uint64_t> kills;  // processes of it that the kernel killed so far

  /// `pid` 0 means this process.
  static MemoryCgroup Of(int pid, const OomPaths& paths = {});
};

/// Looks when it is made and when asked: counters of the cgroup, and of the whole host for cgroups
/// that are not surely visible from here (containers). Threads: one. Never blocks but for reading
/// files of the kernel.
class OomWatch {
 public:
  explicit OomWatch(int pid = 0, OomPaths paths = {});

  /// What to tell when a counter has risen since then; "" when none has. Names the limit and the
  /// cgroup.
  std::string Happened() const;
  const MemoryCgroup& cgroup() const { return start_; }

 private:
  int pid_;
  OomPaths paths_;
  MemoryCgroup start_;
  std::optional<std::uint64_t> host_kills_;
};

/// "512 MiB", "1.5 GiB".
std::string HumanBytes(std::uint64_t bytes);

}  // namespace arcflow::control
