// SPDX-License-Identifier: Apache-2.0
// Reads memory cgroups of both versions. Source: Linux, Documentation/admin-guide/cgroup-v2.rst
// ("memory.events") and cgroup-v1/memory.rst ("memory.oom_control").
#include "arcflow/control/oom_watch.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace arcflow::control {
namespace {

constexpr std::uint64_t kNoLimit = std::uint64_t{1}
                                   << 60;  // version 1 says "none" by a huge number

/// The number after `key` in a file of "key number" lines.
std::optional<std::uint64_t> NumberAfter(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  std::uint64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    if (words >> word >> number && word == key) return number;
  }
  return std::nullopt;
}

/// A limit in bytes; 0 for "max", none, or a file that is not there.
std::uint64_t LimitOf(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t bytes = 0;
  return file >> bytes && bytes < kNoLimit ? bytes : 0;
}

std::string FolderNamed(const std::string& mount, const std::string& path) {
  return mount + (path == "/" ? "" : path);
}

/// The mounted folder of a cgroup. A container without a cgroup namespace reads the host's path but
/// sees its own group at the root of the mount, so leading parts may have to go.
std::string FolderOf(const std::string& mount, const std::string& path, const char* marker) {
  std::error_code error;
  for (std::string rest = path; !rest.empty();) {
    const std::string folder = FolderNamed(mount, rest);
    if (std::filesystem::exists(folder + "/" + marker, error)) return folder;
    const auto next = rest.find('/', 1);
    if (next == std::string::npos) break;
    rest = rest.substr(next);
  }
  return std::filesystem::exists(mount + "/" + marker, error) ? mount : "";
}

std::uint64_t LowestLimit(const std::string& mount, std::string folder, const char* name) {
  std::uint64_t lowest = 0;
  while (folder.size() >= mount.size()) {
    const std::uint64_t limit = LimitOf(folder + "/" + name);
    if (limit > 0) lowest = lowest == 0 ? limit : std::min(lowest, limit);
    const auto slash = folder.rfind('/');
    if (slash == std::string::npos || folder == mount) break;
    folder.resize(slash);
  }
  return lowest;
}

/// The paths of /proc/<pid>/cgroup: "4:memory:/a" is version 1, "0::/a" version 2.
void ReadPaths(const std::string& file_name, std::string* first, std::string* second) {
  std::ifstream file(file_name);
  for (std::string line; std::getline(file, line);) {
    const auto one = line.find(':');
    const auto two = one == std::string::npos ? one : line.find(':', one + 1);
    if (two == std::string::npos) continue;
    const std::string controllers = "," + line.substr(one + 1, two - one - 1) + ",";
    if (controllers.find(",memory,") != std::string::npos) *first = line.substr(two + 1);
    if (line.rfind("0::", 0) == 0) *second = line.substr(two + 1);
  }
}

}  // namespace

std::string HumanBytes(std::uint64_t bytes) {
  const char* const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof text, value == static_cast<int>(value) ? "%.0f %s" : "%.1f %s", value,
                units[unit]);
  return text;
}

MemoryCgroup MemoryCgroup::Of(int pid, const OomPaths& paths) {
  MemoryCgroup group;
  std::string first;
  std::string second;
  ReadPaths(paths.proc + "/" + (pid == 0 ? "self" : std::to_string(pid)) + "/cgroup", &first,
            &second);
  if (!first.empty()) {
    const std::string mount = paths.cgroups + "/memory";
    group.path = first;
    group.folder = FolderOf(mount, first, "memory.oom_control");
    if (group.folder.empty()) return group;
    group.exact = group.folder == FolderNamed(mount, first);
    group.limit_bytes = LowestLimit(mount, group.folder, "memory.limit_in_bytes");
    group.kills = NumberAfter(group.folder + "/memory.oom_control", "oom_kill");
    return group;
  }
  if (second.empty()) return group;
  group.path = second;
  group.unified = true;
  group.folder = FolderOf(paths.cgroups, second, "memory.events");
  if (group.folder.empty()) return group;
  group.exact = group.folder == FolderNamed(paths.cgroups, second);
  group.limit_bytes = LowestLimit(paths.cgroups, group.folder, "memory.max");
  group.kills = NumberAfter(group.folder + "/memory.events", "oom_kill");
  return group;
}

OomWatch::OomWatch(int pid, OomPaths paths)
    : pid_(pid),
      paths_(std::move(paths)),
      start_(MemoryCgroup::Of(pid_, paths_)),
      host_kills_(NumberAfter(paths_.proc + "/vmstat", "oom_kill")) {}

std::string OomWatch::Happened() const {
  // The process may be gone, its cgroup is not: the one it had at the start is looked at again.
  const char* file = start_.unified ? "/memory.events" : "/memory.oom_control";
  const auto now =
      start_.folder.empty() ? std::nullopt : NumberAfter(start_.folder + file, "oom_kill");
  if (now && start_.kills && *now > *start_.kills) {
    const std::string limit = start_.limit_bytes > 0
                                  ? "its memory limit of " + HumanBytes(start_.limit_bytes)
                                  : "its memory limit";
    return "the kernel's out-of-memory killer ended it: cgroup " + start_.path + " reached " +
           limit;
  }
  // A kill for want of the host's memory counts in the victim's cgroup as well.
  if (now && start_.exact) return "";
  const auto host = NumberAfter(paths_.proc + "/vmstat", "oom_kill");
  if (host && host_kills_ && *host > *host_kills_) {
    return "the kernel's out-of-memory killer was at work on this host just then" +
           (start_.limit_bytes > 0
                ? "; the limit of cgroup " + start_.path + " is " + HumanBytes(start_.limit_bytes)
                : std::string());
  }
  return "";
}

}  // namespace arcflow::control
