// SPDX-License-Identifier: Apache-2.0
// Checked access to the fields of feed packets.
#include "arcflow/feed/service_fields.h"

#include <nlohmann/json.hpp>

namespace arcflow::feed {
namespace {

using nlohmann::json;

const json* FieldOf(const json& packet, const char* key) {
  if (!packet.is_object()) return nullptr;
  const auto found = packet.find(key);
  return found == packet.end() ? nullptr : &*found;
}

Status BadField(const json& packet, const char* key, const std::string& problem) {
  const json* op = FieldOf(packet, "op");
  const std::string name =
      op != nullptr && op->is_string() ? op->get<std::string>().substr(0, 32) : "?";
  return InvalidArgument("packet '" + name + "': field '" + key + "' " + problem);
}

}  // namespace

Result<std::uint64_t> UintField(const json& packet, const char* key, std::uint64_t max) {
  const json* field = FieldOf(packet, key);
  if (field == nullptr) return BadField(packet, key, "is missing");
  if (!field->is_number_integer()) return BadField(packet, key, "is not a whole number");
  if (!field->is_number_unsigned() && field->get<std::int64_t>() < 0) {
    return BadField(packet, key, "is negative");
  }
  const auto value = field->get<std::uint64_t>();
  if (value > max) return BadField(packet, key, "is over " + std::to_string(max));
  return value;
}

Result<std::string> TextField(const json& packet, const char* key, std::size_t max_bytes) {
  const json* field = FieldOf(packet, key);
  if (field == nullptr) return BadField(packet, key, "is missing");
  if (!field->is_string()) return BadField(packet, key, "is not text");
  auto value = field->get<std::string>();
  if (value.size() > max_bytes) return BadField(packet, key, "is too long");
  return value;
}

Result<bool> BoolField(const json& packet, const char* key) {
  const json* field = FieldOf(packet, key);
  if (field == nullptr) return BadField(packet, key, "is missing");
  if (!field->is_boolean()) return BadField(packet, key, "is not true or false");
  return field->get<bool>();
}

}  // namespace arcflow::feed
