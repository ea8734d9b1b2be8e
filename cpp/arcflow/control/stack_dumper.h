// SPDX-License-Identifier: Apache-2.0
// StackDumper: lets a process write its threads' native stacks when another one asks by a signal.
#pragma once

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::control {

/// The line that ends the stack of a thread, before its number.
inline constexpr char kStackEnd[] = "=== end of thread ";

/// Signals by which stacks are asked for: one of each thread, native; one for all threads of the
/// Python interpreter (the node gives it to faulthandler). Real-time signals: nobody else's.
int NativeStackSignal();
int PythonStackSignal();

/// Installs the handler of NativeStackSignal() in this process and returns the memfd that it writes
/// to. A thread that gets the signal appends a head line, its frames ("file(function+offset)
/// [address]") and kStackEnd with its number. The handler allocates nothing and takes no lock of
/// ours; the symbols come from the loaded libraries' own tables. Calls interrupted by it go on
/// (SA_RESTART), but for those that never do (epoll_wait, nanosleep).
/// Errors: of the system. Threads: once in a process, before others are asked to signal it.
Result<Fd> InstallStackDumper();

}  // namespace arcflow::control
