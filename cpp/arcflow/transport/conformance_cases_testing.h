// SPDX-License-Identifier: Apache-2.0
// The ways to run the conformance suite: one for each backend and for each way it moves bytes.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "arcflow/transport/conformance_testing.h"

namespace arcflow::transport {

/// ARC_CONFORMANCE=rdma adds the case that needs a device (tools/rdma_guest).
inline std::vector<ConformanceCase> ConformanceCases() {
  std::vector<ConformanceCase> cases;
  cases.push_back({"Shm", {"shm"}, {}, {}});
  cases.push_back({"ShmSlots", {"shm"}, [](ContextOptions* o) { o->shm_direct = false; }, {}});
  cases.push_back({"Tcp", {"tcp"}, {}, {}});
  cases.push_back({"TcpThreads", {"tcp"}, [](ContextOptions* o) { o->io_threads = 3; }, {}});
  return cases;
}

}  // namespace arcflow::transport
