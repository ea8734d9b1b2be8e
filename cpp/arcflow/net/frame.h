// SPDX-License-Identifier: Apache-2.0
// Frames: JSON messages on a byte stream between hosts; pure functions of bytes, no sockets.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"

namespace arcflow::net {

/// Largest body of a frame sent or accepted. Layout: docs/formats/frame.md.
inline constexpr std::size_t kMaxFrameBytes = std::size_t{1} << 20;
inline constexpr std::size_t kFrameHeaderBytes = 4;
/// Largest body of a raw frame that this version sends.
inline constexpr std::size_t kMaxRawBytes = (std::size_t{1} << 20) + 64;

/// The message as one frame: 4 bytes of length, little endian, then UTF-8 JSON. Text that is not
/// UTF-8 is replaced. InvalidArgument when it is over `max_bytes`.
Result<std::string> EncodeFrame(const nlohmann::json& message,
                                std::size_t max_bytes = kMaxFrameBytes);

/// The header of a raw frame: `body_bytes` bytes that are no JSON follow it, and the sender appends
/// them. Requires 0 < body_bytes < 2^31.
std::string RawFrameHeader(std::size_t body_bytes);

/// Parses a body. InvalidArgument unless it is a JSON object with a string "op". `*message` changes
/// only on success.
Status ParseFrame(std::string_view body, nlohmann::json* message);

/// Cuts a byte stream, fed in pieces of any size, into frame bodies.
/// Memory: what was fed and not yet taken; an announced length allocates nothing before its bytes
/// arrive. Threads: one at a time.
class FrameDecoder {
 public:
  /// Raw frames are refused unless `max_raw_bytes` says how large they may be. With
  /// `raw_head_bytes` their bodies are not gathered: Next() returns only so many first bytes, and
  /// raw_left() bytes follow, which TakeRaw and SkipRaw pass.
  explicit FrameDecoder(std::size_t max_bytes = kMaxFrameBytes, std::size_t max_raw_bytes = 0,
                        std::size_t raw_head_bytes = 0)
      : max_bytes_(max_bytes), max_raw_bytes_(max_raw_bytes), raw_head_bytes_(raw_head_bytes) {}

  void Feed(std::span<const std::byte> bytes);
  /// The next whole body, std::nullopt when more bytes are needed.
  /// InvalidArgument for a length of zero or over the bound; the decoder then stays failed.
  Result<std::optional<std::string>> Next();
  /// The body that Next() returned last is of a raw frame.
  bool raw() const { return raw_; }
  /// Bytes of a raw body whose head was returned that are still to come; Next() waits for them.
  std::size_t raw_left() const { return raw_left_; }
  /// Copies those of them that were fed to `to`, which has room for raw_left(). How many.
  std::size_t TakeRaw(std::byte* to);
  /// `n` of them were read past this decoder. Requires that TakeRaw has taken all that was fed.
  void SkipRaw(std::size_t n) { raw_left_ -= n; }
  /// True when the stream may end here without loss.
  bool at_boundary() const { return begin_ == buffer_.size() && raw_left_ == 0; }

 private:
  void Pass(std::size_t bytes);  // that have been handed out

  std::size_t max_bytes_;
  std::size_t max_raw_bytes_;
  std::size_t raw_head_bytes_;
  bool raw_ = false;
  std::size_t raw_left_ = 0;
  std::string buffer_;
  std::size_t begin_ = 0;  // bytes of buffer_ already handed out
  Status failure_;
};

}  // namespace arcflow::net
