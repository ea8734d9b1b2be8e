// SPDX-License-Identifier: Apache-2.0
// The messages of Hadoop's data transfer protocol that reading a block needs.
// Source: datatransfer.proto ("private and stable") and Sender, Receiver and PacketReceiver of
// Hadoop 2 and 3.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"
#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/checksum.h"
#include "arcflow/hdfs/credentials.h"

namespace arcflow::hdfs {

/// Bounds of what a DataNode may announce.
constexpr std::size_t kMaxBlockAnswerBytes = std::size_t{64} << 10;
constexpr std::size_t kMaxPacketBytes = std::size_t{16} << 20;
constexpr std::size_t kMaxPacketHeaderBytes = 256;

/// A request for `length` bytes from `offset` in the block, with its checksums.
std::string EncodeReadBlock(const LocatedBlock& block, const DelegationToken& token,
                            std::string_view client, std::uint64_t offset, std::uint64_t length);

/// What a DataNode answers before it sends.
struct ReadAnswer {
  int status = 0;       // 0: it sends; 5: the token is not valid (any more)
  std::string message;  // when it does not
  ChecksumKind checksum = ChecksumKind::kNull;
  std::uint32_t chunk_bytes = 0;   // each with a checksum of its own
  std::uint64_t first_offset = 0;  // in the block, where the first chunk begins
};
constexpr int kBadBlockToken = 5;

/// Takes the message without its length. Errors: DataLoss when it is malformed, or announces a
/// checksum that does not exist.
Result<ReadAnswer> ParseReadAnswer(std::string_view bytes);

/// Before the checksums and the data of each packet.
struct PacketHeader {
  std::uint64_t offset = 0;  // in the block
  std::uint64_t number = 0;
  bool last = false;  // an empty one that ends the transfer
  std::uint32_t data_bytes = 0;
};

/// Errors: DataLoss when it is malformed or its numbers are negative.
Result<PacketHeader> ParsePacketHeader(std::string_view bytes);

/// Tells the DataNode that all has come and every checksum is right: it takes the next request
/// then.
std::string EncodeReadDone();

}  // namespace arcflow::hdfs
