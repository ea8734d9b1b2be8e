// SPDX-License-Identifier: Apache-2.0
// What an agent answers to an `acquire`, as its writers read it.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "arcflow/base/status.h"
#include "arcflow/feed/writer.h"

namespace arcflow::control {

/// `segment`. InvalidArgument for anything else.
Result<feed::SegmentSource::Grant> GrantFromJson(const nlohmann::json& body);
/// The status that a `refused` carries, never OK.
Status RefusalFromJson(const nlohmann::json& body);

}  // namespace arcflow::control
