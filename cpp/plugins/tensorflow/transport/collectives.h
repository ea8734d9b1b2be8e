// SPDX-License-Identifier: Apache-2.0
// Collectives: TensorFlow's collective operations run by our engine, where it can.
#pragma once

#include <memory>

#include "plugins/tensorflow/transport/groups.h"
#include "tensorflow/core/distributed_runtime/worker_env.h"
#include "tensorflow/core/framework/collective.h"
#include "tensorflow/core/protobuf/config.pb.h"

namespace arcflow::tf {

/// The operation that reduces a list of tensors; its collective has neither merge nor final
/// operation set, which counts as add and nothing.
inline constexpr char kReduceListOp[] = "ArcflowAllReduceList";

/// Whether completed parameters name our collective, and not one of TensorFlow's.
bool IsOurs(const tensorflow::CollectiveParams& params);

/// TensorFlow's manager of collectives with a resolver that gives covered operations to us. All
/// else (timeouts, abortion, order, tracing) stays TensorFlow's. The caller owns it.
tensorflow::CollectiveExecutorMgrInterface* NewCollectiveManager(
    const tensorflow::ConfigProto& config, const tensorflow::WorkerEnv* env,
    tensorflow::WorkerCacheInterface* workers, std::shared_ptr<const Identity> identity);

}  // namespace arcflow::tf
