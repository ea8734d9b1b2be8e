// SPDX-License-Identifier: Apache-2.0
// Fuzz target: without the secret no bytes, in any pieces, bring either side of a handshake to its
// end.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "arcflow/net/handshake.h"

namespace {

using arcflow::net::Handshake;

void Feed(Handshake handshake, std::span<const std::byte> bytes, std::size_t piece) {
  handshake.TakeOutput();
  while (!bytes.empty()) {
    const std::size_t wanted = handshake.wanted();
    const auto used = handshake.Feed(bytes.first(std::min(piece, bytes.size())));
    if (!used.ok()) {
      if (handshake.wanted() != 0 || !handshake.TakeOutput().empty()) std::abort();
      return;
    }
    if (wanted > 0 && *used == 0) std::abort();  // no progress: the caller would spin
    if (handshake.done()) std::abort();          // HMAC-SHA256 was guessed
    if (*used == 0) return;
    bytes = bytes.subspan(*used);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string secret(32, 'k');
  const std::size_t piece = 1 + data[0] % 80;
  const auto bytes = std::span(reinterpret_cast<const std::byte*>(data), size).subspan(1);
  auto server = Handshake::Server(secret);
  auto client = Handshake::Client(secret);
  if (!server.ok() || !client.ok()) std::abort();
  Feed(std::move(*server), bytes, piece);
  Feed(std::move(*client), bytes, piece);
  return 0;
}
