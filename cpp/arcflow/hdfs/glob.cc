// SPDX-License-Identifier: Apache-2.0
// Walks the components of a pattern; only those with a wildcard cost a listing.
#include "arcflow/hdfs/glob.h"

#include <fnmatch.h>

#include <algorithm>

#include "arcflow/hdfs/uri.h"

namespace arcflow::hdfs {
namespace {

std::string Join(const std::string& folder, const std::string& name) {
  return (folder == "/" ? "" : folder) + "/" + name;
}

std::string WithoutEscapes(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) ++i;
    out.push_back(text[i]);
  }
  return out;
}

}  // namespace

bool HasWildcard(std::string_view pattern) {
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '\\') {
      ++i;
    } else if (pattern[i] == '*' || pattern[i] == '?' || pattern[i] == '[') {
      return true;
    }
  }
  return false;
}

Result<std::vector<std::string>> Glob(
    std::string_view pattern,
    const std::function<Result<std::vector<FileStatus>>(const std::string& folder)>& list) {
  struct Found {
    std::string path;
    bool certain = false;   // it was in a listing
    bool is_folder = true;  // of certain ones
  };
  const std::string clean = CleanPath(pattern);
  std::vector<Found> found{{"/", false, true}};
  for (std::size_t at = 1; at < clean.size();) {
    const std::size_t end = std::min(clean.find('/', at), clean.size());
    const std::string part = clean.substr(at, end - at);
    const bool last = end == clean.size();
    std::vector<Found> next;
    for (const Found& one : found) {
      if (one.certain && !one.is_folder) continue;
      if (!HasWildcard(part) && !last) {
        next.push_back({Join(one.path, WithoutEscapes(part)), false, true});
        continue;
      }
      auto entries = list(one.path);
      if (!entries.ok()) {
        const Code code = entries.status().code();
        if (code == Code::kNotFound || code == Code::kFailedPrecondition) continue;
        return entries.status();
      }
      for (const FileStatus& entry : *entries) {
        if (entry.name.empty() || fnmatch(part.c_str(), entry.name.c_str(), 0) != 0) continue;
        next.push_back({Join(one.path, entry.name), true, entry.is_directory});
      }
    }
    found = std::move(next);
    at = end + 1;
  }
  std::vector<std::string> out;
  out.reserve(found.size());
  for (Found& one : found) out.push_back(std::move(one.path));
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace arcflow::hdfs
