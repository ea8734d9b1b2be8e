// SPDX-License-Identifier: Apache-2.0
// Frames, addresses and hellos: bytes from a peer are checked here, once.
#include "arcflow/transport/wire.h"

#include <cstring>

namespace arcflow::transport {
namespace {

constexpr std::uint32_t kAddressMagic = 0x41435241;  // "ARCA"
constexpr std::uint32_t kHelloMagic = 0x48435241;    // "ARCH"
constexpr std::uint16_t kVersion = 1;
constexpr std::size_t kMaxNameBytes = 16;

template <typename T>
void Append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

/// Takes fixed-width fields off the front; remembers when there was too little.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  T Take() {
    T value{};
    const std::string_view raw = TakeBytes(sizeof(T));
    if (raw.size() == sizeof(T)) std::memcpy(&value, raw.data(), sizeof(T));
    return value;
  }
  std::string_view TakeBytes(std::size_t n) {
    if (n > bytes_.size()) {
      short_ = true;
      bytes_ = {};
      return {};
    }
    const std::string_view out = bytes_.substr(0, n);
    bytes_.remove_prefix(n);
    return out;
  }
  bool ended_well() const { return !short_ && bytes_.empty(); }
  bool short_of_bytes() const { return short_; }

 private:
  std::string_view bytes_;
  bool short_ = false;
};

struct Bounds {
  std::size_t min_inline = 0;
  std::size_t max_inline = 0;
  bool payload = false;  // a piece
};

Bounds BoundsOf(FrameType type) {
  switch (type) {
    case FrameType::kPut:
      return {0, kMaxInlineBytes, false};
    case FrameType::kPutData:
    case FrameType::kGetData:
      return {0, 0, true};
    case FrameType::kPutCommit:
    case FrameType::kMessage:
      return {0, kMaxInlineBytes / 2, false};
    case FrameType::kPutRef:
      return {sizeof(Validity), sizeof(Validity) + kMaxInlineBytes / 2, false};
    case FrameType::kGetRef:
      return {sizeof(Validity), sizeof(Validity), false};
    case FrameType::kPutAck:
      return {0, kMaxErrorBytes, false};
    case FrameType::kGetDone:
      return {0, kSmallBytes, false};
    case FrameType::kPutAbort:
    case FrameType::kGet:
    case FrameType::kGetAbort:
    case FrameType::kFlush:
    case FrameType::kFlushAck:
    case FrameType::kPing:
    case FrameType::kPong:
    case FrameType::kSlotFree:
    case FrameType::kBye:
    case FrameType::kReads:
      break;
  }
  return {};
}

Status CheckHeader(const FrameHeader& h) {
  if (h.magic != FrameHeader::kMagic) return InvalidArgument("frame without its magic");
  const auto type = static_cast<std::uint8_t>(h.type);
  if (type < 1 || type > kLastFrameType) {
    return InvalidArgument("frame of unknown type " + std::to_string(type));
  }
  const Bounds bounds = BoundsOf(h.type);
  if (h.inline_bytes < bounds.min_inline || h.inline_bytes > bounds.max_inline) {
    return InvalidArgument("frame of type " + std::to_string(type) + " with " +
                           std::to_string(h.inline_bytes) + " inline bytes");
  }
  if (bounds.payload ? h.payload_bytes == 0 || h.payload_bytes > kMaxPieceBytes
                     : h.payload_bytes != 0) {
    return InvalidArgument("frame of type " + std::to_string(type) + " with a payload of " +
                           std::to_string(h.payload_bytes) + " bytes");
  }
  if (h.zero != 0) return InvalidArgument("frame with unknown fields");
  if (h.status > static_cast<std::uint8_t>(Code::kUnauthenticated)) {
    return InvalidArgument("frame with an unknown status");
  }
  // With these, offset + total and offset + payload_bytes fit 64 bits.
  if (h.total > kMaxTotalBytes || h.offset > kMaxTotalBytes) {
    return InvalidArgument("frame with a length or offset out of range");
  }
  if (h.payload_bytes > h.total) return InvalidArgument("piece larger than its operation");
  if (h.type == FrameType::kGetData && h.offset > h.total - h.payload_bytes) {
    return InvalidArgument("piece outside its operation");
  }
  if (h.type == FrameType::kPut && (h.total > h.inline_bytes || h.total > kSmallBytes)) {
    return InvalidArgument("small put larger than its frame");
  }
  return Status::Ok();
}

}  // namespace

Result<FrameHeader> DecodeHeader(std::span<const std::byte> bytes) {
  FrameHeader header;
  if (bytes.size() < sizeof(header)) return InvalidArgument("frame cut short");
  std::memcpy(&header, bytes.data(), sizeof(header));
  ARC_TRY(CheckHeader(header));
  return header;
}

void EncodeHeader(const FrameHeader& header, std::byte* out) {
  std::memcpy(out, &header, sizeof(header));
}

Validity SplitValidity(std::string_view inline_bytes, std::string_view* rest) {
  Validity validity;
  std::memcpy(&validity, inline_bytes.data(), sizeof(validity));
  *rest = inline_bytes.substr(sizeof(validity));
  return validity;
}

std::string Address::Serialize() const {
  std::string out;
  Append(&out, kAddressMagic);
  Append(&out, kVersion);
  Append(&out, static_cast<std::uint16_t>(entries.size()));
  out.append(reinterpret_cast<const char*>(node.bytes.data()), node.bytes.size());
  for (const Entry& entry : entries) {
    Append(&out, static_cast<std::uint16_t>(entry.backend.size()));
    Append(&out, static_cast<std::uint16_t>(entry.where.size()));
    out += entry.backend;
    out += entry.where;
  }
  return out;
}

Result<Address> Address::Parse(std::string_view bytes) {
  Reader reader(bytes);
  Address address;
  if (reader.Take<std::uint32_t>() != kAddressMagic) {
    return InvalidArgument("bytes are no transport address");
  }
  if (const auto version = reader.Take<std::uint16_t>(); version != kVersion) {
    return InvalidArgument("transport address of version " + std::to_string(version) +
                           "; both sides need the same release of Arcflow");
  }
  const std::size_t count = reader.Take<std::uint16_t>();
  if (count > kMaxEntries) return InvalidArgument("transport address with too many entries");
  address.node = reader.Take<NodeId>();
  for (std::size_t i = 0; i < count && !reader.short_of_bytes(); ++i) {
    const std::size_t name = reader.Take<std::uint16_t>();
    const std::size_t where = reader.Take<std::uint16_t>();
    if (name > kMaxNameBytes) return InvalidArgument("transport address with a long name");
    Entry entry;
    entry.backend = reader.TakeBytes(name);
    entry.where = reader.TakeBytes(where);
    address.entries.push_back(std::move(entry));
  }
  if (!reader.ended_well()) return InvalidArgument("transport address of the wrong length");
  return address;
}

std::string Hello::Serialize() const {
  std::string out;
  Append(&out, static_cast<std::uint32_t>(4 + 2 + 16 + 8 + 2 + 2 + extra.size()));
  Append(&out, kHelloMagic);
  Append(&out, kVersion);
  out.append(reinterpret_cast<const char*>(node.bytes.data()), node.bytes.size());
  Append(&out, session);
  Append(&out, lane);
  Append(&out, lanes);
  out += extra;
  return out;
}

Result<Hello> Hello::Parse(std::string_view bytes) {
  Reader reader(bytes);
  Hello hello;
  if (reader.Take<std::uint32_t>() != kHelloMagic) return InvalidArgument("bytes are no hello");
  if (const auto version = reader.Take<std::uint16_t>(); version != kVersion) {
    return InvalidArgument("the peer speaks version " + std::to_string(version) +
                           " of the transport, this side " + std::to_string(kVersion) +
                           "; both need the same release of Arcflow");
  }
  hello.node = reader.Take<NodeId>();
  hello.session = reader.Take<std::uint64_t>();
  hello.lane = reader.Take<std::uint16_t>();
  hello.lanes = reader.Take<std::uint16_t>();
  if (reader.short_of_bytes()) return InvalidArgument("hello cut short");
  constexpr std::size_t kFixed = 4 + 2 + 16 + 8 + 2 + 2;
  hello.extra = bytes.substr(kFixed);
  if (hello.lanes == 0 || hello.lanes > 64 || hello.lane >= hello.lanes) {
    return InvalidArgument("hello with connection " + std::to_string(hello.lane) + " of " +
                           std::to_string(hello.lanes));
  }
  return hello;
}

Result<std::size_t> Hello::ParseLength(std::span<const std::byte, 4> bytes) {
  std::uint32_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > kMaxBytes) return InvalidArgument("hello of " + std::to_string(length) + " bytes");
  return length;
}

}  // namespace arcflow::transport
