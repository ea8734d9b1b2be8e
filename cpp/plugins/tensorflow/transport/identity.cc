// SPDX-License-Identifier: Apache-2.0
// Identity: hub, depot, lobby and card made.
#include "plugins/tensorflow/transport/identity.h"

#include <chrono>
#include <utility>
#include <vector>

#include "plugins/tensorflow/transport/stats.h"

namespace arcflow::tf {
namespace {

// Groups are made while TensorFlow starts, when every core is busy.
constexpr std::chrono::seconds kHandshakeTimeout{20};

/// How tensors that are fetched come, best first.
std::vector<std::string> BackendsFor(const Settings& settings) {
  if (settings.mode == "auto") return {"shm", "tcp"};
  if (settings.mode == "rdma") return {settings.rdma_backend};
  return {settings.mode};
}

/// With transport='auto' tensors travel by gRPC without one, which is counted when it happens.
Status OpenDepot(transport::ContextOptions options, const Settings& settings, Identity* identity) {
  options.backends = BackendsFor(settings);
  auto depot = transport::Depot::Open(options);
  if (!depot.ok() && settings.mode == "auto") {  // no address for other hosts, say
    options.backends = {"shm"};
    depot = transport::Depot::Open(options);
  }
  if (depot.ok()) {
    identity->depot = *std::move(depot);
    identity->card.depot = identity->depot->address();
    WatchDepot(identity->depot);
    return Status::Ok();
  }
  if (settings.mode != "auto") return depot.status();
  identity->card.no_depot = depot.status().message();
  CountFallback("tensors of other tasks: " + identity->card.no_depot);
  return Status::Ok();
}

/// Where collectives meet between hosts.
Status OpenLobby(transport::ContextOptions options, const Settings& settings, Identity* identity) {
  options.backends = {settings.mode == "rdma" ? settings.rdma_backend : "tcp"};
  auto lobby = collective::Lobby::Open(options);
  if (lobby.ok()) {
    identity->lobby = *std::move(lobby);
    identity->card.lobby = identity->lobby->address();
    return Status::Ok();
  }
  if (settings.mode != "auto") return lobby.status();
  identity->card.no_lobby = lobby.status().message();
  return Status::Ok();
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
  if (settings.compression == "fp16") identity->wire = collective::Wire::kFloat16;
  if (settings.compression == "bf16") identity->wire = collective::Wire::kBFloat16;
  ARC_ASSIGN(identity->hub, collective::Hub::Listen(settings.secret));
  Card& card = identity->card;
  card.version = kCardVersion;
  card.run_id = settings.run_id;
  card.mode = settings.mode;
  card.host_identity = collective::HostIdentity();
  card.hub = identity->hub->address();
  transport::ContextOptions options;
  options.secret = settings.secret;
  options.host = HostIn(address);
  options.first_port = settings.first_port;
  options.last_port = settings.last_port;
  options.handshake_timeout = kHandshakeTimeout;
  Status opened = OpenDepot(options, settings, identity.get());
  if (opened.ok() && settings.mode != "shm") opened = OpenLobby(options, settings, identity.get());
  if (!opened.ok()) return opened.WithContext("transport='" + settings.mode + "'");
  return identity;
}

}  // namespace arcflow::tf
