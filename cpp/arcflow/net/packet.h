// SPDX-License-Identifier: Apache-2.0
// Packets: JSON messages with file descriptors over a Unix SEQPACKET socket, between processes of
// one node.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::net {

/// Largest packet sent or accepted; bigger things travel as memfds.
inline constexpr std::size_t kMaxPacketBytes = std::size_t{96} * 1024;
inline constexpr std::size_t kMaxPacketFds = 4;

struct Packet {
  std::string body;     // UTF-8 JSON
  std::vector<Fd> fds;  // at most kMaxPacketFds
};

/// A connected, close-on-exec pair of Unix SEQPACKET sockets.
Result<std::pair<Fd, Fd>> PacketPair();

/// Sends one packet whole. Never raises SIGPIPE. Blocks until `deadline` while the peer's queue is
/// full. Errors: Unavailable when the peer is gone, DeadlineExceeded, InvalidArgument for a packet
/// over the bounds.
Status SendPacket(int socket, const nlohmann::json& message, const std::vector<int>& fds,
                  Deadline deadline);

/// Receives one packet; std::nullopt when the peer closed its end. `cancel_fd` (or -1): a
/// descriptor (an eventfd, say) that ends the wait with Cancelled as soon as it is readable.
/// Received descriptors are close-on-exec. Errors: DeadlineExceeded, Cancelled, InvalidArgument for
/// a truncated packet.
Result<std::optional<Packet>> ReceivePacket(int socket, int cancel_fd, Deadline deadline);

/// As ReceivePacket, but parses the body; a body that is not a JSON object with a string "op" is
/// InvalidArgument.
struct Message {
  std::string op;
  std::unique_ptr<nlohmann::json> body;
  std::vector<Fd> fds;
};
Result<std::optional<Message>> ReceiveMessage(int socket, int cancel_fd, Deadline deadline);

}  // namespace arcflow::net
