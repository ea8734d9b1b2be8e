// SPDX-License-Identifier: Apache-2.0
// The ways to run the conformance suite: one for each backend and for each way it moves bytes.
#pragma once

#include <dlfcn.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/transport/conformance_testing.h"

namespace arcflow::transport {

/// Why UCX cannot be tested here; sets what it reads from the environment.
inline std::string PrepareUcx(const char* transports) {
  ::setenv("UCX_TLS", transports, 1);
  ::setenv("UCX_NET_DEVICES", "lo", 1);
  ::setenv("UCX_WARN_UNUSED_ENV_VARS", "n", 1);
#if defined(__SANITIZE_THREAD__)
  // UCX's hooks overwrite the first bytes of mmap() and its like, ThreadSanitizer's among them: the
  // process ends with SIGSEGV. They serve registration caches, which TCP has none of.
  ::setenv("UCX_MEM_MMAP_HOOK_MODE", "none", 1);
  ::setenv("UCX_MEM_EVENTS", "n", 1);
#endif
  void* library = ::dlopen("libucp.so.0", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return "libucp.so.0 (package libucx0) is not installed";
  return "";
}

/// ARC_CONFORMANCE=rdma adds the case that needs a device (tools/rdma_guest).
inline std::vector<ConformanceCase> ConformanceCases() {
  std::vector<ConformanceCase> cases;
  cases.push_back({"Shm", {"shm"}, {}, {}, ""});
  cases.push_back({"ShmSlots", {"shm"}, [](ContextOptions* o) { o->shm_direct = false; }, {}, ""});
  if (!testing_support::kThreadSanitizer) {  // TcpThreads is the same with more threads
    cases.push_back({"Tcp", {"tcp"}, {}, {}, ""});
  }
  cases.push_back({"TcpThreads", {"tcp"}, [](ContextOptions* o) { o->io_threads = 3; }, {}, ""});
  cases.push_back(
      {"UcxTcp",
       {"ucx"},
       {},
       [] { return PrepareUcx("tcp"); },
       "UCX's own TCP transport asserts and ends the process when a connection that has "
       "data both ways is reset (seen with 1.13.1, stubs.c:96); verbs have no such state"});
  const char* extra = std::getenv("ARC_CONFORMANCE");
  if (extra != nullptr && std::string(extra) == "rdma")
    cases.push_back({"Rdma", {"rdma"}, {}, {}, ""});
  return cases;
}

}  // namespace arcflow::transport
