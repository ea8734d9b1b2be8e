// SPDX-License-Identifier: Apache-2.0
// RowShuffle: a seeded order of the rows of a feed, any place of which can be asked for.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace arcflow::feed {

/// A permutation of 0 … n - 1 that follows from n, seed, epoch and rank alone, on every machine.
/// Small ones are a table, each of the n! orders as likely as the others; large ones a Feistel
/// network with cycle walking, which needs no memory (Black and Rogaway, "Ciphers with Arbitrary
/// Finite Domains", 2002). Cost of a place: some nanoseconds, of making a table n times that.
/// Threads: immutable.
class RowShuffle {
 public:
  RowShuffle() = default;  // of no rows
  RowShuffle(std::uint64_t n, std::uint64_t seed, std::uint64_t epoch, std::uint64_t rank);

  std::uint64_t size() const { return n_; }
  /// The row at `place`, which must be below size().
  std::uint64_t operator()(std::uint64_t place) const {
    if (!table_.empty()) return table_[place];
    do place = Permute(place);
    while (place >= n_);  // in less than two rounds on average
    return place;
  }

  static constexpr std::uint64_t kMaxTable = std::uint64_t{1} << 16;

 private:
  static constexpr int kRounds = 8;  // even; four would do for a pseudorandom permutation
  std::uint64_t Permute(std::uint64_t x) const;

  std::uint64_t n_ = 0;
  std::vector<std::uint32_t> table_;
  int low_bits_ = 0;
  std::uint64_t low_mask_ = 0;
  std::uint64_t high_mask_ = 0;
  std::array<std::uint64_t, kRounds> keys_{};
};

}  // namespace arcflow::feed
