// SPDX-License-Identifier: Apache-2.0
// Tests do less under ThreadSanitizer: it makes memory and accesses 5 to 20 times as dear.
#pragma once

namespace arcflow::testing_support {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

/// `little` under ThreadSanitizer, else `all`. What is left out must be sizes or places, never the
/// only test in which certain threads meet: the other builds run `all`.
template <typename T>
constexpr T UnlessThreadSanitizer(T all, T little) {
  return kThreadSanitizer ? little : all;
}

}  // namespace arcflow::testing_support
