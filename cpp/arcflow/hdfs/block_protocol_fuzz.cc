// SPDX-License-Identifier: Apache-2.0
// Fuzz target: nothing that a DataNode sends breaks the parsers, and their bounds hold.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "arcflow/hdfs/block_protocol.h"
#include "arcflow/hdfs/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace arcflow::hdfs;  // NOLINT(google-build-using-namespace): one function
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (const auto answer = ParseReadAnswer(bytes); answer.ok() && answer->status == 0) {
    if (answer->chunk_bytes == 0 || answer->chunk_bytes > kMaxPacketBytes) std::abort();
  }
  if (const auto header = ParsePacketHeader(bytes); header.ok()) {
    if (header->data_bytes > kMaxPacketBytes) std::abort();
  }
  if (const auto decoded = FromUrlBase64(bytes)) {
    if (decoded->size() > bytes.size()) std::abort();
  }
  if (const auto token = DelegationToken::FromUrlString(bytes); token.ok()) {
    if (!DelegationToken::FromUrlString(token->ToUrlString()).ok()) std::abort();
  }
  return 0;
}
