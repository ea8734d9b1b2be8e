// SPDX-License-Identifier: Apache-2.0
// HeldPort: a TCP port reserved for the node's TensorFlow server.
#pragma once

#include <cstdint>
#include <string>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::control {

/// A bound socket that never listens. With SO_REUSEPORT, which gRPC sets too, the node's server
/// binds beside it, while nobody else gets the port between choosing it and using it. Lifetime:
/// hold it until the node has ended.
struct HeldPort {
  Fd socket;
  std::uint16_t port = 0;

  /// A free port of `host` (name or numeric address) out of `first` … `last`; any when `first` is
  /// 0. Errors: Unavailable when that is no address of this machine, ResourceExhausted when every
  /// port of the range is taken.
  static Result<HeldPort> Reserve(const std::string& host, std::uint16_t first = 0,
                                  std::uint16_t last = 0);
};

}  // namespace arcflow::control
