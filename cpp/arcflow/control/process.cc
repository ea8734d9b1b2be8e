// SPDX-License-Identifier: Apache-2.0
// posix_spawn, pidfds, wait statuses and the search for processes left behind.
#include "arcflow/control/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

extern char** environ;

namespace arcflow::control {
namespace {

constexpr int kFirstSpareFd = 64;  // above every target descriptor
constexpr std::chrono::milliseconds kReapPause{2};

ExitStatus Decode(const siginfo_t& info) {
  ExitStatus end;
  if (info.si_code == CLD_EXITED) {
    end.exit_code = info.si_status;
  } else {
    end.signal = info.si_status;
  }
  return end;
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& s : strings) pointers.push_back(const_cast<char*>(s.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

/// posix_spawn's two option objects, freed together.
struct SpawnSetup {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  std::vector<Fd>
      spare;  // copies out of the way, so that no dup2 overwrites a source that is still needed

  SpawnSetup() {
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
  }
  SpawnSetup(const SpawnSetup&) = delete;
  SpawnSetup& operator=(const SpawnSetup&) = delete;
  ~SpawnSetup() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }

  Status Prepare(const SpawnOptions& options) {
    for (const auto& [ours, target] : options.fds) {
      Fd copy(::fcntl(ours, F_DUPFD_CLOEXEC, kFirstSpareFd));
      if (!copy.valid()) return Status::FromErrno(errno, "cannot hand a descriptor to a child");
      posix_spawn_file_actions_adddup2(&actions, copy.get(), target);
      spare.push_back(std::move(copy));
    }
    if (!options.cwd.empty()) posix_spawn_file_actions_addchdir_np(&actions, options.cwd.c_str());
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(
        &attributes,
        static_cast<short>(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
    return Status::Ok();
  }
};

/// Parent of `pid` as /proc says; 0 when it is gone.
pid_t ParentOf(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string stat;
  std::getline(file, stat);
  const auto close = stat.rfind(')');  // the name in parentheses may hold anything
  if (close == std::string::npos) return 0;
  char state = 0;
  int parent = 0;
  return std::sscanf(stat.c_str() + close + 1, " %c %d", &state, &parent) == 2 ? parent : 0;
}

std::vector<pid_t> AllProcesses() {
  std::vector<pid_t> pids;
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc", error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    pids.push_back(static_cast<pid_t>(std::strtol(name.c_str(), nullptr, 10)));
  }
  return pids;
}

std::vector<pid_t> ChildrenOfSelf() {
  std::vector<pid_t> children;
  for (const pid_t pid : AllProcesses()) {
    if (ParentOf(pid) == ::getpid()) children.push_back(pid);
  }
  return children;
}

/// Whether `assignment` is among the variables; another user's process, or one that has just ended,
/// shows none.
bool HasVariable(pid_t pid, const std::string& assignment) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/environ");
  for (std::string variable; std::getline(file, variable, '\0');) {
    if (variable == assignment) return true;
  }
  return false;
}

bool StartsWithAny(std::string_view text, const std::vector<std::string>& prefixes) {
  for (const std::string& prefix : prefixes) {
    if (text.substr(0, prefix.size()) == prefix) return true;
  }
  return false;
}

}  // namespace

std::string SignalName(int signal) {
  const char* name = ::sigabbrev_np(signal);
  return name != nullptr ? std::string("SIG") + name : "signal " + std::to_string(signal);
}

std::string ExitStatus::ToString() const {
  return signal != 0 ? "signal " + SignalName(signal) : "exit code " + std::to_string(exit_code);
}

Result<Fd> OpenPidfd(pid_t pid) {
  Fd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));  // close-on-exec by itself
  if (fd.valid()) return fd;
  if (errno == ESRCH) return NotFound("no process " + std::to_string(pid));
  return Status::FromErrno(errno, "pidfd_open of process " + std::to_string(pid));
}

Result<ChildProcess> ChildProcess::Spawn(const SpawnOptions& options) {
  if (!options.cwd.empty() && ::access(options.cwd.c_str(), X_OK) != 0) {
    return Status::FromErrno(errno, "working directory " + options.cwd);
  }
  SpawnSetup setup;
  ARC_TRY(setup.Prepare(options));
  std::vector<char*> argv = Pointers(options.argv);
  std::vector<char*> env = Pointers(options.env);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, options.file.c_str(), &setup.actions, &setup.attributes,
                                  argv.data(), env.data());
  if (error != 0) return Status::FromErrno(error, "cannot start " + options.file);
  auto pidfd = OpenPidfd(pid);
  if (!pidfd.ok()) {
    ::kill(-pid, SIGKILL);
    while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return pidfd.status();
  }
  return ChildProcess(pid, std::move(*pidfd));
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)),
      pidfd_(std::move(other.pidfd_)),
      end_(std::exchange(other.end_, {})) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    Release();
    pid_ = std::exchange(other.pid_, 0);
    pidfd_ = std::move(other.pidfd_);
    end_ = std::exchange(other.end_, {});
  }
  return *this;
}

ChildProcess::~ChildProcess() { Release(); }

void ChildProcess::Release() {
  if (pid_ == 0) return;
  if (!end_) {
    SignalGroup(SIGKILL);
    Wait(Deadline::After(kReapTimeout));
  }
  pid_ = 0;
}

void ChildProcess::Forget() {
  pid_ = 0;
  pidfd_.reset();
}

std::optional<ExitStatus> ChildProcess::TryWait() {
  if (end_ || pid_ == 0) return end_;
  siginfo_t info{};
  int result = 0;
  do {
    result = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG);
  } while (result < 0 && errno == EINTR);
  if (result == 0 && info.si_pid == pid_) {
    end_ = Decode(info);
  } else if (result < 0) {
    end_ = ExitStatus{255, 0};  // somebody else reaped it (SIGCHLD ignored): gone, how is unknown
  }
  return end_;
}

std::optional<ExitStatus> ChildProcess::Wait(Deadline deadline) {
  for (;;) {
    if (auto end = TryWait()) return end;
    if (pid_ == 0 || deadline.expired()) return std::nullopt;
    pollfd entry{pidfd_.get(), POLLIN, 0};
    const bool dead = ::poll(&entry, 1, deadline.poll_ms()) == 1;
    if (dead && !TryWait())
      ::poll(nullptr, 0, static_cast<int>(kReapPause.count()));  // traced still
  }
}

void ChildProcess::SignalGroup(int signal) const {
  if (pid_ > 0) ::kill(-pid_, signal);
}

ExitStatus ChildProcess::Stop(Deadline grace) {
  if (!TryWait()) SignalGroup(SIGTERM);
  Wait(grace);
  SignalGroup(SIGKILL);
  return Wait(Deadline::After(kReapTimeout)).value_or(ExitStatus{255, 0});
}

std::vector<std::string> EnvironmentWith(
    const std::vector<std::pair<std::string, std::string>>& set,
    const std::vector<std::string>& drop_prefixes) {
  std::vector<std::string> result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::string_view name = text.substr(0, text.find('='));
    bool replaced = StartsWithAny(text, drop_prefixes);
    for (const auto& [key, value] : set) replaced = replaced || key == name;
    if (!replaced) result.emplace_back(text);
  }
  for (const auto& [key, value] : set) result.push_back(key + "=" + value);
  return result;
}

const std::vector<std::string>& SparkSecrets() {
  static const auto* const prefixes = new std::vector<std::string>{
      "PYTHON_WORKER_FACTORY_", "_SPARK_AUTH_SECRET",       "_SPARK_SSL_",
      "PYSPARK_GATEWAY_SECRET", "PYSPARK_DRIVER_CALLBACK_", "SPARK_CONNECT_AUTHENTICATE_TOKEN"};
  return *prefixes;
}

void BecomeSubreaper() { ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); }

int KillDescendants(pid_t spare, Deadline deadline) {
  int reaped = 0;
  for (;;) {
    bool left = false;
    for (const pid_t child : ChildrenOfSelf()) {
      if (child == spare) continue;
      left = true;
      ::kill(child, SIGKILL);
      if (::waitpid(child, nullptr, WNOHANG) == child) ++reaped;
    }
    if (!left || deadline.expired()) return reaped;
    ::poll(nullptr, 0, static_cast<int>(kReapPause.count()));
  }
}

int KillMarked(const std::string& assignment, Deadline deadline) {
  int killed = 0;
  for (;;) {
    bool left = false;
    for (const pid_t pid : AllProcesses()) {
      if (pid == ::getpid()) continue;
      const auto pidfd =
          OpenPidfd(pid);  // before the look, so that what is killed is what was looked at
      if (!pidfd.ok() || !HasVariable(pid, assignment)) continue;
      left = true;
      if (::syscall(SYS_pidfd_send_signal, pidfd->get(), SIGKILL, nullptr, 0) == 0) ++killed;
    }
    if (!left || deadline.expired()) return killed;
    ::poll(nullptr, 0, static_cast<int>(kReapPause.count()));
  }
}

std::uint64_t ResidentBytes(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/statm");
  std::uint64_t size = 0;
  std::uint64_t resident = 0;
  if (!(file >> size >> resident)) return 0;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

int ExecWithParent(pid_t expected_parent, char* const argv[]) {
  constexpr int kGone = 125;
  constexpr int kNoExec = 127;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
  if (::getppid() != expected_parent) return kGone;  // it died before the signal was armed
  ::execvp(argv[0], argv);
  const int error = errno;
  const std::string text =
      std::string("cannot start ") + argv[0] + ": " + std::strerror(error) + "\n";
  (void)!::write(STDERR_FILENO, text.data(), text.size());
  return kNoExec;
}

}  // namespace arcflow::control
