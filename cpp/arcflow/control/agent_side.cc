// SPDX-License-Identifier: Apache-2.0
// An agent whose node outlives the Spark task that started it: letting go of the feeder, and the
// result by way of the coordinator.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/base/mapping.h"
#include "arcflow/control/agent.h"
#include "arcflow/control/remote_link.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;

}  // namespace

Status Agent::StartSide() {
  SideServer::Options options;
  options.run_id = config_.run_id;
  options.secret = config_.secret;
  options.jvm_pid = config_.jvm_pid;
  options.rank = config_.rank;
  options.feed_memory_bytes = config_.feed_memory_bytes;
  SideServer::Callbacks callbacks;
  callbacks.to_coordinator = [this](const json& message) {
    if (session_) session_->Send(message);
  };
  callbacks.opened = [this](const std::string& name, const feed::FeedOptions& feed) {
    config_.feeds[name] = feed;  // beats tell its rows from now on
    ScheduleBeat(/*now=*/true);
  };
  ARC_ASSIGN(side_,
             SideServer::Listen(*loop_, std::move(options), *service_, std::move(callbacks)));
  RemoteServer::Options remote;
  remote.channel = RemoteChannelOptions(config_.secret, config_.encrypt);
  remote.host = config_.host;
  remote.first_port = config_.first_port;
  remote.last_port = config_.last_port;
  remote.look_ahead_bytes = config_.feed_memory_bytes / 4;
  ARC_ASSIGN(remote_, RemoteServer::Listen(*loop_, std::move(remote), *side_));
  return Status::Ok();
}

/// From here on the executor's JVM, the coordinator and the node are what this agent lives for.
void Agent::Detach() {
  SendToFeeder({{"op", "detached"}}, {});
  detached_ = true;
  feeder_pid_ = 0;
  for (Watched& process : watched_) {
    if (process.pid > 0 && process.pid != static_cast<pid_t>(config_.jvm_pid) &&
        process.pid != node_->pid()) {
      process.pid = 0;
    }
  }
  Mark("detached");
}

/// False: it cannot be told, which is this node's failure.
bool Agent::TellResult() {
  auto bytes = ReadAllBytes(result_, kMaxToldResultBytes);
  if (!bytes.ok()) {
    Failure failure;
    failure.cause = cause::kException;
    failure.type = "ResourceExhaustedError";
    failure.message = "what the function returned is over " +
                      std::to_string(kMaxToldResultBytes >> 20) +
                      " MiB, and the nodes of Cluster.start() send it through the driver's "
                      "coordinator: write it to a file, and return its path";
    Fail(std::move(failure), kAtOnce_s);
    return false;
  }
  std::size_t at = 0;
  do {
    const std::size_t n = std::min(kPieceBytes, bytes->size() - at);
    session_->Send({{"op", "result"},
                    {"data", Base64Encode(std::string_view(*bytes).substr(at, n))},
                    {"last", at + n == bytes->size()}});
    at += n;
  } while (at < bytes->size());
  return true;
}

}  // namespace arcflow::control
