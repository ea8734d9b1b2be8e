// SPDX-License-Identifier: Apache-2.0
// Receiving packets to the last one, and documents in memfds.
#include "arcflow/control/packets.h"

#include <chrono>
#include <nlohmann/json.hpp>
#include <span>

#include "arcflow/base/mapping.h"

namespace arcflow::control {

Result<std::optional<net::Message>> ReceiveLastWords(int socket, Deadline deadline) {
  auto message = net::ReceiveMessage(socket, -1, deadline);
  if (!message.ok() || *message) return message;
  // A peer that closed with packets of ours unread makes the kernel report that once, before its
  // own last packets.
  return net::ReceiveMessage(socket, -1, deadline);
}

Incoming ReceiveNow(int socket, net::Message* message, Status* error) {
  auto received = ReceiveLastWords(socket, Deadline::After(std::chrono::nanoseconds(0)));
  if (!received.ok()) {
    if (received.status().code() == Code::kDeadlineExceeded) return Incoming::kNothing;
    *error = received.status();
    return Incoming::kClosed;
  }
  if (!*received) {
    *error = Unavailable("the peer has closed its end");
    return Incoming::kClosed;
  }
  *message = std::move(**received);
  return Incoming::kMessage;
}

Result<Fd> BytesToMemfd(const std::string& name, std::string_view bytes) {
  return MemfdFromBytes(name, std::as_bytes(std::span(bytes.data(), bytes.size())));
}

Result<Fd> DocumentToMemfd(const std::string& name, const nlohmann::json& document) {
  const std::string text = document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxDocumentBytes) return InvalidArgument(name + " is too large");
  return BytesToMemfd(name, text);
}

Status DocumentFromMemfd(const Fd& fd, nlohmann::json* document) {
  ARC_ASSIGN(const std::string text, ReadAllBytes(fd, kMaxDocumentBytes));
  auto parsed = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return InvalidArgument("document is not JSON");
  *document = std::move(parsed);
  return Status::Ok();
}

}  // namespace arcflow::control
