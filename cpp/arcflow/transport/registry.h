// SPDX-License-Identifier: Apache-2.0
// Registry: which backends there are, and which of them a context may use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::transport {

/// Every backend, best first: "shm" (same host), "rdma" (UCX over verbs devices only), "tcp",
/// "ucx" (UCX over whatever it finds; never chosen unless named).
const std::vector<std::string>& BackendNames();

/// The backends a context may use, and whether somebody named them.
struct BackendChoice {
  std::vector<std::string> names;
  bool forced =
      false;  // named by the caller or by ARC_TRANSPORTS: one that cannot work is an error
};

/// `wanted` if it is not empty, else the comma-separated `environment` (what ARC_TRANSPORTS holds;
/// null or empty: unset), else the default. InvalidArgument for a name that is none, and for one
/// twice.
Result<BackendChoice> ChooseBackends(const std::vector<std::string>& wanted,
                                     const char* environment);

}  // namespace arcflow::transport
