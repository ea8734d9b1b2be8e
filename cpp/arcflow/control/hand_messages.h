// SPDX-License-Identifier: Apache-2.0
// Messages by which agents hand rows to one another, and their strict conversion from and to JSON.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "arcflow/base/status.h"

namespace arcflow::control {

/// FromJson of each: InvalidArgument that names the field. docs/formats/control.md, "Rows from
/// agent to agent", has them all.

/// Agent → coordinator: this rank gives rows of `feed` to `ranks`, who find it at `port`.
struct HandOffer {
  std::string feed;
  std::uint16_t port = 0;
  std::vector<int> ranks;

  nlohmann::json ToJson() const;
  static Result<HandOffer> FromJson(const nlohmann::json& json);
};

/// Coordinator → agent: an offer, as one who is offered rows sees it.
struct HandPlace {
  std::string feed;
  int rank = 0;  // of who gives
  std::uint16_t port = 0;

  nlohmann::json ToJson() const;
  static Result<HandPlace> FromJson(const nlohmann::json& json);
};

/// Taker → giver, first.
struct HandHello {
  std::string run_id;
  int rank = 0;  // of the taker

  nlohmann::json ToJson() const;
  static Result<HandHello> FromJson(const nlohmann::json& json);
};

/// Taker → giver: the piece that begins at a row of what the giver was fed.
struct HandTake {
  std::string feed;
  std::uint64_t row = 0;

  nlohmann::json ToJson() const;
  static Result<HandTake> FromJson(const nlohmann::json& json);
};

/// Giver → taker: what there is to come.
struct HandPiece {
  std::uint64_t row = 0;
  std::uint64_t rows = 0;  // > 0
  std::uint64_t skip = 0;
  std::uint64_t bytes = 0;  // of the whole segment, > 0

  nlohmann::json ToJson() const;
  static Result<HandPiece> FromJson(const nlohmann::json& json);
};

}  // namespace arcflow::control
