// SPDX-License-Identifier: Apache-2.0
// Wire: the two encodings that Hadoop's binary interfaces use, Writable and protocol buffers.
//
// Written here rather than taken from libprotobuf because TensorFlow exports a protobuf of its own
// to the whole process, and five small messages are all that is needed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace arcflow::hdfs {

/// Takes from the front of bytes that somebody else wrote. Each call is false when there is not
/// enough or it is malformed; what it has taken by then is undefined.
struct WireInput {
  std::string_view left;

  bool Byte(std::uint8_t* out);
  bool Bytes(std::uint64_t n, std::string_view* out);
  /// Big-endian, as Java writes numbers.
  bool Big16(std::uint16_t* out);
  bool Big32(std::uint32_t* out);
  /// WritableUtils.readVLong, positive numbers only.
  bool Vint(std::uint64_t* out);
  /// Bytes after their number as Vint: a Writable's text or byte array.
  bool Counted(std::string* out);
  /// A protocol buffer's varint.
  bool Varint(std::uint64_t* out);
};

/// One field of a protocol buffer's message: `number` holds varints and the fixed sizes
/// (little-endian), `bytes` what is length-delimited.
struct WireField {
  std::uint64_t id = 0;
  int type = 0;  // 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes
  std::uint64_t number = 0;
  std::string_view bytes;
};

/// Takes the next field; nothing at the end or when malformed, which `WireInput::left` tells apart:
/// it is empty at a proper end.
std::optional<WireField> NextField(WireInput* in);

void AppendVint(std::uint64_t n, std::string* out);
void AppendVarint(std::uint64_t n, std::string* out);
/// Fields of a protocol buffer's message.
void AppendNumberField(std::uint64_t id, std::uint64_t n, std::string* out);
void AppendBytesField(std::uint64_t id, std::string_view bytes, std::string* out);

/// URL-safe base64 as Hadoop writes it, without padding.
std::string UrlBase64(std::string_view bytes);
/// Padding is allowed. Nothing for a character that does not belong there.
std::optional<std::string> FromUrlBase64(std::string_view text);

}  // namespace arcflow::hdfs
