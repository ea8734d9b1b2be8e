// SPDX-License-Identifier: Apache-2.0
// Spilling by sendfile(2) into O_TMPFILE files, which no kind of death can leave behind.
#include "arcflow/feed/spill.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

namespace arcflow::feed {
namespace {

/// Makes writing beyond RLIMIT_FSIZE an error (EFBIG) for this thread: its SIGXFSZ would end the
/// process.
class NoFileSizeSignal {
 public:
  NoFileSizeSignal() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGXFSZ);
    sigset_t pending;
    sigpending(&pending);
    pending_before_ = sigismember(&pending, SIGXFSZ) == 1;
    blocked_ = ::pthread_sigmask(SIG_BLOCK, &set_, &before_) == 0;
  }
  ~NoFileSizeSignal() {
    if (!blocked_) return;
    const timespec at_once{};
    if (!pending_before_) {
      while (::sigtimedwait(&set_, nullptr, &at_once) < 0 && errno == EINTR) {
      }
    }
    ::pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  NoFileSizeSignal(const NoFileSizeSignal&) = delete;
  NoFileSizeSignal& operator=(const NoFileSizeSignal&) = delete;

 private:
  sigset_t set_{};
  sigset_t before_{};
  bool pending_before_ = false;
  bool blocked_ = false;
};

struct SpillFile {
  Fd writable;
  Fd readable;
};

Status DiskError(int error, const std::string& what, const std::string& dir) {
  const std::string context = what + " in " + dir;
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return ResourceExhausted(std::string(Status::FromErrno(error, context).message()));
    default:
      return Status::FromErrno(error, context);
  }
}

/// A file that has a name for the shortest time possible: for file systems without O_TMPFILE, or
/// without /proc.
Result<SpillFile> CreateAndUnlink(const std::string& dir) {
  std::string path = dir + "/arcflow-spill-XXXXXX";
  SpillFile file;
  file.writable = Fd(::mkostemp(path.data(), O_CLOEXEC));
  if (!file.writable.valid()) return DiskError(errno, "cannot create a file", dir);
  file.readable = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const int error = errno;
  ::unlink(path.c_str());
  if (!file.readable.valid()) return DiskError(error, "cannot reopen a file", dir);
  return file;
}

Result<SpillFile> OpenNameless(const std::string& dir) {
  SpillFile file;
  file.writable = Fd(::open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file.writable.valid()) {
    // EISDIR, ENOENT: kernels that do not know the flag.
    if (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT) return CreateAndUnlink(dir);
    return DiskError(errno, "cannot create a file", dir);
  }
  const std::string self = "/proc/self/fd/" + std::to_string(file.writable.get());
  file.readable = Fd(::open(self.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.readable.valid()) return CreateAndUnlink(dir);
  return file;
}

Status CopyAll(const Fd& from, const Fd& to, std::size_t size_bytes, const std::string& dir) {
  constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;
  off_t offset = 0;
  while (static_cast<std::size_t>(offset) < size_bytes) {
    const std::size_t left = size_bytes - static_cast<std::size_t>(offset);
    const ssize_t n = ::sendfile(to.get(), from.get(), &offset, std::min(left, kMostAtOnce));
    if (n < 0) {
      if (errno == EINTR) continue;
      return DiskError(errno, "cannot write a segment of " + std::to_string(size_bytes) + " bytes",
                       dir);
    }
    if (n == 0)
      return DataLoss("segment memory is shorter than the " + std::to_string(size_bytes) +
                      " bytes announced");
  }
  return Status::Ok();
}

Result<Fd> SpillInto(const std::string& dir, const Fd& memory, std::size_t size_bytes) {
  ARC_ASSIGN(SpillFile file, OpenNameless(dir));
  ARC_TRY(CopyAll(memory, file.writable, size_bytes, dir));
  return std::move(file.readable);
}

}  // namespace

Result<Fd> SpillToDisk(const std::vector<std::string>& dirs, const Fd& memory,
                       std::size_t size_bytes) {
  if (dirs.empty()) {
    return FailedPrecondition("no local directory to move rows to (Spark's spark.local.dir)");
  }
  const NoFileSizeSignal quiet;
  Code code = Code::kUnknown;
  std::string problems;
  for (const std::string& dir : dirs) {
    Result<Fd> file = SpillInto(dir, memory, size_bytes);
    if (file.ok()) return file;
    code = file.status().code();
    problems += (problems.empty() ? "" : "; ") + std::string(file.status().message());
  }
  return Status(code, "cannot move rows to local disk: " + problems);
}

}  // namespace arcflow::feed
