// SPDX-License-Identifier: Apache-2.0
// Reads /proc/<pid>. Source: proc(5).
#include "arcflow/control/process_state.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace arcflow::control {
namespace {

std::string Text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// The number after "key:" in a file of such lines.
std::uint64_t Field(const std::string& text, const std::string& key, int base) {
  const auto at = text.find(key + ":");
  return at == std::string::npos ? 0
                                 : std::strtoull(text.c_str() + at + key.size() + 1, nullptr, base);
}

}  // namespace

ProcessState ProcessState::Of(pid_t pid) {
  ProcessState found;
  const std::string folder = "/proc/" + std::to_string(pid);
  const std::string stat = Text(folder + "/stat");
  const auto close = stat.rfind(')');  // the name in parentheses may hold anything
  if (close == std::string::npos) return found;
  unsigned long user = 0;
  unsigned long system = 0;
  char state = 0;
  if (std::sscanf(stat.c_str() + close + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
                  &state, &user, &system) != 3) {
    return found;
  }
  found.state = state;
  found.cpu_s = static_cast<double>(user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
  const std::string io = Text(folder + "/io");
  found.io_bytes = Field(io, "rchar", 10) + Field(io, "wchar", 10);
  return found;
}

std::string StateName(char state) {
  switch (state) {
    case 'R':
      return "running";
    case 'S':
      return "sleeping";
    case 'D':
      return "waiting in the kernel, for a disk or a network file system";
    case 'T':
      return "stopped by a signal";
    case 't':
      return "stopped by a debugger";
    case 'Z':
      return "ended and not reaped";
    case 0:
      return "gone";
    default:
      return std::string("in state ") + state;
  }
}

std::vector<ThreadState> ThreadsOf(pid_t pid, std::size_t max) {
  std::vector<pid_t> tids;
  std::error_code error;
  const std::string folder = "/proc/" + std::to_string(pid) + "/task";
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    tids.push_back(static_cast<pid_t>(std::atoi(it->path().filename().c_str())));
  }
  std::sort(tids.begin(), tids.end());
  const auto first = std::find(tids.begin(), tids.end(), pid);
  if (first != tids.end()) std::rotate(tids.begin(), first, first + 1);
  if (tids.size() > max) tids.resize(max);
  std::vector<ThreadState> threads;
  for (const pid_t tid : tids) {
    const std::string task = folder + "/" + std::to_string(tid);
    const std::string status = Text(task + "/status");
    ThreadState thread;
    thread.tid = tid;
    const auto name = status.find("Name:\t");
    const auto state = status.find("State:\t");
    if (name == std::string::npos || state == std::string::npos) continue;  // it has just ended
    thread.name = status.substr(name + 6, status.find('\n', name) - name - 6);
    thread.state = status[state + 7];
    thread.blocked = Field(status, "SigBlk", 16);
    thread.waits_in = Text(task + "/wchan");
    if (thread.waits_in == "0") thread.waits_in.clear();
    threads.push_back(std::move(thread));
  }
  return threads;
}

std::string DescribeThreads(pid_t pid, std::size_t max) {
  std::string text;
  for (const ThreadState& thread : ThreadsOf(pid, max)) {
    text += "thread " + std::to_string(thread.tid) + " " + thread.name + ": " +
            StateName(thread.state) +
            (thread.waits_in.empty() ? "" : " (" + thread.waits_in + ")") + "\n";
  }
  return text;
}

}  // namespace arcflow::control
