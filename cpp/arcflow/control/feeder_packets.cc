// SPDX-License-Identifier: Apache-2.0
// Reading grants and refusals.
#include "arcflow/control/feeder_packets.h"

#include <nlohmann/json.hpp>
#include <string>

#include "arcflow/control/fields.h"
#include "arcflow/control/protocol.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr std::size_t kMaxDrops = 65536;

}  // namespace

Result<feed::SegmentSource::Grant> GrantFromJson(const json& body) {
  feed::SegmentSource::Grant grant;
  std::uint64_t bytes = 0;
  Fields in(body, "segment");
  in.Uint64("buffer", &grant.buffer, UINT64_MAX, Need::kRequired)
      .Uint64("bytes", &bytes, std::uint64_t{1} << 50, Need::kRequired)
      .Bool("create", &grant.create, Need::kRequired);
  if (const json* drop = in.Find("drop", Need::kOptional)) {
    if (!drop->is_array() || drop->size() > kMaxDrops) in.Fail("drop", "is not a list of buffers");
    for (const json& id : *drop) {
      if (!id.is_number_unsigned()) {
        in.Fail("drop", "has an entry that is no buffer");
        break;
      }
      grant.drop.push_back(id.get<std::uint64_t>());
    }
  }
  ARC_TRY(in.status());
  grant.size_bytes = static_cast<std::size_t>(bytes);
  return grant;
}

Status RefusalFromJson(const json& body) {
  std::string code;
  std::string text;
  Fields in(body, "refused");
  in.String("code", &code, kMaxNameBytes, Need::kRequired).Text("message", &text, kMaxTextBytes);
  ARC_TRY(in.status());
  const Code number = CodeFromName(code);
  return Status(number == Code::kOk ? Code::kUnknown : number, text);
}

}  // namespace arcflow::control
