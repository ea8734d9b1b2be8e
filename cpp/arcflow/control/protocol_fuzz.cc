// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any JSON as any message of the control layer; what is accepted must come back equal.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "arcflow/control/chunks.h"
#include "arcflow/control/hand_messages.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/text.h"

namespace {

using nlohmann::json;

template <typename T>
void RoundTrip(const json& input) {
  const auto first = T::FromJson(input);
  if (!first.ok()) return;
  const json once = first->ToJson();
  const auto second = T::FromJson(once);
  if (!second.ok() || second->ToJson() != once) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace arcflow::control;  // NOLINT(google-build-using-namespace): every type of it
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::string clean = CleanText(text, 64);
  if (clean.size() > 64 || CleanText(clean, 64) != clean) std::abort();
  if (const auto bytes = Base64Decode(text); bytes.ok() && Base64Encode(*bytes) != text)
    std::abort();
  if (HexDecode(HexEncode(text)).value() != text) std::abort();
  const std::string body(text);
  if (const auto chunk = ReadChunk(body, 4096); chunk.ok()) {
    if (chunk->bytes.empty() || chunk->at + chunk->bytes.size() > 4096) std::abort();
  }
  const json input = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (input.is_discarded()) return 0;
  RoundTrip<Failure>(input);
  RoundTrip<Join>(input);
  RoundTrip<Member>(input);
  RoundTrip<Verdict>(input);
  RoundTrip<CoordinatorTuning>(input);
  RoundTrip<HandOffer>(input);
  RoundTrip<HandPlace>(input);
  RoundTrip<HandHello>(input);
  RoundTrip<HandTake>(input);
  RoundTrip<HandPiece>(input);
  (void)AgentConfig::FromJson(input).ok();
  return 0;
}
