// SPDX-License-Identifier: Apache-2.0
// An agent among uneven ranks: what it tells of rows that do not come.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/control/agent.h"
#include "arcflow/control/chunks.h"
#include "arcflow/control/coordinator_internal.h"
#include "arcflow/net/frame.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

/// Who does not get rows because the other one is gone fails as its consequence.
Failure RowsLost(int from, int own, const Status& why) {
  Failure failure;
  failure.cause = cause::kFeeder;
  failure.type = CodeName(why.code());
  failure.peer_loss =
      from != own && (why.code() == Code::kUnavailable || why.code() == Code::kDeadlineExceeded ||
                      why.code() == Code::kCancelled);
  failure.message = from == own ? "rows cannot be handed between ranks: "
                                : "rows of rank " + std::to_string(from) + " did not come: ";
  failure.message += why.message();
  return failure;
}

}  // namespace

void Agent::StartHandOver() {
  const auto wanted = [](const auto& feed) { return feed.second.balance; };
  if (std::none_of(config_.feeds.begin(), config_.feeds.end(), wanted)) return;
  HandOver::Options options;
  options.run_id = config_.run_id;
  options.channel = ControlChannelOptions(config_.secret, config_.encrypt);
  options.channel.max_raw_bytes = net::kMaxRawBytes;
  options.channel.read_bytes = kChunkReadBytes;
  options.channel.unacknowledged_timeout =
      std::chrono::duration_cast<std::chrono::milliseconds>(Seconds(config_.silence_s));
  options.rank = config_.rank;
  options.size = config_.FedRanks();
  options.host = config_.host;
  options.first_port = config_.first_port;
  options.last_port = config_.last_port;
  options.connect_timeout_s = config_.connect_timeout_s;
  HandOver::Callbacks callbacks;
  callbacks.to_coordinator = [this](const json& message) {
    if (session_) session_->Send(message);
  };
  callbacks.host_of = [this](int rank) {
    const auto found = std::find_if(cluster_.begin(), cluster_.end(),
                                    [&](const Member& m) { return m.rank == rank; });
    return found == cluster_.end() ? std::string() : found->host;
  };
  callbacks.failed = [this](int rank, const Status& why) {
    Fail(RowsLost(rank, config_.rank, why), config_.grace_s);
  };
  hand_ = std::make_unique<HandOver>(*loop_, std::move(options), *service_, std::move(callbacks));
}

}  // namespace arcflow::control
