// SPDX-License-Identifier: Apache-2.0
// Writing requests for blocks, and checked reading of what DataNodes answer.
#include "arcflow/hdfs/block_protocol.h"

#include "arcflow/hdfs/uri.h"
#include "arcflow/hdfs/wire.h"

namespace arcflow::hdfs {
namespace {

constexpr std::uint8_t kVersion = 28;
constexpr std::uint8_t kReadBlock = 81;
constexpr std::uint64_t kChecksumOk = 6;
constexpr std::size_t kShownOfMessage = 300;

Status BadMessage(std::string_view what) {
  return DataLoss("malformed data transfer message: " + std::string(what));
}

/// The fields of a message, each given to `each`, which is false for one that cannot be.
template <typename Each>
bool Fields(std::string_view message, Each each) {
  WireInput in{message};
  while (const auto field = NextField(&in)) {
    if (!each(*field)) return false;
  }
  return in.left.empty();
}

bool ReadChecksum(std::string_view message, ReadAnswer* out) {
  std::uint64_t kind = 0;
  std::uint64_t chunk = 0;
  const bool fine = Fields(message, [&](const WireField& f) {
    if (f.id == 1) kind = f.number;
    if (f.id == 2) chunk = f.number;
    return true;
  });
  if (!fine || kind > 2 || chunk == 0 || chunk > kMaxPacketBytes) return false;
  out->checksum = static_cast<ChecksumKind>(kind);
  out->chunk_bytes = static_cast<std::uint32_t>(chunk);
  return true;
}

}  // namespace

std::string EncodeReadBlock(const LocatedBlock& block, const DelegationToken& token,
                            std::string_view client, std::uint64_t offset, std::uint64_t length) {
  std::string id;
  AppendBytesField(1, block.pool, &id);
  AppendNumberField(2, block.id, &id);
  AppendNumberField(3, block.generation, &id);
  AppendNumberField(4, block.length, &id);
  std::string proof;
  AppendBytesField(1, token.identifier, &proof);
  AppendBytesField(2, token.password, &proof);
  AppendBytesField(3, token.kind, &proof);
  AppendBytesField(4, token.service, &proof);
  std::string base;
  AppendBytesField(1, id, &base);
  AppendBytesField(2, proof, &base);
  std::string header;
  AppendBytesField(1, base, &header);
  AppendBytesField(2, client, &header);
  std::string request;
  AppendBytesField(1, header, &request);
  AppendNumberField(2, offset, &request);
  AppendNumberField(3, length, &request);
  AppendNumberField(4, 1, &request);  // send checksums
  std::string out;
  out.push_back(0);
  out.push_back(static_cast<char>(kVersion));
  out.push_back(static_cast<char>(kReadBlock));
  AppendVarint(request.size(), &out);
  return out + request;
}

Result<ReadAnswer> ParseReadAnswer(std::string_view bytes) {
  ReadAnswer out;
  bool has_status = false;
  bool has_checksum = false;
  const bool fine = Fields(bytes, [&](const WireField& f) {
    if (f.id == 1 && f.type == 0) {
      if (f.number > 100) return false;
      out.status = static_cast<int>(f.number);
      has_status = true;
    }
    if (f.id == 5 && f.type == 2) out.message = EscapePath(f.bytes.substr(0, kShownOfMessage));
    if (f.id != 4) return true;
    return f.type == 2 && Fields(f.bytes, [&](const WireField& g) {
             if (g.id == 2) out.first_offset = g.number;
             if (g.id != 1) return true;
             has_checksum = g.type == 2 && ReadChecksum(g.bytes, &out);
             return has_checksum;
           });
  });
  if (!fine || !has_status) return BadMessage("the answer to a request for a block");
  if (out.status == 0 && !has_checksum) return BadMessage("an answer without kind of checksum");
  return out;
}

Result<PacketHeader> ParsePacketHeader(std::string_view bytes) {
  PacketHeader out;
  int seen = 0;
  const bool fine = Fields(bytes, [&](const WireField& f) {
    constexpr std::uint64_t kLimit = std::uint64_t{1} << 62;
    if (f.id == 1 && f.type == 1) out.offset = f.number;
    if (f.id == 2 && f.type == 1) out.number = f.number;
    if (f.id == 3 && f.type == 0) out.last = f.number != 0;
    if (f.id == 4 && f.type == 5) out.data_bytes = static_cast<std::uint32_t>(f.number);
    if (f.id >= 1 && f.id <= 4) seen |= 1 << f.id;
    return f.id == 0 || f.id > 4 || f.number < kLimit;
  });
  if (!fine || seen != 0b11110) return BadMessage("the header of a packet");
  if (out.data_bytes > kMaxPacketBytes) return BadMessage("the size of a packet");
  return out;
}

std::string EncodeReadDone() {
  std::string message;
  AppendNumberField(1, kChecksumOk, &message);
  std::string out;
  AppendVarint(message.size(), &out);
  return out + message;
}

}  // namespace arcflow::hdfs
