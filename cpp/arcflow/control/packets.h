// SPDX-License-Identifier: Apache-2.0
// Packets of the control layer: receiving without waiting, and JSON documents that are too large
// for a packet.
#pragma once

#include <chrono>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/net/packet.h"

namespace arcflow::control {

/// How long a packet to a process of the same host may take: an agent has others to serve, who
/// talks to an agent has not.
inline constexpr std::chrono::seconds kAgentSends{1};
inline constexpr std::chrono::seconds kPeerSends{30};

inline constexpr std::size_t kMaxDocumentBytes = std::size_t{64} << 20;
inline constexpr std::size_t kMaxResultBytes = std::size_t{2} << 30;

/// What a look at a socket gives.
enum class Incoming { kMessage, kNothing, kClosed };

/// Takes the next packet if one is there. A peer that died leaves its last packets behind an error:
/// they are still taken, so that a last word is never lost. A packet that breaks the protocol
/// counts as closed; `*error` then says what was wrong.
Incoming ReceiveNow(int socket, net::Message* message, Status* error);

/// As net::ReceiveMessage, with the same care for last words.
Result<std::optional<net::Message>> ReceiveLastWords(int socket, Deadline deadline);

/// A JSON document in a sealed memfd, and back (InvalidArgument when it is none, or over
/// kMaxDocumentBytes).
Result<Fd> DocumentToMemfd(const std::string& name, const nlohmann::json& document);
Status DocumentFromMemfd(const Fd& fd, nlohmann::json* document);
/// Any bytes.
Result<Fd> BytesToMemfd(const std::string& name, std::string_view bytes);

}  // namespace arcflow::control
