// SPDX-License-Identifier: Apache-2.0
// Element types and merge operations of collectives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>

namespace arcflow::collective {

/// What one element is. The six types of `Reducible` can be merged; all can be moved.
enum class Element : std::uint32_t {
  kFloat16 = 0,
  kBFloat16 = 1,
  kFloat32 = 2,
  kFloat64 = 3,
  kInt32 = 4,
  kInt64 = 5,
  kByte = 6,   // moved only: bool, int8, uint8
  kTwo = 7,    // moved only: 2 bytes
  kFour = 8,   // moved only: 4 bytes
  kEight = 9,  // moved only: 8 bytes
  kSixteen = 10,
};
inline constexpr std::size_t kReducible = 6;

enum class Merge : std::uint32_t { kAdd = 0, kMul = 1, kMin = 2, kMax = 3 };
inline constexpr std::size_t kMerges = 4;

/// What float32 values of an all-reduce become on their way between hosts.
enum class Wire : std::uint32_t { kSame = 0, kFloat16 = 1, kBFloat16 = 2 };
inline constexpr std::size_t kWires = 3;

constexpr bool Reducible(Element e) { return static_cast<std::size_t>(e) < kReducible; }

/// Bytes of one element; 0 for a number that is no Element.
constexpr std::size_t SizeOf(Element e) {
  constexpr std::size_t kSizes[] = {2, 2, 4, 8, 4, 8, 1, 2, 4, 8, 16};
  const auto at = static_cast<std::size_t>(e);
  return at < std::size(kSizes) ? kSizes[at] : 0;
}

constexpr std::string_view NameOf(Element e) {
  constexpr std::string_view kNames[] = {"float16", "bfloat16", "float32", "float64",
                                         "int32",   "int64",    "byte",    "2-byte",
                                         "4-byte",  "8-byte",   "16-byte"};
  const auto at = static_cast<std::size_t>(e);
  return at < std::size(kNames) ? kNames[at] : "unknown";
}

constexpr std::string_view NameOf(Wire w) {
  constexpr std::string_view kNames[] = {"unchanged", "float16", "bfloat16"};
  const auto at = static_cast<std::size_t>(w);
  return at < kWires ? kNames[at] : "unknown";
}

constexpr std::string_view NameOf(Merge m) {
  constexpr std::string_view kNames[] = {"add", "mul", "min", "max"};
  const auto at = static_cast<std::size_t>(m);
  return at < kMerges ? kNames[at] : "unknown";
}

}  // namespace arcflow::collective
