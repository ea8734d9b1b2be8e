// SPDX-License-Identifier: Apache-2.0
// A map with times.
#include "arcflow/hdfs/kind_cache.h"

namespace arcflow::hdfs {
namespace {
constexpr std::size_t kMaxEntries = 100'000;
}

void KindCache::Put(const std::string& uri, bool is_directory) {
  const auto until = std::chrono::steady_clock::now() + life_;
  const std::lock_guard lock(mutex_);
  if (entries_.size() >= kMaxEntries) entries_.clear();
  entries_[uri] = {is_directory, until};
}

std::optional<bool> KindCache::IsDirectory(const std::string& uri) {
  const std::lock_guard lock(mutex_);
  const auto it = entries_.find(uri);
  if (it == entries_.end()) return std::nullopt;
  if (std::chrono::steady_clock::now() >= it->second.until) {
    entries_.erase(it);
    return std::nullopt;
  }
  return it->second.is_directory;
}

void KindCache::Forget(const std::string& uri) {
  const std::lock_guard lock(mutex_);
  entries_.erase(uri);
  const std::string below = uri.back() == '/' ? uri : uri + "/";
  for (auto it = entries_.lower_bound(below);
       it != entries_.end() && it->first.compare(0, below.size(), below) == 0;) {
    it = entries_.erase(it);
  }
}

void KindCache::Clear() {
  const std::lock_guard lock(mutex_);
  entries_.clear();
}

}  // namespace arcflow::hdfs
