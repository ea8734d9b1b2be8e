// SPDX-License-Identifier: Apache-2.0
// Frames: encoding, checked parsing and cutting of a byte stream.
#include "arcflow/net/frame.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>

namespace arcflow::net {
namespace {

constexpr std::size_t kCompactBytes = std::size_t{64} * 1024;

std::uint32_t LoadLength(const char* at) {
  const auto* b = reinterpret_cast<const unsigned char*>(at);
  return static_cast<std::uint32_t>(b[0]) | static_cast<std::uint32_t>(b[1]) << 8 |
         static_cast<std::uint32_t>(b[2]) << 16 | static_cast<std::uint32_t>(b[3]) << 24;
}

}  // namespace

Result<std::string> EncodeFrame(const nlohmann::json& message, std::size_t max_bytes) {
  const std::string body = message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (body.size() > max_bytes) {
    return InvalidArgument("message of " + std::to_string(body.size()) +
                           " bytes is over the frame bound of " + std::to_string(max_bytes));
  }
  std::string frame;
  frame.reserve(kFrameHeaderBytes + body.size());
  for (int shift = 0; shift < 32; shift += 8) {
    frame.push_back(static_cast<char>((body.size() >> shift) & 0xff));
  }
  frame.append(body);
  return frame;
}

Status ParseFrame(std::string_view body, nlohmann::json* message) {
  auto json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("frame is not a JSON object");
  const auto op = json.find("op");
  if (op == json.end() || !op->is_string()) return InvalidArgument("frame has no string \"op\"");
  *message = std::move(json);
  return Status::Ok();
}

void FrameDecoder::Feed(std::span<const std::byte> bytes) {
  if (!failure_.ok()) return;
  buffer_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

Result<std::optional<std::string>> FrameDecoder::Next() {
  if (!failure_.ok()) return failure_;
  const std::size_t there = buffer_.size() - begin_;
  if (there < kFrameHeaderBytes) return std::optional<std::string>();
  const std::size_t length = LoadLength(buffer_.data() + begin_);
  if (length == 0 || length > max_bytes_) {
    failure_ = InvalidArgument("frame announces " + std::to_string(length) +
                               " bytes, the bound is " + std::to_string(max_bytes_));
    buffer_.clear();
    begin_ = 0;
    return failure_;
  }
  if (there < kFrameHeaderBytes + length) return std::optional<std::string>();
  std::string body = buffer_.substr(begin_ + kFrameHeaderBytes, length);
  begin_ += kFrameHeaderBytes + length;
  if (begin_ == buffer_.size()) {
    buffer_.clear();
    begin_ = 0;
  } else if (begin_ >
             kCompactBytes) {  // amortised: moves at most what follows, once per 64 KiB taken
    buffer_.erase(0, begin_);
    begin_ = 0;
  }
  return std::optional<std::string>(std::move(body));
}

}  // namespace arcflow::net
