// SPDX-License-Identifier: Apache-2.0
// The one list of backends, best first.
#include "arcflow/transport/registry.h"

#include <algorithm>

#include "arcflow/transport/backend.h"
#include "arcflow/transport/counters.h"
#include "arcflow/transport/shm/shm_backend.h"
#include "arcflow/transport/tcp/tcp_backend.h"
#ifdef ARC_HAVE_UCX
#include "arcflow/transport/ucx/ucx_backend.h"
#endif

namespace arcflow::transport {
namespace {

const std::vector<std::string>& DefaultNames() {
  static const std::vector<std::string> names = {"shm", "rdma", "tcp"};
  return names;
}

std::vector<std::string> Split(std::string_view text) {
  std::vector<std::string> out;
  while (true) {
    const std::size_t comma = text.find(',');
    std::string_view name = text.substr(0, comma);
    while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
    while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
    out.emplace_back(name);
    if (comma == std::string_view::npos) return out;
    text.remove_prefix(comma + 1);
  }
}

}  // namespace

const std::vector<std::string>& BackendNames() {
  static const std::vector<std::string> names = {"shm", "rdma", "tcp", "ucx"};
  return names;
}

std::string_view BackendKindName(BackendKind kind) {
  switch (kind) {
    case BackendKind::kShm:
      return "shm";
    case BackendKind::kTcp:
      return "tcp";
    case BackendKind::kUcx:
      return "ucx";
    case BackendKind::kRdma:
      return "rdma";
  }
  return "";
}

#ifndef ARC_HAVE_UCX
Result<std::unique_ptr<Backend>> NotBuilt(std::shared_ptr<Core>) {
  return Unavailable("built without UCX: its headers (package libucx-dev) were not found");
}
#endif

BackendFactory FindBackend(std::string_view name) {
  if (name == "shm") return &shm::Make;
#ifdef ARC_HAVE_UCX
  if (name == "ucx") return &ucx::Make;
  if (name == "rdma") return &ucx::MakeRdma;
#else
  if (name == "ucx" || name == "rdma") return &NotBuilt;
#endif
  return &tcp::Make;
}

Result<BackendChoice> ChooseBackends(const std::vector<std::string>& wanted,
                                     const char* environment) {
  BackendChoice choice;
  const bool from_environment = wanted.empty() && environment != nullptr && *environment != '\0';
  choice.forced = !wanted.empty() || from_environment;
  choice.names = from_environment ? Split(environment) : wanted;
  if (!choice.forced) choice.names = DefaultNames();
  for (auto it = choice.names.begin(); it != choice.names.end(); ++it) {
    const auto& known = BackendNames();
    if (std::find(known.begin(), known.end(), *it) == known.end()) {
      return InvalidArgument("there is no transport \"" + *it + "\"" +
                             (from_environment ? " (from ARC_TRANSPORTS)" : "") +
                             "; choose from shm, rdma, tcp, ucx");
    }
    if (std::find(choice.names.begin(), it, *it) != it) {
      return InvalidArgument("transport \"" + *it + "\" is named twice");
    }
  }
  return choice;
}

}  // namespace arcflow::transport
