// SPDX-License-Identifier: Apache-2.0
// A whole process that stands still, for tests of who is blamed when it goes on.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace arcflow::testing_support {

/// Stops this whole process for a time, as SIGSTOP, a debugger or a paused machine does.
inline void StandStill(unsigned seconds) {
  const pid_t self = ::getpid();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::kill(self, SIGSTOP);
    ::sleep(seconds);
    ::kill(self, SIGCONT);
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
}

}  // namespace arcflow::testing_support
