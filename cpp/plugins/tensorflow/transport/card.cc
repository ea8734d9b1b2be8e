// SPDX-License-Identifier: Apache-2.0
// Cards: written, read, compared.
#include "plugins/tensorflow/transport/card.h"

#include <nlohmann/json.hpp>

namespace arcflow::tf {

std::string Card::ToJson() const {
  const nlohmann::json json = {{"arcflow", version},    {"run_id", run_id}, {"mode", mode},
                               {"host", host_identity}, {"hub", hub},       {"lobby", lobby},
                               {"no_lobby", no_lobby},  {"depot", depot},   {"no_depot", no_depot}};
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
    card.lobby = json.value("lobby", "");
    card.no_lobby = json.value("no_lobby", "");
    card.depot = json.value("depot", "");
    card.no_depot = json.value("no_depot", "");
    return card;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

namespace {

/// Whether ranks of one host meet as those of several do.
bool Wired(const std::string& mode) { return mode == "tcp" || mode == "rdma"; }

}  // namespace

Plan PlanFor(const Cards& cards) {
  const Card* first = nullptr;
  bool one_host = true;
  bool shm = false;
  const Card* without = nullptr;
  std::string without_task;
  for (const auto& [task, card] : cards) {
    if (!card) return {Plan::Kind::kStock, task + " does not speak grpc+arc"};
    if (card->version != kCardVersion) {
      return {Plan::Kind::kStock, task + " has another version of arcflow"};
    }
    if (card->mode != "auto" && card->mode != "shm" && !Wired(card->mode)) {
      return {Plan::Kind::kStock, task + " was started with transport='" + card->mode + "'"};
    }
    if (first == nullptr) first = &*card;
    if (card->run_id != first->run_id) {
      return {Plan::Kind::kStock, task + " belongs to another run"};
    }
    if (card->mode != first->mode && (Wired(card->mode) || Wired(first->mode))) {
      return {Plan::Kind::kStock, task + " was started with transport='" + card->mode +
                                      "', another with '" + first->mode + "'"};
    }
    one_host = one_host && card->host_identity == first->host_identity;
    shm = shm || card->mode == "shm";
    if (card->lobby.empty() && without == nullptr) without = &*card, without_task = task;
  }
  const bool wired = first != nullptr && Wired(first->mode);
  if (one_host && !wired) return {Plan::Kind::kShared, ""};
  if (shm) return {Plan::Kind::kStock, "its tasks are on several hosts"};
  if (without != nullptr) {
    return {Plan::Kind::kStock,
            without_task + " cannot be reached from other hosts: " + without->no_lobby};
  }
  return {Plan::Kind::kHosts, ""};
}

std::optional<std::string> WhyNotFetched(const std::optional<Card>& other, const Card& own) {
  if (!other) return "it does not speak grpc+arc";
  if (other->version != kCardVersion) return "it has another version of arcflow";
  if (other->run_id != own.run_id) return "it belongs to another run";
  if (other->depot.empty()) return "it cannot be reached: " + other->no_depot;
  return std::nullopt;
}

std::map<std::string, int> HostsOf(const Cards& cards) {
  std::map<std::string, int> hosts;
  std::map<std::string, int> numbers;
  for (const auto& [task, card] : cards) {
    const std::string& name = Wired(card->mode) ? task : card->host_identity;
    hosts[task] = numbers.try_emplace(name, static_cast<int>(numbers.size())).first->second;
  }
  return hosts;
}

}  // namespace arcflow::tf
