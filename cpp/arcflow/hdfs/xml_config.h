// SPDX-License-Identifier: Apache-2.0
// Properties: what a cluster's own XML files (core-site.xml, hdfs-site.xml) say.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"

namespace arcflow::hdfs {

/// Hadoop's configuration: names and values of several files, later ones over earlier ones unless
/// a property is marked final. Threads: const calls from any.
/// Source: Hadoop's org.apache.hadoop.conf.Configuration.
class Properties {
 public:
  static constexpr std::size_t kMaxBytes = std::size_t{16} << 20;

  /// Adds the properties of one file; `file` is for messages.
  /// Errors: InvalidArgument with file, line and column for text that is not well-formed or not a
  /// <configuration>; for a DOCTYPE or an xi:include, which are refused; for over kMaxBytes. Then
  /// nothing is added.
  Status Add(std::string_view xml, std::string_view file);
  void Set(std::string name, std::string value);

  /// The value with ${name} and ${env.NAME} replaced, as Hadoop does it; what is not defined stays.
  std::optional<std::string> Get(std::string_view name) const;
  std::string Get(std::string_view name, std::string_view otherwise) const;
  /// "true" or "false", trimmed and without case; anything else is `otherwise`.
  bool GetBool(std::string_view name, bool otherwise) const;
  /// Calls `each(name, value)` for every name that begins with `prefix`.
  template <typename Each>
  void ForEach(std::string_view prefix, Each each) const {
    for (auto it = values_.lower_bound(std::string(prefix));
         it != values_.end() && it->first.substr(0, prefix.size()) == prefix; ++it) {
      each(it->first, Expand(it->second.text));
    }
  }
  std::size_t size() const { return values_.size(); }

 private:
  struct Value {
    std::string text;
    bool is_final = false;
  };
  std::string Expand(std::string text) const;
  std::optional<std::string> Variable(std::string_view name) const;

  std::map<std::string, Value, std::less<>> values_;
};

/// Without blanks at both ends.
std::string Trimmed(std::string_view text);

}  // namespace arcflow::hdfs
