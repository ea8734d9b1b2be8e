// SPDX-License-Identifier: Apache-2.0
// Frames: encoding, checked parsing and cutting of a byte stream.
#include "arcflow/net/frame.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

namespace arcflow::net {
namespace {

constexpr std::size_t kCompactBytes = std::size_t{64} * 1024;
constexpr std::uint32_t kRawFlag = std::uint32_t{1} << 31;

std::uint32_t LoadLength(const char* at) {
  const auto* b = reinterpret_cast<const unsigned char*>(at);
  return static_cast<std::uint32_t>(b[0]) | static_cast<std::uint32_t>(b[1]) << 8 |
         static_cast<std::uint32_t>(b[2]) << 16 | static_cast<std::uint32_t>(b[3]) << 24;
}

std::string Header(std::uint32_t length) {
  std::string header;
  for (int shift = 0; shift < 32; shift += 8)
    header.push_back(static_cast<char>((length >> shift) & 0xff));
  return header;
}

}  // namespace

Result<std::string> EncodeFrame(const nlohmann::json& message, std::size_t max_bytes) {
  const std::string body = message.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (body.size() > max_bytes) {
    return InvalidArgument("message of " + std::to_string(body.size()) +
                           " bytes is over the frame bound of " + std::to_string(max_bytes));
  }
  std::string frame = Header(static_cast<std::uint32_t>(body.size()));
  frame.reserve(kFrameHeaderBytes + body.size());
  frame.append(body);
  return frame;
}

std::string RawFrameHeader(std::size_t body_bytes) {
  return Header(static_cast<std::uint32_t>(body_bytes) | kRawFlag);
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
  if (raw_left_ > 0) return std::optional<std::string>();
  const std::size_t there = buffer_.size() - begin_;
  if (there < kFrameHeaderBytes) return std::optional<std::string>();
  const std::uint32_t announced = LoadLength(buffer_.data() + begin_);
  const bool raw = max_raw_bytes_ > 0 && (announced & kRawFlag) != 0;
  const std::size_t length = raw ? announced & ~kRawFlag : announced;
  const std::size_t bound = raw ? max_raw_bytes_ : max_bytes_;
  if (length == 0 || length > bound || (raw && length < raw_head_bytes_)) {
    failure_ = InvalidArgument("frame announces " + std::to_string(length) +
                               " bytes, the bound is " + std::to_string(bound));
    buffer_.clear();
    begin_ = 0;
    return failure_;
  }
  const std::size_t wanted = raw && raw_head_bytes_ > 0 ? raw_head_bytes_ : length;
  if (there < kFrameHeaderBytes + wanted) return std::optional<std::string>();
  raw_ = raw;
  raw_left_ = length - wanted;
  std::string body = buffer_.substr(begin_ + kFrameHeaderBytes, wanted);
  Pass(kFrameHeaderBytes + wanted);
  return std::optional<std::string>(std::move(body));
}

std::size_t FrameDecoder::TakeRaw(std::byte* to) {
  const std::size_t n = std::min(raw_left_, buffer_.size() - begin_);
  if (n > 0) std::memcpy(to, buffer_.data() + begin_, n);
  raw_left_ -= n;
  Pass(n);
  return n;
}

void FrameDecoder::Pass(std::size_t bytes) {
  begin_ += bytes;
  if (begin_ == buffer_.size()) {
    buffer_.clear();
    begin_ = 0;
  } else if (begin_ >
             kCompactBytes) {  // amortised: moves at most what follows, once per 64 KiB taken
    buffer_.erase(0, begin_);
    begin_ = 0;
  }
}

}  // namespace arcflow::net
