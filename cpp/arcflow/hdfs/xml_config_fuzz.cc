// SPDX-License-Identifier: Apache-2.0
// Fuzz target: no configuration file breaks the parser, the variables or the mount tables.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "arcflow/hdfs/cluster_config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace arcflow::hdfs;  // NOLINT(google-build-using-namespace): one function
  Properties properties;
  const bool read = properties.Add({reinterpret_cast<const char*>(data), size}, "fuzz").ok();
  if (!read && properties.size() != 0) std::abort();
  properties.ForEach("", [](const std::string& name, const std::string& value) {
    if (name.empty() || value.size() > (std::size_t{64} << 20)) std::abort();
  });
  const ClusterConfig config(std::move(properties));
  for (const char* name :
       {"hdfs:///a", "hdfs://ns/a", "viewfs:///a/b", "viewfs://cl/", "hdfs://nn:8020/x"}) {
    const auto place = config.Resolve(*ParseUri(name));
    if (place.ok() && !place->is_mount_folder && place->service.namenodes.empty()) std::abort();
  }
  return 0;
}
