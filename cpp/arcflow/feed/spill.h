// SPDX-License-Identifier: Apache-2.0
// Spilling: copies a closed segment from memory into a nameless file on local disk.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::feed {

/// Copies the first `size_bytes` of `memory` (a memfd) into a new file without a name in the first
/// of `dirs` that takes it, and returns a read-only descriptor; the file is gone when the last
/// descriptor and mapping of it are. Directories are tried in order, O_TMPFILE first, else create
/// and unlink. `dirs` whose file system is memory itself are taken like any other. Errors:
/// FailedPrecondition without any directory; else the last directory's error, with what each one
/// said: path and reason (ResourceExhausted when a disk is full or a limit reached). Nothing is
/// left on disk after an error. Blocking: disk writes. Threads: any.
Result<Fd> SpillToDisk(const std::vector<std::string>& dirs, const Fd& memory,
                       std::size_t size_bytes);

}  // namespace arcflow::feed
