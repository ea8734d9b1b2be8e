// SPDX-License-Identifier: Apache-2.0
// The shm backend: peers on the same host.
#pragma once

#include <memory>

#include "arcflow/transport/backend.h"

namespace arcflow::transport::shm {

/// Listens on an abstract Unix socket, which leaves nothing behind. Unavailable when the system has
/// none.
Result<std::unique_ptr<Backend>> Make(std::shared_ptr<Core> core);

}  // namespace arcflow::transport::shm
