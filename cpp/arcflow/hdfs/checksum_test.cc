// SPDX-License-Identifier: Apache-2.0
// Tests: known checksums, and chunks of every size.
#include "arcflow/hdfs/checksum.h"

#include <gtest/gtest.h>

#include <string>

namespace arcflow::hdfs {
namespace {

void AppendSum(ChecksumKind kind, std::string_view chunk, std::string* sums) {
  const std::uint32_t sum = Checksum(kind, chunk);
  for (int shift = 24; shift >= 0; shift -= 8)
    sums->push_back(static_cast<char>(sum >> shift & 0xff));
}

TEST(ChecksumTest, ValuesAreThoseOfTheStandards) {
  EXPECT_EQ(Checksum(ChecksumKind::kCrc32, "123456789"), 0xCBF43926u);
  EXPECT_EQ(Checksum(ChecksumKind::kCrc32c, "123456789"), 0xE3069283u);
  EXPECT_EQ(Checksum(ChecksumKind::kCrc32c, std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720
  EXPECT_EQ(Checksum(ChecksumKind::kNull, "123456789"), 0u);
}

TEST(ChecksumTest, ChunksMatchAndEachChangedByteIsFound) {
  for (const auto kind : {ChecksumKind::kCrc32, ChecksumKind::kCrc32c}) {
    for (const std::size_t chunk : {8u, 512u, 100u}) {
      for (const std::size_t size : {1u, 511u, 512u, 2048u, 5000u}) {
        std::string data(size, '\0');
        for (std::size_t i = 0; i < size; ++i) data[i] = static_cast<char>(i * 31);
        std::string sums;
        for (std::size_t at = 0; at < size; at += chunk) {
          AppendSum(kind, std::string_view(data).substr(at, chunk), &sums);
        }
        ASSERT_TRUE(ChecksumsMatch(kind, chunk, data, sums));
        for (std::size_t at = 0; at < size; at += 97) {
          data[at] = static_cast<char>(data[at] ^ 4);
          ASSERT_FALSE(ChecksumsMatch(kind, chunk, data, sums)) << chunk << " " << at;
          data[at] = static_cast<char>(data[at] ^ 4);
        }
      }
    }
  }
}

TEST(ChecksumTest, AnotherNumberOfSumsDoesNotMatch) {
  EXPECT_FALSE(ChecksumsMatch(ChecksumKind::kCrc32c, 512, "data", ""));
  EXPECT_FALSE(ChecksumsMatch(ChecksumKind::kCrc32c, 512, "data", "12345678"));
  EXPECT_FALSE(ChecksumsMatch(ChecksumKind::kCrc32c, 0, "data", "1234"));
}

}  // namespace
}  // namespace arcflow::hdfs
