// SPDX-License-Identifier: Apache-2.0
// A signal handler that writes where its thread is.
#include "arcflow/control/stack_dumper.h"

#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace arcflow::control {
namespace {

constexpr int kMaxFrames = 48;
constexpr int kOwnFrames = 2;  // the handler and the kernel's trampoline
constexpr int kNativeOffset = 7;
constexpr int kPythonOffset = 8;

std::atomic<int> g_fd{-1};

/// Async-signal-safe text, in place of snprintf.
struct Line {
  char text[96];
  std::size_t size = 0;
  void Add(const char* more) {
    while (*more != '\0' && size < sizeof text) text[size++] = *more++;
  }
  void Add(long number) {
    char digits[24];
    int n = 0;
    do {
      digits[n++] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    while (n > 0 && size < sizeof text) text[size++] = digits[--n];
  }
  void Write(int fd) const { (void)!::write(fd, text, size); }
};

void OnSignal(int /*signal*/, siginfo_t* /*info*/, void* /*context*/) {
  const int error = errno;
  const int fd = g_fd.load(std::memory_order_relaxed);  // set before the handler was installed
  const long tid = ::syscall(SYS_gettid);
  char name[17] = "";
  ::prctl(PR_GET_NAME, name, 0, 0, 0);
  Line head;
  head.Add("thread ");
  head.Add(tid);
  head.Add(" ");
  head.Add(name);
  head.Add("\n");
  head.Write(fd);
  void* frames[kMaxFrames];
  const int count = ::backtrace(frames, kMaxFrames);
  if (count > kOwnFrames) ::backtrace_symbols_fd(frames + kOwnFrames, count - kOwnFrames, fd);
  Line end;
  end.Add(kStackEnd);
  end.Add(tid);
  end.Add("\n");
  end.Write(fd);
  errno = error;
}

}  // namespace

int NativeStackSignal() { return SIGRTMIN + kNativeOffset; }
int PythonStackSignal() { return SIGRTMIN + kPythonOffset; }

Result<Fd> InstallStackDumper() {
  Fd memfd(::memfd_create("arcflow-stacks", MFD_CLOEXEC));
  if (!memfd.valid()) return Status::FromErrno(errno, "memfd for stacks");
  // Two writers, faulthandler and ours, share the file: each write goes to its end.
  if (::fcntl(memfd.get(), F_SETFL, O_APPEND) != 0) return Status::FromErrno(errno, "stacks");
  void* frames[1];
  ::backtrace(frames, 1);  // loads the unwinder now: not in a handler
  g_fd.store(memfd.get(), std::memory_order_relaxed);
  struct sigaction action {};
  action.sa_sigaction = &OnSignal;
  action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
  ::sigfillset(&action.sa_mask);
  if (::sigaction(NativeStackSignal(), &action, nullptr) != 0) {
    return Status::FromErrno(errno, "handler for stacks");
  }
  return memfd;
}

}  // namespace arcflow::control
