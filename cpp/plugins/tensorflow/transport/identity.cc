// SPDX-License-Identifier: Apache-2.0
// Identity: hub, lobby and card made.
#include "plugins/tensorflow/transport/identity.h"

#include <chrono>
#include <utility>

#include "plugins/tensorflow/transport/stats.h"

namespace arcflow::tf {
namespace {

// Groups are made while TensorFlow starts, when every core is busy.
constexpr std::chrono::seconds kHandshakeTimeout{20};

/// Without one tensors travel by gRPC, which is counted when it happens.
void OpenDepot(transport::ContextOptions options, Identity* identity) {
  if (identity->card.mode == "auto") options.backends = {"shm", "tcp"};
  auto depot = transport::Depot::Open(options);
  if (!depot.ok()) return;
  identity->depot = *std::move(depot);
  identity->card.depot = identity->depot->address();
  WatchDepot(identity->depot);
}

}  // namespace

std::string HostIn(const std::string& address) {
  std::string host = address.substr(0, address.rfind(':'));
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return host;
}

Result<std::shared_ptr<Identity>> Identity::Make(const Settings& settings,
                                                 const std::string& address) {
  auto identity = std::make_shared<Identity>();
  ARC_ASSIGN(identity->hub, collective::Hub::Listen(settings.secret));
  Card& card = identity->card;
  card.version = kCardVersion;
  card.run_id = settings.run_id;
  card.mode = settings.mode;
  card.host_identity = collective::HostIdentity();
  card.hub = identity->hub->address();
  if (settings.mode == "shm") return identity;
  transport::ContextOptions options;
  options.secret = settings.secret;
  options.backends = {"tcp"};
  options.host = HostIn(address);
  options.first_port = settings.first_port;
  options.last_port = settings.last_port;
  options.handshake_timeout = kHandshakeTimeout;
  OpenDepot(options, identity.get());
  auto lobby = collective::Lobby::Open(options);
  if (lobby.ok()) {
    identity->lobby = *std::move(lobby);
    card.lobby = identity->lobby->address();
  } else if (settings.mode == "tcp") {
    return lobby.status().WithContext("transport='tcp'");
  } else {
    card.no_lobby = lobby.status().message();
  }
  return identity;
}

}  // namespace arcflow::tf
