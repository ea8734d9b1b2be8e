// SPDX-License-Identifier: Apache-2.0
// A bounded queue of bytes and the thread that writes them.
#include "arcflow/control/log_file.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "arcflow/base/log.h"

namespace arcflow::control {
namespace {

constexpr std::chrono::seconds kRestTimeout{3};
constexpr mode_t kMode = 0600;

/// False when the file cannot be written any more.
bool WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

}  // namespace

struct LogFile::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::string path;
  Fd file;
  std::string waiting;
  std::uint64_t lost = 0;
  std::uint64_t lost_told = 0;
  bool closing = false;
  bool ended = false;

  void Run();
};

void LogFile::Shared::Run() {
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return closing || !waiting.empty(); });
    if (waiting.empty()) break;
    std::string now = std::exchange(waiting, {});
    if (lost > lost_told) {
      now += "\n(arcflow: " + std::to_string(lost - lost_told) +
             " bytes are missing here: the disk was too slow)\n";
      lost_told = lost;
    }
    lock.unlock();
    const bool written = WriteAll(file.get(), now);
    const int error = errno;
    lock.lock();
    if (written) continue;
    Log(LogLevel::kWarning, "cannot write " + path + ": " + std::generic_category().message(error));
    lost += now.size();
    break;
  }
  ended = true;
  file.reset();
  changed.notify_all();
}

LogFile::LogFile(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

Result<std::unique_ptr<LogFile>> LogFile::Open(const std::string& path) {
  std::error_code error;
  const auto folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) return Status::FromErrno(error.value(), "log_dir: " + folder.string());
  auto shared = std::make_shared<Shared>();
  shared->path = path;
  shared->file = Fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, kMode));
  if (!shared->file.valid()) return Status::FromErrno(errno, "log_dir: " + path);
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread([shared] { shared->Run(); }).detach();
  } catch (const std::system_error& e) {
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return ResourceExhausted(std::string("thread of a log file: ") + e.what());
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return std::unique_ptr<LogFile>(new LogFile(std::move(shared)));
}

LogFile::~LogFile() { Close(); }

void LogFile::Write(std::string_view bytes) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->ended || shared_->closing || shared_->waiting.size() + bytes.size() > kMaxWaiting) {
    shared_->lost += bytes.size();
    return;
  }
  shared_->waiting += bytes;
  shared_->changed.notify_all();
}

void LogFile::Close() {
  std::unique_lock lock(shared_->mutex);
  shared_->closing = true;
  shared_->changed.notify_all();
  shared_->changed.wait_for(lock, kRestTimeout, [this] { return shared_->ended; });
}

std::uint64_t LogFile::lost() const {
  const std::lock_guard lock(shared_->mutex);
  return shared_->lost;
}

}  // namespace arcflow::control
