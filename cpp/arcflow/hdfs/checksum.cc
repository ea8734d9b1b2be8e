// SPDX-License-Identifier: Apache-2.0
// CRC-32 and CRC-32C eight bytes at a time by tables; CRC-32C by the processor where it can.
#include "arcflow/hdfs/checksum.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace arcflow::hdfs {
namespace {

/// tables[k][b]: the effect of byte b with k bytes after it.
using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables MakeTables(std::uint32_t reversed_polynomial) {
  Tables tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc & 1) != 0 ? crc >> 1 ^ reversed_polynomial : crc >> 1;
    }
    tables[0][b] = crc;
  }
  for (std::size_t k = 1; k < 8; ++k) {
    for (std::size_t b = 0; b < 256; ++b) {
      const std::uint32_t before = tables[k - 1][b];
      tables[k][b] = before >> 8 ^ tables[0][before & 0xff];
    }
  }
  return tables;
}

constexpr Tables kCrc32Tables = MakeTables(0xEDB88320);
constexpr Tables kCrc32cTables = MakeTables(0x82F63B78);

std::uint32_t ByTables(const Tables& t, std::string_view bytes) {
  std::uint32_t crc = ~std::uint32_t{0};
  const char* at = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 8; left -= 8, at += 8) {
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < 8; ++i) {  // little-endian whatever the machine is
      word |= static_cast<std::uint64_t>(static_cast<unsigned char>(at[i])) << (8 * i);
    }
    word ^= crc;
    crc = t[7][word & 0xff] ^ t[6][word >> 8 & 0xff] ^ t[5][word >> 16 & 0xff] ^
          t[4][word >> 24 & 0xff] ^ t[3][word >> 32 & 0xff] ^ t[2][word >> 40 & 0xff] ^
          t[1][word >> 48 & 0xff] ^ t[0][word >> 56];
  }
  for (; left > 0; --left, ++at) {
    crc = crc >> 8 ^ t[0][(crc ^ static_cast<unsigned char>(*at)) & 0xff];
  }
  return ~crc;
}

std::uint32_t BigEndian(const char* at) {
  std::uint32_t n = 0;
  for (int i = 0; i < 4; ++i) n = n << 8 | static_cast<unsigned char>(at[i]);
  return n;
}

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) std::uint32_t ByProcessor(std::string_view bytes) {
  std::uint64_t crc = ~std::uint32_t{0};
  const char* at = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= 8; left -= 8, at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, sizeof word);
    crc = _mm_crc32_u64(crc, word);
  }
  auto last = static_cast<std::uint32_t>(crc);
  for (; left > 0; --left, ++at) last = _mm_crc32_u8(last, static_cast<unsigned char>(*at));
  return ~last;
}

/// Four chunks side by side: one instruction takes three cycles, and three can be under way.
__attribute__((target("sse4.2"))) bool FourMatch(const char* data, std::size_t chunk_bytes,
                                                 const char* sums) {
  std::uint64_t crc[4] = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
  for (std::size_t at = 0; at < chunk_bytes; at += 8) {
    for (std::size_t k = 0; k < 4; ++k) {
      std::uint64_t word = 0;
      std::memcpy(&word, data + k * chunk_bytes + at, sizeof word);
      crc[k] = _mm_crc32_u64(crc[k], word);
    }
  }
  bool fine = true;
  for (std::size_t k = 0; k < 4; ++k) {
    fine = fine && ~static_cast<std::uint32_t>(crc[k]) == BigEndian(sums + 4 * k);
  }
  return fine;
}

bool HasCrc32c() {
  static const bool has = __builtin_cpu_supports("sse4.2") != 0;
  return has;
}

#endif

}  // namespace

std::uint32_t Checksum(ChecksumKind kind, std::string_view bytes) {
  if (kind == ChecksumKind::kNull) return 0;
  if (kind == ChecksumKind::kCrc32) return ByTables(kCrc32Tables, bytes);
#if defined(__x86_64__)
  if (HasCrc32c()) return ByProcessor(bytes);
#endif
  return ByTables(kCrc32cTables, bytes);
}

bool ChecksumsMatch(ChecksumKind kind, std::size_t chunk_bytes, std::string_view data,
                    std::string_view sums) {
  if (kind == ChecksumKind::kNull) return true;
  if (chunk_bytes == 0 || sums.size() != (data.size() + chunk_bytes - 1) / chunk_bytes * 4) {
    return false;
  }
#if defined(__x86_64__)
  if (kind == ChecksumKind::kCrc32c && chunk_bytes % 8 == 0 && HasCrc32c()) {
    while (data.size() >= 4 * chunk_bytes) {
      if (!FourMatch(data.data(), chunk_bytes, sums.data())) return false;
      data.remove_prefix(4 * chunk_bytes);
      sums.remove_prefix(16);
    }
  }
#endif
  while (!data.empty()) {
    const std::string_view chunk = data.substr(0, chunk_bytes);
    if (Checksum(kind, chunk) != BigEndian(sums.data())) return false;
    data.remove_prefix(chunk.size());
    sums.remove_prefix(4);
  }
  return true;
}

}  // namespace arcflow::hdfs
