// SPDX-License-Identifier: Apache-2.0
// Sizes in multiples.
#pragma once

#include <cstddef>

namespace arcflow {

/// The least multiple of `to` that is not less than `n`; `to` is not 0 and the sum does not
/// overflow.
constexpr std::size_t RoundUp(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

}  // namespace arcflow
