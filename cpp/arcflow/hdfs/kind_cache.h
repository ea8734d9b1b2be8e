// SPDX-License-Identifier: Apache-2.0
// KindCache: what a listing said about names, for the questions that follow at once.
#pragma once

#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace arcflow::hdfs {

/// Remembers for a moment that a name exists and whether it is a folder: TensorFlow lists a folder
/// and then asks about each entry. Lengths are not kept, because they are what other processes
/// change, nor is the absence of names. Threads: any. Bounded.
class KindCache {
 public:
  explicit KindCache(std::chrono::milliseconds life) : life_(life) {}

  void Put(const std::string& uri, bool is_directory);
  std::optional<bool> IsDirectory(const std::string& uri);
  /// Forgets the name and everything below it.
  void Forget(const std::string& uri);
  void Clear();

 private:
  struct Entry {
    bool is_directory;
    std::chrono::steady_clock::time_point until;
  };
  const std::chrono::milliseconds life_;
  std::mutex mutex_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace arcflow::hdfs
