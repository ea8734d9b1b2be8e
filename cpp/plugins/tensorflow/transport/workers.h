// SPDX-License-Identifier: Apache-2.0
// Workers: TensorFlow's, with tensors that the receiver fetches through the transport.
#pragma once

#include <memory>
#include <string>

#include "plugins/tensorflow/transport/identity.h"
#include "tensorflow/core/distributed_runtime/rpc/grpc_worker_service.h"
#include "tensorflow/core/distributed_runtime/worker_cache.h"
#include "tensorflow/core/distributed_runtime/worker_env.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/protobuf/config.pb.h"

namespace arcflow::tf {

/// Step number by which a LoggingRequest asks for our card: no such step exists, and another
/// server answers that it has no log of it.
inline constexpr std::int64_t kCardStep = 0x4152434643415244;

/// Type of the transport_options. In a request: the name of the depot that asks. In the answer: a
/// ticket; for a tensor its type and shape stand beside it.
inline constexpr char kTicketUrl[] = "arcflow/ticket/1";

/// What is smaller travels in TensorFlow's answer, as do types that are not plain memory.
inline constexpr std::size_t kLeastFetched = 64 << 10;
bool Fetchable(const tensorflow::Tensor& tensor);

/// A server's own worker: tells who asks that we are here, and answers a request for a large tensor
/// or buffer with a ticket, when the one who asks can fetch (transport::Depot). What lies in an
/// accelerator's memory is copied to pinned memory first (staging.h).
std::unique_ptr<tensorflow::GrpcWorker> NewWorker(tensorflow::WorkerEnv* env,
                                                  const tensorflow::ConfigProto& config,
                                                  std::shared_ptr<const Identity> identity);

/// `inner` with workers that say so, and fetch, when there is a depot, and with eager clients that
/// keep functions behind earlier writes (ordered_clients.h). `own` is the server's and stays as it
/// is; `env` is the server's too. Takes `inner`; the caller owns the answer.
tensorflow::WorkerCacheInterface* NewWorkerCache(tensorflow::WorkerCacheInterface* inner,
                                                 tensorflow::WorkerInterface* own,
                                                 const tensorflow::WorkerEnv* env,
                                                 std::shared_ptr<const Identity> identity);

}  // namespace arcflow::tf
