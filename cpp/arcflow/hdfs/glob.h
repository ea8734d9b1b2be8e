// SPDX-License-Identifier: Apache-2.0
// Glob: names that match a pattern, folder by folder.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/answers.h"

namespace arcflow::hdfs {

/// Whether there is a *, ? or [ that is not escaped.
bool HasWildcard(std::string_view pattern);

/// Paths that match, sorted. `*`, `?`, `[a-z]` and `\` as fnmatch(3) has them; a wildcard matches
/// within one name. `list` gives a folder's entries; NotFound from it means no match.
Result<std::vector<std::string>> Glob(
    std::string_view pattern,
    const std::function<Result<std::vector<FileStatus>>(const std::string& folder)>& list);

}  // namespace arcflow::hdfs
