// SPDX-License-Identifier: Apache-2.0
// Card: what a server tells its peers about itself, so that all can agree how tensors travel.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "plugins/tensorflow/transport/settings.h"

namespace arcflow::tf {

/// A peer without one (another TensorFlow server) speaks gRPC only. It holds nothing secret: who
/// wants more has to prove the run's secret to the hub.
struct Card {
  int version = 0;
  std::string run_id;
  std::string mode;
  std::string host_identity;  // collective::HostIdentity()
  std::string hub;            // collective::Hub::address()
  std::string lobby;          // collective::Lobby::address(); empty when there is none
  std::string no_lobby;       // why not
  std::string depot;          // transport::Depot::address(); empty when there is none
  std::string no_depot;       // why not

  std::string ToJson() const;
  /// std::nullopt for anything that is no card.
  static std::optional<Card> Parse(const std::string& json);
};
inline constexpr int kCardVersion = 2;

/// Cards by task; std::nullopt for a task that has none.
using Cards = std::map<std::string, std::optional<Card>>;

/// How a group's ranks exchange. A function of the cards alone, so all ranks decide alike.
struct Plan {
  enum class Kind { kShared, kHosts, kStock };
  Kind kind = Kind::kStock;
  std::string why;  // kStock: what stands in the way
};
Plan PlanFor(const Cards& cards);

/// Why a task with the card `own` cannot fetch tensors from the one with `other`; nothing when it
/// can.
std::optional<std::string> WhyNotFetched(const std::optional<Card>& other, const Card& own);

/// The host of each task as far as a plan of kHosts goes: tasks with equal numbers share memory.
/// With transport='tcp' or 'rdma' each is a host of its own.
std::map<std::string, int> HostsOf(const Cards& cards);

}  // namespace arcflow::tf
