// SPDX-License-Identifier: Apache-2.0
// Settings: what Python tells the plug-in before TensorFlow starts its server.
#pragma once

#include <memory>
#include <string>

#include "arcflow/base/status.h"

namespace arcflow::tf {

/// How tensors may travel; `Cluster(transport=…)`.
struct Settings {
  std::string mode = "auto";  // auto, shm, tcp, rdma, grpc
  std::string secret;         // the run's, raw bytes
  std::string run_id;
  std::string
      compression;     // of what goes between hosts in an all-reduce of float32: "", fp16, bf16
  int first_port = 0;  // that we may listen on for other hosts; 0: any
  int last_port = 0;
  /// The transport's backend for mode "rdma". Tests without a device put "ucx" here, UCX over
  /// whatever it finds; the product never does.
  std::string rdma_backend = "rdma";
};

/// Settings of this process. Threads: any.
void Configure(Settings settings);
/// FailedPrecondition when Configure has not been called.
Result<Settings> CurrentSettings();

/// From JSON: {mode, secret (hex), run_id, ports: [first, last], compression, rdma_backend}.
/// InvalidArgument says which field is wrong.
Result<Settings> ParseSettings(const std::string& json);

}  // namespace arcflow::tf
