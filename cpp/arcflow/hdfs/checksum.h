// SPDX-License-Identifier: Apache-2.0
// Checksums of block data, as DataNodes store and send them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace arcflow::hdfs {

/// Numbers of Hadoop's ChecksumTypeProto.
enum class ChecksumKind : std::uint8_t { kNull = 0, kCrc32 = 1, kCrc32c = 2 };

/// CRC-32 (of zlib) or CRC-32C (of iSCSI) of bytes; 0 for kNull.
std::uint32_t Checksum(ChecksumKind kind, std::string_view bytes);

/// Whether `sums` holds the big-endian checksum of each chunk of `chunk_bytes` of `data`, the last
/// of which may be shorter. True for kNull, which has no sums.
bool ChecksumsMatch(ChecksumKind kind, std::size_t chunk_bytes, std::string_view data,
                    std::string_view sums);

}  // namespace arcflow::hdfs
