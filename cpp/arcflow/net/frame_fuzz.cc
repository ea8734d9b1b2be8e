// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any bytes in any pieces give the same frames as the same bytes at once, or the same
// refusal.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "arcflow/net/frame.h"

namespace {

using arcflow::net::FrameDecoder;

constexpr std::size_t kBound = 4096;  // small, so that inputs reach it
constexpr std::size_t kRawBound = 8192;
constexpr std::size_t kHeadBytes = 8;

/// All bodies, in order, raw ones with an "r" before them; the flag says whether the stream was
/// refused.
std::pair<std::vector<std::string>, bool> Decode(std::span<const std::byte> bytes,
                                                 std::size_t piece, std::size_t head = 0) {
  FrameDecoder decoder(kBound, kRawBound, head);
  std::vector<std::string> bodies;
  for (std::size_t at = 0; at < bytes.size(); at += piece) {
    decoder.Feed(bytes.subspan(at, std::min(piece, bytes.size() - at)));
    for (;;) {
      if (decoder.raw_left() > 0) {
        std::vector<std::byte> rest(decoder.raw_left());
        const std::size_t n = decoder.TakeRaw(rest.data());
        bodies.back().append(reinterpret_cast<const char*>(rest.data()), n);
        if (decoder.raw_left() > 0) break;
      }
      auto body = decoder.Next();
      if (!body.ok()) return {std::move(bodies), true};
      if (!body->has_value()) break;
      if ((*body)->empty() || (*body)->size() > (decoder.raw() ? kRawBound : kBound)) std::abort();
      bodies.push_back(decoder.raw() ? "r" + **body : std::move(**body));
    }
  }
  return {std::move(bodies), false};
}

/// What parses must survive encoding and parsing again.
void CheckRoundTrip(const std::string& body) {
  nlohmann::json message;
  if (!arcflow::net::ParseFrame(body, &message).ok()) return;
  if (!message["op"].is_string()) std::abort();
  const auto frame = arcflow::net::EncodeFrame(message);
  if (!frame.ok()) return;
  const auto again = Decode({reinterpret_cast<const std::byte*>(frame->data()), frame->size()}, 3);
  nlohmann::json copy;
  if (again.second) return;  // grew over the small bound: escapes and numbers may
  if (again.first.size() != 1) std::abort();
  if (!arcflow::net::ParseFrame(again.first[0], &copy).ok() || copy != message) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto whole = Decode(bytes, std::max<std::size_t>(size, 1));
  const std::size_t piece = size == 0 ? 1 : 1 + data[0] % 7;
  if (whole != Decode(bytes, piece)) std::abort();
  // Bodies that pass after their head are the same bodies, unless one is shorter than a head or the
  // stream ends inside it.
  const auto passed = Decode(bytes, piece, kHeadBytes);
  for (std::size_t i = 0; i < std::min(passed.first.size(), whole.first.size()); ++i) {
    if (passed.first[i] != whole.first[i]) std::abort();
  }
  for (const std::string& body : whole.first) CheckRoundTrip(body);
  return 0;
}
