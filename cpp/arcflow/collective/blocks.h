// SPDX-License-Identifier: Apache-2.0
// Blocks: moves and merges the data of one operation through the slots of a board.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arcflow/base/status.h"
#include "arcflow/collective/group.h"

namespace arcflow::collective {

/// One operation on its way; made and run by the group's worker.
///
/// Small operations take one round: each rank publishes its input, and computes its output from
/// all. Larger ones are cut into blocks of a share for each rank. For block k, a rank fills its
/// slot with what others need, merges its own share of what all have filled, and drains what others
/// have merged; it fills block k while it merges k-1 and drains k-2, so that ranks need not be in
/// step. A result that all ranks share (`Operation::result_shared`) is merged into its place, and
/// draining is waiting. Cost of an all-reduce of n bytes: n(p-1)/p written to shared memory,
/// n·(p-1)/p merged results read, per rank. Source: reduce-scatter and all-gather as in Patarasuk &
/// Yuan, JPDC 69(2), 2009, by direct exchange instead of a ring, because all ranks see the memory
/// of all.
class Blocks {
 public:
  Blocks(Group& group, const Operation& operation);
  Status Run();

 private:
  using Counter = std::atomic<std::uint64_t> RankState::*;

  Status RunSmall(std::size_t publish_bytes);
  void ComputeSmall(std::uint64_t round);
  Status RunLarge();
  Status Fill(std::uint64_t block);
  Status Merge(std::uint64_t block);
  void MergeStride(const void* const* sources, std::byte* slot, std::byte* out,
                   std::size_t bytes) const;
  Status MergeRange(std::uint64_t block, std::size_t offset, std::size_t bytes);
  Status Drain(std::uint64_t block);
  bool Fills() const;
  bool Merges() const;

  // Bytes of the operation that share `rank` of block `block` covers: offset and length.
  std::size_t Offset(std::uint64_t block, int rank) const;
  std::size_t Length(std::uint64_t block, int rank) const;

  void CopyIn(std::byte* to, std::size_t offset, std::size_t bytes);
  void CopyOut(const std::byte* from, std::size_t offset, std::size_t bytes);
  template <typename Visit>
  void ForPieces(std::size_t offset, std::size_t bytes, const Visit& visit) const;
  Status Await(int rank, Counter counter, std::uint64_t value, const char* what);
  void Publish(Counter counter, std::uint64_t value);
  void CountSent(int rank, std::size_t bytes);  // -1: to every other
  void CountReceived(int rank, std::size_t bytes);
  int divisor() const { return operation_.what.divide != 0 ? ranks_ : 0; }

  Group& group_;
  Board& board_;
  const Operation& operation_;
  const Kind kind_;
  const int rank_;
  const int ranks_;
  const std::size_t element_bytes_;
  const std::size_t part_bytes_;  // count elements
  std::size_t share_bytes_ = 0;   // of one rank in one block
  std::uint64_t block_count_ = 0;
  std::uint64_t first_block_ = 0;  // all blocks of the group are numbered through
  bool past_caches_ = false;
};

}  // namespace arcflow::collective
