// SPDX-License-Identifier: Apache-2.0
// Process: starts a child in a process group of its own, waits for it by pidfd, ends it and all it
// started.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::control {

/// How long a killed process is waited for: one that the kernel holds (a network file system that
/// hangs) ends later, and nobody shall hang with it.
inline constexpr std::chrono::seconds kReapTimeout{30};

/// How a process ended: exactly one of the two.
struct ExitStatus {
  int exit_code = -1;  // -1: it was killed
  int signal = 0;      // 0: it exited
  bool ok() const { return exit_code == 0; }
  /// "exit code 3", "signal SIGKILL".
  std::string ToString() const;
};

/// "SIGKILL"; "signal 77" for one without a name.
std::string SignalName(int signal);

struct SpawnOptions {
  std::string file;               // path, not searched in PATH
  std::vector<std::string> argv;  // argv[0] included
  std::vector<std::string> env;   // "NAME=value", the child's whole environment
  std::string cwd;                // "" = ours
  std::vector<std::pair<int, int>>
      fds;  // {ours, the child's}; everything else that is close-on-exec stays here
};

/// One child process, leader of its own process group, with default signal handling and no signal
/// blocked. Threads: one at a time. Lifetime: the destructor kills the group and reaps the child if
/// nobody did.
class ChildProcess {
 public:
  /// posix_spawn. Errors: NotFound, PermissionDenied, … with the file's name; the child never runs
  /// our code.
  static Result<ChildProcess> Spawn(const SpawnOptions& options);
  ChildProcess() = default;  // none
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  /// Readable as soon as the child has ended.
  int pidfd() const { return pidfd_.get(); }
  /// The end, once it has come; the child is reaped then. Never blocks.
  std::optional<ExitStatus> TryWait();
  /// Waits for the end; std::nullopt when the deadline passed.
  std::optional<ExitStatus> Wait(Deadline deadline);
  /// To every process of the group, also after the child itself has ended. No error when there is
  /// none left.
  void SignalGroup(int signal) const;
  /// Lets the child live on; this object is none afterwards.
  void Forget();
  /// SIGTERM to the group, SIGKILL when the child is still there at `grace`; then SIGKILL to what
  /// is left of the group. Blocks; the child is reaped afterwards.
  ExitStatus Stop(Deadline grace);

 private:
  ChildProcess(pid_t pid, Fd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  void Release();

  pid_t pid_ = 0;
  Fd pidfd_;
  std::optional<ExitStatus> end_;
};

/// A pidfd of any process; NotFound when there is none with that pid.
Result<Fd> OpenPidfd(pid_t pid);

/// Our environment as "NAME=value", without names that start with one of `drop_prefixes`, then with
/// `set` put over it.
std::vector<std::string> EnvironmentWith(
    const std::vector<std::pair<std::string, std::string>>& set,
    const std::vector<std::string>& drop_prefixes);

/// Prefixes of the variables by which Spark hands secrets to its Python workers; nobody below them
/// has a use for these.
const std::vector<std::string>& SparkSecrets();

/// Makes this process the parent of orphans below it, so that KillDescendants finds daemons that a
/// node left behind.
void BecomeSubreaper();
/// Kills and reaps every child of this process (adopted orphans included) but `spare`, until none
/// is left or the deadline passed. For a process with no other children to keep. Returns how many
/// were reaped.
int KillDescendants(pid_t spare, Deadline deadline);

/// Kills every process whose environment, as it was at its start, holds `assignment`
/// ("NAME=value"), until none is left or the deadline passed: for descendants whose ancestors are
/// gone, so that no other trace leads to them. Not this process. Returns how many were killed.
int KillMarked(const std::string& assignment, Deadline deadline);

/// Resident memory of a process in bytes, 0 when it is gone.
std::uint64_t ResidentBytes(pid_t pid);

/// Body of the trampoline between agent and node: dies with its parent, then becomes `argv`.
/// posix_spawn cannot ask for a parent-death signal, so the child asks itself before exec. Returns
/// only on failure, with the exit code to use.
int ExecWithParent(pid_t expected_parent, char* const argv[]);

}  // namespace arcflow::control
