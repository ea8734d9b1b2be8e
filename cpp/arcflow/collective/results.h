// SPDX-License-Identifier: Apache-2.0
// Results that the ranks of a host read in place: regions of a board's memory, and who holds them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace arcflow::collective {

/// Memory for a result, which all ranks write together and each reads.
struct SharedResult {
  /// For the operation only, until it is done.
  std::byte* write = nullptr;
  /// The same bytes, which cannot be written here. The memory may hold another result as soon as
  /// all ranks have let go of theirs. Outlives the engine. Threads: any may let go.
  std::shared_ptr<const std::byte> read;
};

/// Lies in shared memory. Free when nobody holds it.
struct ResultRegion {
  std::atomic<std::uint64_t> holders;  // bit r: rank r
  std::uint64_t offset;                // of the results' memory; a multiple of the page size
  std::uint64_t bytes;
};

inline constexpr std::size_t kMaxResults = 128;  // that are held at one time
inline constexpr std::uint32_t kNoRegion = 0xffffffff;

/// The lowest place for `bytes` bytes in `capacity` bytes that no held region covers, so that few
/// pages are ever touched. Returns the number of the region, held by `holders`; kNoRegion when
/// there is no room. Threads: one at a time; holders let go beside it.
std::uint32_t ReserveRegion(std::span<ResultRegion> regions, std::uint64_t capacity,
                            std::uint64_t bytes, std::uint64_t holders);

}  // namespace arcflow::collective
