// SPDX-License-Identifier: Apache-2.0
// The tcp backend: several connections to each peer.
#pragma once

#include <memory>

#include "arcflow/transport/backend.h"

namespace arcflow::transport::tcp {

/// Listens on ContextOptions::host. Errors: InvalidArgument for a host that does not resolve or a
/// number of connections out of range, Unavailable when it cannot be bound.
Result<std::unique_ptr<Backend>> Make(std::shared_ptr<Core> core);

}  // namespace arcflow::transport::tcp
