// SPDX-License-Identifier: Apache-2.0
// Api: dlopen and dlsym.
#include "arcflow/transport/ucx/api.h"

#include <dlfcn.h>

namespace arcflow::transport::ucx {
namespace {

constexpr unsigned kMajor = 1;
constexpr unsigned kOldestMinor = 13;

template <typename Function>
Status Find(void* library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(::dlsym(library, name));
  if (*out == nullptr) return Unavailable(std::string("libucp has no function ") + name);
  return Status::Ok();
}

Result<void*> Open(const char* name) {
  void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return Unavailable(std::string("UCX is not installed (package libucx0 or ucx): ") +
                       ::dlerror());
  }
  return library;
}

Result<Api> LoadOnce() {
  ARC_ASSIGN(void* ucs, Open("libucs.so.0"));
  ARC_ASSIGN(void* ucp, Open("libucp.so.0"));
  // The process is not ours: its signal handlers are not UCX's either.
  if (auto* disable = reinterpret_cast<void (*)()>(::dlsym(ucs, "ucs_debug_disable_signals"))) {
    disable();
  }
  Api api;
  ARC_TRY(Find(ucs, "ucs_status_string", &api.status_string));
  ARC_TRY(Find(ucp, "ucp_get_version", &api.get_version));
  ARC_TRY(Find(ucp, "ucp_init_version", &api.init_version));
  ARC_TRY(Find(ucp, "ucp_cleanup", &api.cleanup));
  ARC_TRY(Find(ucp, "ucp_config_read", &api.config_read));
  ARC_TRY(Find(ucp, "ucp_config_modify", &api.config_modify));
  ARC_TRY(Find(ucp, "ucp_config_release", &api.config_release));
  ARC_TRY(Find(ucp, "ucp_worker_create", &api.worker_create));
  ARC_TRY(Find(ucp, "ucp_worker_destroy", &api.worker_destroy));
  ARC_TRY(Find(ucp, "ucp_worker_get_address", &api.worker_get_address));
  ARC_TRY(Find(ucp, "ucp_worker_release_address", &api.worker_release_address));
  ARC_TRY(Find(ucp, "ucp_worker_get_efd", &api.worker_get_efd));
  ARC_TRY(Find(ucp, "ucp_worker_arm", &api.worker_arm));
  ARC_TRY(Find(ucp, "ucp_worker_progress", &api.worker_progress));
  ARC_TRY(Find(ucp, "ucp_worker_set_am_recv_handler", &api.worker_set_am_recv_handler));
  ARC_TRY(Find(ucp, "ucp_ep_create", &api.ep_create));
  ARC_TRY(Find(ucp, "ucp_ep_close_nbx", &api.ep_close_nbx));
  ARC_TRY(Find(ucp, "ucp_ep_print_info", &api.ep_print_info));
  ARC_TRY(Find(ucp, "ucp_am_send_nbx", &api.am_send_nbx));
  ARC_TRY(Find(ucp, "ucp_am_recv_data_nbx", &api.am_recv_data_nbx));
  ARC_TRY(Find(ucp, "ucp_am_data_release", &api.am_data_release));
  ARC_TRY(Find(ucp, "ucp_request_check_status", &api.request_check_status));
  ARC_TRY(Find(ucp, "ucp_request_free", &api.request_free));
  unsigned release = 0;
  api.get_version(&api.major, &api.minor, &release);
  if (api.major != kMajor || api.minor < kOldestMinor) {
    return Unavailable("UCX " + std::to_string(api.major) + "." + std::to_string(api.minor) +
                       " is installed; 1.13 or a later 1.x is needed");
  }
  return api;
}

}  // namespace

Result<const Api*> Api::Load() {
  static const Result<Api> loaded = LoadOnce();
  if (!loaded.ok()) return loaded.status();
  return &*loaded;
}

Status Api::Check(ucs_status_t status, const std::string& what) const {
  if (status == UCS_OK) return Status::Ok();
  return Unavailable(what + ": " + status_string(status));
}

}  // namespace arcflow::transport::ucx
