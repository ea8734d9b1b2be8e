// SPDX-License-Identifier: Apache-2.0
// Fuzz target: descriptors, addresses, hellos and frame headers of any bytes. The first byte says
// which; what parses must come out again as it went in, and keep its promises.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "arcflow/transport/wire.h"

namespace {

using namespace arcflow::transport;  // NOLINT(google-build-using-namespace): a test's only file

void Require(bool holds) {
  if (!holds) std::abort();
}

void FuzzHeader(std::string_view bytes) {
  const auto header =
      DecodeHeader({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
  if (!header.ok()) return;
  // What the rest of the layer relies on.
  Require(header->inline_bytes <= kMaxInlineBytes);
  Require(header->payload_bytes <= kMaxPieceBytes && header->payload_bytes <= header->total);
  Require(header->total <= kMaxTotalBytes && header->offset <= kMaxTotalBytes);
  if (header->type == FrameType::kGetData) {
    Require(header->offset + header->payload_bytes <= header->total);
  }
  if (header->type == FrameType::kPut) Require(header->total <= header->inline_bytes);
  const bool by_reference =
      header->type == FrameType::kPutRef || header->type == FrameType::kGetRef;
  if (by_reference) Require(header->inline_bytes >= sizeof(Validity));
  std::byte again[sizeof(FrameHeader)];
  EncodeHeader(*header, again);
  Require(std::memcmp(again, bytes.data(), sizeof(again)) == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0: {
      const auto region = RemoteRegion::Parse(bytes);
      if (region.ok()) Require(region->Serialize() == bytes);
      break;
    }
    case 1: {
      const auto address = Address::Parse(bytes);
      if (address.ok()) Require(address->Serialize() == bytes);
      break;
    }
    case 2: {
      const auto hello = Hello::Parse(bytes);
      if (hello.ok()) Require(std::string_view(hello->Serialize()).substr(4) == bytes);
      break;
    }
    default:
      FuzzHeader(bytes);
  }
  return 0;
}
