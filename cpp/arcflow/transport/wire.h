// SPDX-License-Identifier: Apache-2.0
// Wire: the frames of the transport and what is checked before anybody acts on one. Pure functions
// of bytes. Internal to this layer; layout: docs/formats/transport.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/transport/region.h"

namespace arcflow::transport {

enum class FrameType : std::uint8_t {
  kPut = 1,    // a small put, whole: inline = payload, notice
  kPutData,    // a piece of a put's payload
  kPutCommit,  // all pieces have been sent: inline = notice
  kPutRef,  // a put whose payload the receiver copies out of the sender: inline = Validity, notice
  kPutAbort,  // no more pieces will come and no commit
  kPutAck,    // the end of a put: status, inline = message
  kGet,       // asks for bytes of a region
  kGetData,   // a piece of the answer; offset is that in the destination
  kGetRef,    // the answer lies in the sender's memory: inline = Validity
  kGetDone,   // the end of a get: status; inline = payload of a small one, or the message
  kGetAbort,  // the asker does not want the rest
  kMessage,   // inline = message
  kFlush,     // to be answered after everything before it
  kFlushAck,
  kPing,
  kPong,
  kSlotFree,  // shm: the slot `ref` may be filled again
  kBye,       // the sender closes: nothing comes after it
  kReads,     // shm: the sender of this can copy out of the receiver's memory
};
inline constexpr auto kLastFrameType = static_cast<std::uint8_t>(FrameType::kReads);

struct FrameHeader {
  static constexpr std::uint16_t kMagic = 0x4641;  // "AF"

  std::uint16_t magic = kMagic;
  FrameType type = FrameType::kPing;
  std::uint8_t status = 0;  // a Code; answers only
  std::uint16_t channel = 0;
  std::uint16_t zero = 0;
  std::uint32_t inline_bytes = 0;   // follow the header
  std::uint32_t payload_bytes = 0;  // of this piece; follow the inline bytes, or lie elsewhere
  std::uint64_t op = 0;             // number of the operation at the side that asked
  std::uint64_t key = 0;            // of the region
  std::uint64_t offset = 0;         // in the region; in the destination for kGetData
  std::uint64_t total = 0;          // bytes of the whole operation
  std::uint64_t ref = 0;            // an address in the sender's memory, or a slot
};
static_assert(sizeof(FrameHeader) == 56 && std::is_trivially_copyable_v<FrameHeader>);

inline constexpr std::size_t kSmallBytes = std::size_t{32} << 10;  // payload that travels inline
inline constexpr std::size_t kMaxInlineBytes = std::size_t{64} << 10;
inline constexpr std::size_t kMaxPieceBytes = std::size_t{4} << 20;
inline constexpr std::uint64_t kMaxTotalBytes = std::uint64_t{1} << 46;
inline constexpr std::size_t kMaxErrorBytes = 512;  // of a message in an answer

/// In front of the inline bytes of kPutRef and kGetRef: the copy counts only if `*address` still
/// holds `value` after it.
struct Validity {
  std::uint64_t address = 0;
  std::uint64_t value = 0;
};
static_assert(sizeof(Validity) == 16);

/// Reads and checks a header: known type, every length within its bound, offset + length without
/// overflow, fields that the type does not use zero where they could mislead. InvalidArgument says
/// which. After it, code may add offset and lengths freely.
Result<FrameHeader> DecodeHeader(std::span<const std::byte> bytes);
void EncodeHeader(const FrameHeader& header, std::byte* out);

/// Splits the inline bytes of kPutRef and kGetRef. Requires a decoded header of that type.
Validity SplitValidity(std::string_view inline_bytes, std::string_view* rest);

/// How a context is reached: the node and, for each backend, bytes that only that backend reads.
struct Address {
  static constexpr std::size_t kMaxEntries = 8;
  struct Entry {
    std::string backend;
    std::string where;
  };
  NodeId node;
  std::vector<Entry> entries;

  std::string Serialize() const;
  static Result<Address> Parse(std::string_view bytes);
};

/// First bytes on a connection after the handshake, from each side: who it is, which of several
/// connections of a session this is, and what the backend adds.
struct Hello {
  static constexpr std::size_t kMaxBytes = std::size_t{16} << 10;
  NodeId node;
  std::uint64_t session = 0;  // chosen by the side that connects
  std::uint16_t lane = 0;
  std::uint16_t lanes = 1;
  std::string extra;

  /// With its length in front (4 bytes).
  std::string Serialize() const;
  /// The bytes after the length.
  static Result<Hello> Parse(std::string_view bytes);
  /// The length in front; InvalidArgument out of bounds.
  static Result<std::size_t> ParseLength(std::span<const std::byte, 4> bytes);
};

}  // namespace arcflow::transport
