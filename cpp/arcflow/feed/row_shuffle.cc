// SPDX-License-Identifier: Apache-2.0
// RowShuffle: Fisher and Yates for few rows, a Feistel network for many.
#include "arcflow/feed/row_shuffle.h"

#include <bit>
#include <numeric>
#include <utility>

namespace arcflow::feed {
namespace {

/// The finaliser of SplitMix64: each bit of the result depends on every bit of x.
std::uint64_t Mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// SplitMix64, written out because orders must be the same everywhere and for ever.
class Random {
 public:
  explicit Random(std::uint64_t state) : state_(state) {}
  std::uint64_t operator()() { return Mix(state_ += 0x9e3779b97f4a7c15ULL); }

 private:
  std::uint64_t state_;
};

}  // namespace

RowShuffle::RowShuffle(std::uint64_t n, std::uint64_t seed, std::uint64_t epoch, std::uint64_t rank)
    : n_(n) {
  Random random(Mix(Mix(Mix(seed) + epoch) + rank));
  if (n <= kMaxTable) {
    table_.resize(n);
    std::iota(table_.begin(), table_.end(), 0U);
    for (std::uint64_t left = n; left > 1; --left) {
      // A number below `left`: the high half of a product, off by less than 2^-48 of fair.
      const auto at =
          static_cast<std::size_t>((static_cast<unsigned __int128>(random()) * left) >> 64);
      std::swap(table_[left - 1], table_[at]);
    }
    return;
  }
  const int bits = std::bit_width(n - 1);
  low_bits_ = (bits + 1) / 2;
  low_mask_ = (std::uint64_t{1} << low_bits_) - 1;
  high_mask_ = (std::uint64_t{1} << (bits - low_bits_)) - 1;
  for (std::uint64_t& key : keys_) key = random();
}

/// Each step changes one half by a function of the other, so it can be undone: no two places meet.
std::uint64_t RowShuffle::Permute(std::uint64_t x) const {
  std::uint64_t low = x & low_mask_;
  std::uint64_t high = x >> low_bits_;
  for (int i = 0; i < kRounds; i += 2) {
    high ^= ((low + keys_[static_cast<std::size_t>(i)]) * 0x9e3779b97f4a7c15ULL >> 32) & high_mask_;
    low ^=
        ((high + keys_[static_cast<std::size_t>(i) + 1]) * 0xbf58476d1ce4e5b9ULL >> 32) & low_mask_;
  }
  return high << low_bits_ | low;
}

}  // namespace arcflow::feed
