// SPDX-License-Identifier: Apache-2.0
// float32 to what goes between hosts, and back.
#pragma once

#include <cstddef>

#include "arcflow/collective/element.h"

namespace arcflow::collective {

/// Packs `count` float32 values at `from` into 2 * count bytes at `to`, rounding to nearest even;
/// what is too large for float16 becomes infinity. `wire` is not kSame. Neither end need be
/// aligned. Never allocates.
void PackWire(Wire wire, const std::byte* from, std::byte* to, std::size_t count);
/// The way back, exactly.
void UnpackWire(Wire wire, const std::byte* from, std::byte* to, std::size_t count);

}  // namespace arcflow::collective
