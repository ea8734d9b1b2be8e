// SPDX-License-Identifier: Apache-2.0
// Fuzz target: no token file breaks the parser.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "arcflow/hdfs/credentials.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace arcflow::hdfs;  // NOLINT(google-build-using-namespace): one function
  const auto tokens = ParseTokenFile({reinterpret_cast<const char*>(data), size});
  if (!tokens.ok()) return 0;
  std::size_t bytes = 0;
  for (const DelegationToken& one : *tokens) {
    bytes += one.identifier.size() + one.password.size();
    if (one.ToUrlString().empty()) std::abort();
  }
  if (bytes > size) std::abort();  // nothing comes from nowhere
  (void)FindToken(*tokens, "ns");
  return 0;
}
