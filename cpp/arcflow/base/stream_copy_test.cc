// SPDX-License-Identifier: Apache-2.0
// Tests of StreamCopy: every byte, and none beside them, at every alignment.
#include "arcflow/base/stream_copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace arcflow {
namespace {

constexpr std::byte kUntouched{0xEE};

std::vector<std::byte> Numbered(std::size_t n) {
  std::vector<std::byte> bytes(n);
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::byte>(i * 131 + i / 251);
  return bytes;
}

void ExpectCopied(std::size_t n, std::size_t to_offset, std::size_t from_offset) {
  const std::vector<std::byte> from = Numbered(n + from_offset);
  std::vector<std::byte> to(n + to_offset + 64, kUntouched);
  StreamCopy(to.data() + to_offset, from.data() + from_offset, n);
  const auto begin = to.begin() + static_cast<std::ptrdiff_t>(to_offset);
  const auto end = begin + static_cast<std::ptrdiff_t>(n);
  EXPECT_TRUE(std::equal(begin, end, from.begin() + static_cast<std::ptrdiff_t>(from_offset)))
      << n << " bytes, " << to_offset << ", " << from_offset;
  const auto untouched = [](std::byte b) { return b == kUntouched; };
  EXPECT_TRUE(std::all_of(to.begin(), begin, untouched)) << n << " bytes, " << to_offset;
  EXPECT_TRUE(std::all_of(end, to.end(), untouched)) << n << " bytes, " << to_offset;
}

TEST(StreamCopyTest, CopiesSmallBlocks) {
  for (const std::size_t n : {0u, 1u, 63u, 64u, 65u, 4097u}) ExpectCopied(n, 3, 5);
}

TEST(StreamCopyTest, CopiesLargeBlocksAtEveryAlignment) {
  for (std::size_t offset = 0; offset < 64; offset += 7) {
    ExpectCopied(kStreamCopyBytes, offset, 0);
    ExpectCopied(kStreamCopyBytes + 1, 0, offset);
    ExpectCopied(kStreamCopyBytes + 63 + offset, offset, 63 - offset);
  }
}

}  // namespace
}  // namespace arcflow
