// SPDX-License-Identifier: Apache-2.0
// Backend: one way to reach peers. Internal to this layer; docs/design/transport.md.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/transport/core.h"
#include "arcflow/transport/gate.h"

namespace arcflow::transport {

/// Listens and connects. Made by the one function that each backend's header has, which returns
/// Unavailable or FailedPrecondition, with what is missing, when the machine cannot do it.
/// Threads: all but Connect never block; Connect is called by one thread for each peer.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  /// What a peer's backend of this name needs to reach us.
  virtual std::string where() const = 0;
  /// A started session to `node`, already adopted (Core::adopt).
  virtual Result<std::shared_ptr<Session>> Connect(std::string_view where, const NodeId& node,
                                                   Deadline deadline) = 0;
  /// Gets whoever is inside a closed gate out, if that is a copy which no thread of ours makes.
  virtual void Drain(Gate& gate) { (void)gate; }
  virtual void Tick() {}
  /// Stops accepting. Sessions have been closed before; threads of the core still run.
  virtual void Stop() = 0;
};

using BackendFactory = Result<std::unique_ptr<Backend>> (*)(std::shared_ptr<Core>);

/// The factory of a name in BackendNames().
BackendFactory FindBackend(std::string_view name);

}  // namespace arcflow::transport
