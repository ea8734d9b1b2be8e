// SPDX-License-Identifier: Apache-2.0
// Identity: what a server's collectives need of the process.
#pragma once

#include <memory>
#include <string>

#include "arcflow/base/status.h"
#include "arcflow/collective/hub.h"
#include "arcflow/collective/lobby.h"
#include "arcflow/transport/depot.h"
#include "plugins/tensorflow/transport/card.h"
#include "plugins/tensorflow/transport/settings.h"

namespace arcflow::tf {

/// One for each server; immutable.
struct Identity {
  Card card;
  std::unique_ptr<collective::Hub> hub;
  std::unique_ptr<collective::Lobby> lobby;         // null: the card says why
  std::shared_ptr<transport::Depot> depot;          // null: tensors travel by gRPC
  collective::Wire wire = collective::Wire::kSame;  // Settings::compression

  /// `address`: "host:port" where the cluster's definition has this task. Errors: no hub; with
  /// another transport than "auto" also what stands in the way of a lobby or a depot that it needs:
  /// "rdma" says which device, permission or library is missing.
  static Result<std::shared_ptr<Identity>> Make(const Settings& settings,
                                                const std::string& address);
};

/// The host of "host:port", without the brackets of IPv6.
std::string HostIn(const std::string& address);

}  // namespace arcflow::tf
