// SPDX-License-Identifier: Apache-2.0
// Words that ranks of several hosts say to each other. Internal to this layer.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "arcflow/collective/wide_group.h"

namespace arcflow::collective {

inline constexpr transport::Channel kWideWordChannel = 1;
inline constexpr std::size_t kMaxWordText = 4096;

enum class WordType : std::uint32_t {
  kReady = 1,   // → 0: I have met all that I need
  kOpen = 2,    // 0 →: all have
  kArrive = 3,  // → 0: I have come to `key`, with `first`
  kOrder = 4,   // 0 →: the next operation of all
  kLate = 5,    // → 0: my time limit for `key` has passed
  kLost = 6,    // → 0: `rank` has gone, as far as I see
  kFail = 7,    // the group has failed: code, text
};

// Layout: docs/formats/collective.md. Text may follow.
struct WideGroup::Word {
  WordType type;
  std::uint32_t rank = 0;
  std::uint32_t code = 0;
  std::uint32_t reserved = 0;
  std::uint64_t key = 0;
  Signature first;
  Signature other;
  std::uint32_t first_rank = 0;
  std::uint32_t other_rank = kNobody;
};

static_assert(std::endian::native == std::endian::little);

}  // namespace arcflow::collective
