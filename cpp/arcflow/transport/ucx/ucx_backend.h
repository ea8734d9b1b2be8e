// SPDX-License-Identifier: Apache-2.0
// The ucx and rdma backends: whatever UCX can do, or verbs devices only.
#pragma once

#include <memory>
#include <string>

#include "arcflow/transport/backend.h"

namespace arcflow::transport::ucx {

/// UCX with the transports that it or UCX_TLS chooses. Unavailable without libucp.
Result<std::unique_ptr<Backend>> Make(std::shared_ptr<Core> core);
/// UCX over RDMA devices and nothing else. Unavailable or PermissionDenied with the device,
/// permission or library that is missing.
Result<std::unique_ptr<Backend>> MakeRdma(std::shared_ptr<Core> core);

/// OK if this process may use an RDMA device; what is missing otherwise. `sysfs` and `dev` are
/// /sys and /dev but in tests.
Status CheckRdmaDevices(const std::string& sysfs, const std::string& dev);

}  // namespace arcflow::transport::ucx
