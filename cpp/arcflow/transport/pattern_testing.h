// SPDX-License-Identifier: Apache-2.0
// Patterns that tests write into memory and look for.
#pragma once

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace arcflow::transport {

/// Byte i of a pattern is seed * 131 + i * 7 + i / 512. Blocks of 512 are copied and compared
/// whole: byte by byte, the sanitizers' builds would take minutes for it.
inline constexpr std::size_t kPatternBlock = 512;
inline const std::byte* PatternBlock(std::uint64_t seed, std::uint64_t block) {
  static const std::vector<std::byte> sevens = [] {
    std::vector<std::byte> made(kPatternBlock + 256);
    for (std::size_t k = 0; k < made.size(); ++k) made[k] = static_cast<std::byte>(k * 7 & 0xFFU);
    return made;
  }();
  return sevens.data() + ((seed * 131 + block) * 183 & 0xFFU);  // 183 * 7 is 1, modulo 256
}
inline void FillPattern(std::span<std::byte> bytes, std::uint64_t seed) {
  for (std::size_t at = 0; at < bytes.size(); at += kPatternBlock) {
    std::memcpy(bytes.data() + at, PatternBlock(seed, at / kPatternBlock),
                std::min(kPatternBlock, bytes.size() - at));
  }
}
/// Index of the first byte that is not the pattern's; bytes.size() if all are.
inline std::size_t PatternEnd(std::span<const std::byte> bytes, std::uint64_t seed) {
  for (std::size_t at = 0; at < bytes.size(); at += kPatternBlock) {
    const std::byte* const is = bytes.data() + at;
    const std::byte* const wanted = PatternBlock(seed, at / kPatternBlock);
    const std::size_t n = std::min(kPatternBlock, bytes.size() - at);
    if (std::memcmp(is, wanted, n) == 0) continue;
    return at + static_cast<std::size_t>(std::mismatch(is, is + n, wanted).first - is);
  }
  return bytes.size();
}
inline bool AllBytesAre(std::span<const std::byte> bytes, std::byte value) {
  return bytes.empty() || (bytes.front() == value &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}
/// A copy of memory that the transport's threads have written, or will write, at the word of the
/// other process: it asks after its put has ended and puts again after the answer. ThreadSanitizer
/// cannot follow that order, so the kernel reads.
inline std::vector<std::byte> ReadAsTheKernelSees(std::span<const std::byte> bytes) {
  std::vector<std::byte> copy(bytes.size());
  iovec to{copy.data(), copy.size()};
  iovec from{const_cast<std::byte*>(bytes.data()), bytes.size()};
  const ssize_t n = ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0);
  copy.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
  return copy;
}

}  // namespace arcflow::transport
