// SPDX-License-Identifier: Apache-2.0
// ProcessState: what /proc tells of a process and its threads: running, asleep, stopped, stuck.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace arcflow::control {

/// A look at one process. Cost: two small files of /proc. Threads: pure function.
struct ProcessState {
  char state = 0;              // as in proc(5): R S D T t Z X; 0 = there is no such process
  double cpu_s = 0;            // user and system time of all threads so far
  std::uint64_t io_bytes = 0;  // read and written by system calls so far; 0 when not to be seen

  static ProcessState Of(pid_t pid);
  /// A signal (SIGSTOP, a terminal) or a debugger holds it: it runs no code and no handler.
  bool stopped() const { return state == 'T' || state == 't'; }
};

/// "running", "stopped by a signal", …
std::string StateName(char state);

struct ThreadState {
  pid_t tid = 0;
  std::string name;
  char state = 0;
  std::string waits_in;       // function of the kernel; "" when not to be seen
  std::uint64_t blocked = 0;  // its signal mask, bit n-1 for signal n
};

/// The threads of a process, its first one first; at most `max`.
std::vector<ThreadState> ThreadsOf(pid_t pid, std::size_t max);

/// A line a thread: "thread 71 python: sleeping (futex_wait_queue)".
std::string DescribeThreads(pid_t pid, std::size_t max);

}  // namespace arcflow::control
