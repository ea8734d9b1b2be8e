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

  std::string ToJson() const;
  /// std::nullopt for anything that is no card.
  static std::optional<Card> Parse(const std::string& json);
};
inline constexpr int kCardVersion = 1;

/// A card of this process.
Card MakeCard(const Settings& settings, const std::string& hub);

/// Whether the tasks (name → card, if it has one) may run their collectives in shared memory. A
/// function of the cards alone, so all ranks decide alike. Returns the reason when not.
std::optional<std::string> WhyNotShared(const std::map<std::string, std::optional<Card>>& cards);

}  // namespace arcflow::tf
