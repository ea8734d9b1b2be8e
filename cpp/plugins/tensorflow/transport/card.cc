// SPDX-License-Identifier: Apache-2.0
// Cards: written, read, compared.
#include "plugins/tensorflow/transport/card.h"

#include <nlohmann/json.hpp>

#include "arcflow/collective/hub.h"

namespace arcflow::tf {

std::string Card::ToJson() const {
  const nlohmann::json json = {{"arcflow", version},
                               {"run_id", run_id},
                               {"mode", mode},
                               {"host", host_identity},
                               {"hub", hub}};
  return json.dump();
}

std::optional<Card> Card::Parse(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return std::nullopt;
  try {
    Card card;
    card.version = json.at("arcflow").get<int>();
    card.run_id = json.at("run_id").get<std::string>();
    card.mode = json.at("mode").get<std::string>();
    card.host_identity = json.at("host").get<std::string>();
    card.hub = json.at("hub").get<std::string>();
    return card;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

Card MakeCard(const Settings& settings, const std::string& hub) {
  return {kCardVersion, settings.run_id, settings.mode, collective::HostIdentity(), hub};
}

std::optional<std::string> WhyNotShared(const std::map<std::string, std::optional<Card>>& cards) {
  const Card* first = nullptr;
  for (const auto& [task, card] : cards) {
    if (!card) return task + " does not speak grpc+arc";
    if (card->version != kCardVersion) return task + " has another version of arcflow";
    if (card->mode != "auto" && card->mode != "shm") {
      return task + " was started with transport='" + card->mode + "'";
    }
    if (first == nullptr) first = &*card;
    if (card->run_id != first->run_id) return task + " belongs to another run";
    if (card->host_identity != first->host_identity) {
      return task + " is on another host (collectives between hosts are TensorFlow's as yet)";
    }
  }
  return std::nullopt;
}

}  // namespace arcflow::tf
