// SPDX-License-Identifier: Apache-2.0
// Regions of shared results: first fit.
#include "arcflow/collective/results.h"

#include <algorithm>
#include <array>
#include <utility>

#include "arcflow/base/round_up.h"

namespace arcflow::collective {
namespace {

constexpr std::uint64_t kRegionPage = 4096;

}  // namespace

std::uint32_t ReserveRegion(std::span<ResultRegion> regions, std::uint64_t capacity,
                            std::uint64_t bytes, std::uint64_t holders) {
  if (bytes > capacity) return kNoRegion;
  const std::uint64_t length = RoundUp(bytes, kRegionPage);
  std::array<std::pair<std::uint64_t, std::uint64_t>, kMaxResults> held;  // begin, end
  std::size_t count = 0;
  std::uint32_t free = kNoRegion;
  for (std::size_t i = 0; i < std::min(regions.size(), kMaxResults); ++i) {
    // Acquire: what its last holder read is read before others write there.
    if (regions[i].holders.load(std::memory_order_acquire) == 0) {
      if (free == kNoRegion) free = static_cast<std::uint32_t>(i);
      continue;
    }
    // Peers write these numbers: clamped, so that no sum overflows.
    const std::uint64_t begin = std::min(regions[i].offset, capacity);
    held[count++] = {begin, begin + std::min(regions[i].bytes, capacity - begin)};
  }
  if (free == kNoRegion) return kNoRegion;
  std::sort(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(count));
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (held[i].first >= offset + length) break;
    offset = std::max(offset, held[i].second);
  }
  if (length > capacity - offset) return kNoRegion;
  regions[free].offset = offset;
  regions[free].bytes = length;
  regions[free].holders.store(holders, std::memory_order_release);
  return free;
}

}  // namespace arcflow::collective
