// SPDX-License-Identifier: Apache-2.0
// Casts of elements: which there are, which values fit, and the conversion at the speed of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "arcflow/columnar/schema.h"

namespace arcflow::columnar {

/// Whether elements of `from` can be made elements of `to`: the same type; integers and booleans to
/// any number; floats to floats. Never floats to integers (round them before), numbers to booleans,
/// nor strings.
bool CanCast(DType from, DType to);

/// Index of the first of `n` elements at `data` that `to` does not hold; integers only (floats
/// become the nearest float, out of its range infinity). Reads each element once, without a branch
/// an element. `data` needs no alignment; booleans are bytes. Requires CanCast.
std::optional<std::size_t> FirstMisfit(DType from, DType to, const std::byte* data, std::size_t n);

/// Converts `n` elements; neither side needs alignment; booleans are bytes. Requires CanCast.
void CastElements(DType from, DType to, const std::byte* data, std::size_t n, std::byte* out);

}  // namespace arcflow::columnar
