// SPDX-License-Identifier: Apache-2.0
// Reading fields of feed packets that another process wrote.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "arcflow/base/status.h"

namespace arcflow::feed {

/// No count or number in a packet is larger.
inline constexpr std::uint64_t kMaxNumber = std::uint64_t{1} << 62;

/// The field as a whole number in [0, max]. InvalidArgument with the packet's op and the key when
/// it is missing, of another type, or out of range. Threads: pure functions.
Result<std::uint64_t> UintField(const nlohmann::json& packet, const char* key, std::uint64_t max);
/// The field as text of at most `max_bytes`.
Result<std::string> TextField(const nlohmann::json& packet, const char* key, std::size_t max_bytes);
Result<bool> BoolField(const nlohmann::json& packet, const char* key);

}  // namespace arcflow::feed
