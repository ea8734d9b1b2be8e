// SPDX-License-Identifier: Apache-2.0
// Fuzz target: no answer of a server breaks the parsers, and what they accept keeps their promises.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "arcflow/hdfs/answers.h"
#include "arcflow/hdfs/redirect.h"
#include "arcflow/hdfs/uri.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace arcflow::hdfs;  // NOLINT(google-build-using-namespace): one function
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  if (const auto status = ParseFileStatus(body);
      status.ok() && status->length > std::uint64_t{1} << 62)
    std::abort();
  if (const auto list = ParseFileStatuses(body); list.ok()) {
    for (const FileStatus& one : *list) {
      if (one.name == ".." || one.name.find('/') != std::string::npos) std::abort();
    }
  }
  if (const auto blocks = ParseBlockLocations(body); blocks.ok()) {
    for (const LocatedBlock& one : *blocks) {
      if (one.pool.empty() || one.length > std::uint64_t{1} << 62) std::abort();
      for (const TransferAddress& place : one.places) {
        if (place.port < 1 || place.port > 65535) std::abort();
      }
    }
  }
  (void)ParseBoolean(body);
  (void)ParseToken(body);
  (void)IsStandby(body);
  if (ErrorOf(403, body, body).ok()) std::abort();
  static const HttpUrl from = *ParseHttpUrl("https://nn.cl.example.org:9871/webhdfs/v1/a?op=OPEN");
  if (const auto to = CheckRedirect(from, body, {}); to.ok()) {
    // Never a stranger, never plain.
    if (to->scheme != "https" || to->host.find("example.org") == std::string::npos) {
      if (to->host.size() < 11) std::abort();
    }
    if (!ParseHttpUrl(to->ToString()).ok()) std::abort();
  }
  return 0;
}
