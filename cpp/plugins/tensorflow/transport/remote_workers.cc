// SPDX-License-Identifier: Apache-2.0
// Workers of other tasks: requests say that we can fetch; tickets in the answers are fetched.
#include <string>
#include <utility>

#include "arcflow/transport/depot.h"
#include "plugins/tensorflow/status.h"
#include "plugins/tensorflow/transport/cancelable_wait.h"
#include "plugins/tensorflow/transport/ordered_clients.h"
#include "plugins/tensorflow/transport/recycled_output.h"
#include "plugins/tensorflow/transport/roads.h"
#include "plugins/tensorflow/transport/staging.h"
#include "plugins/tensorflow/transport/stats.h"
#include "plugins/tensorflow/transport/workers.h"
#include "tensorflow/core/common_runtime/device_mgr.h"
#include "tensorflow/core/distributed_runtime/call_options.h"
#include "tensorflow/core/distributed_runtime/tensor_coding.h"
#include "tensorflow/core/distributed_runtime/worker_cache_wrapper.h"
#include "tensorflow/core/distributed_runtime/worker_interface.h"
#include "tensorflow/core/framework/device_attributes.pb.h"
#include "tensorflow/core/lib/core/threadpool.h"
#include "tensorflow/core/protobuf/worker.pb.h"

namespace arcflow::tf {
namespace {

using tensorflow::CallOptions;
using tensorflow::StatusCallback;
using tensorflow::Tensor;
using transport::Depot;

/// What all workers of a cache share.
struct Ends {
  std::shared_ptr<const Identity> identity;
  std::shared_ptr<Roads> roads;                // null when there is no depot: tensors go by gRPC
  const tensorflow::WorkerEnv* env = nullptr;  // the server's, whose pool runs what follows a fetch

  /// Whether a large tensor by gRPC is an error. `asked`: whether the road was looked for.
  bool Refuse(const Road& road, bool asked) const {
    const std::string& mode = identity->card.mode;
    return mode == "rdma" || (mode != "auto" && asked && !road.open);
  }
};

/// Calls `then` with the road to `task`, or `done` with Cancelled.
void WhenKnown(const Ends& ends, const std::string& task, CallOptions* options,
               std::function<void(const Road&)> then, StatusCallback done) {
  WaitCancelably<Road>(
      options, "arcflow: cancelled before the peer was asked",
      [&](std::function<void(const Road&)> known) {
        ends.roads->WhenKnown(task, std::move(known));
      },
      std::move(then), std::move(done));
}

/// TensorFlow's coordinator finds out by this text whose failure an error is.
absl::Status ErrorOf(const Status& status, const std::string& task, const std::string& backend) {
  Status found = status.WithContext("arcflow: a tensor of " + task + ", fetched by " + backend);
  if (status.code() == Code::kCancelled) return ToTf(found);
  const bool lost = status.code() == Code::kUnavailable || status.code() == Code::kNotFound;
  return ToTf(Status(lost ? Code::kUnavailable : Code::kInternal,
                     std::string(found.message()) +
                         "\nAdditional GRPC error information from remote target " + task +
                         ":\n:the tensor was offered, then its bytes could not be had"));
}

/// Fetches into memory that `keep` keeps; calls `done` on a thread of TensorFlow's.
void Fetch(const Ends& ends, const std::string& task, const Road& road, CallOptions* options,
           const std::string& ticket, std::span<std::byte> into, Tensor keep, StatusCallback done) {
  const auto fetch = std::make_shared<Depot::Fetch>();
  // Not on the thread that cancels, as above.
  options->SetCancelCallback(
      [fetch] { tensorflow::Env::Default()->SchedClosure([fetch] { fetch->Cancel(); }); });
  ends.identity->depot->Start(
      fetch, ticket, into,
      [=, n = into.size(), pool = ends.env->compute_pool, keep = std::move(keep),
       done = std::move(done)](const Status& status) {
        // What follows may compute, and a thread of the transport serves others.
        pool->Schedule([=] {
          options->ClearCancelCallback();
          if (status.ok()) CountTensor(task, road.backend, Way::kFetched, n);
          done(status.ok() ? absl::OkStatus() : ErrorOf(status, task, road.backend));
        });
      });
}

/// A tensor or buffer of some size came by gRPC all the same.
absl::Status CameWhole(const Ends& ends, const std::string& task, const Road& road, bool asked) {
  const std::string why = road.open ? "its server sent one whole" : road.why;
  CountFallback("tensors of " + task + ": " + why);
  if (!ends.Refuse(road, asked)) return absl::OkStatus();
  return absl::FailedPreconditionError("transport='" + ends.identity->card.mode +
                                       "', but a tensor of " + task + " came by gRPC: " + why);
}

class RemoteWorker : public tensorflow::WorkerInterface {
 public:
  RemoteWorker(tensorflow::WorkerInterface* inner, std::string task, Ends ends)
      : inner_(inner), task_(std::move(task)), ends_(std::move(ends)) {}
  ~RemoteWorker() override = default;
  tensorflow::WorkerInterface* inner() const { return inner_; }

  void RecvTensorAsync(CallOptions* options, const tensorflow::RecvTensorRequest* request,
                       tensorflow::TensorResponse* response, StatusCallback done) override {
    if (response->device() == nullptr) {
      Road none;
      none.why = "the receiver has no device for them";
      return AskForTensor(none, false, options, request, response, std::move(done));
    }
    const bool staged = response->device()->attributes().device_type() != tensorflow::DEVICE_CPU;
    WhenKnown(
        ends_, task_, options,
        [=, this](const Road& road) {
          if (staged && road.open) {
            AskForStaged(road, options, request, response, done);
          } else {
            AskForTensor(road, true, options, request, response, done);
          }
        },
        done);
  }

  void RecvBufAsync(CallOptions* options, const tensorflow::RecvBufRequest* request,
                    tensorflow::RecvBufResponse* response, StatusCallback done) override {
    if (static_cast<std::size_t>(request->num_bytes()) < kLeastFetched) {
      return inner_->RecvBufAsync(options, request, response, std::move(done));
    }
    WhenKnown(
        ends_, task_, options,
        [=, this](const Road& road) { AskForBuffer(road, options, request, response, done); },
        done);
  }

#define ARC_FORWARD3(name)                                                                       \
  void name##Async(const tensorflow::name##Request* request, tensorflow::name##Response* answer, \
                   StatusCallback done) override {                                               \
    inner_->name##Async(request, answer, std::move(done));                                       \
  }
#define ARC_FORWARD4(name)                                                             \
  void name##Async(CallOptions* options, const tensorflow::name##Request* request,     \
                   tensorflow::name##Response* answer, StatusCallback done) override { \
    inner_->name##Async(options, request, answer, std::move(done));                    \
  }
  ARC_FORWARD3(CreateWorkerSession)
  ARC_FORWARD4(DeleteWorkerSession)
  ARC_FORWARD3(RegisterGraph)
  ARC_FORWARD3(DeregisterGraph)
  ARC_FORWARD4(RunGraph)
  ARC_FORWARD3(CleanupGraph)
  ARC_FORWARD3(CleanupAll)
  ARC_FORWARD3(Logging)
  ARC_FORWARD3(Tracing)
  ARC_FORWARD4(CompleteGroup)
  ARC_FORWARD4(CompleteInstance)
  ARC_FORWARD3(GetStepSequence)
#undef ARC_FORWARD3
#undef ARC_FORWARD4
  void GetStatusAsync(CallOptions* options, const tensorflow::GetStatusRequest* request,
                      tensorflow::GetStatusResponse* answer, bool fail_fast,
                      StatusCallback done) override {
    inner_->GetStatusAsync(options, request, answer, fail_fast, std::move(done));
  }
  void RunGraphAsync(CallOptions* options, tensorflow::RunGraphRequestWrapper* request,
                     tensorflow::MutableRunGraphResponseWrapper* answer,
                     StatusCallback done) override {
    inner_->RunGraphAsync(options, request, answer, std::move(done));
  }
  tensorflow::MutableRunGraphRequestWrapper* CreateRunGraphRequest() override {
    return inner_->CreateRunGraphRequest();
  }
  tensorflow::MutableRunGraphResponseWrapper* CreateRunGraphResponse() override {
    return inner_->CreateRunGraphResponse();
  }

 private:
  template <typename Request>
  std::shared_ptr<Request> Asking(const Request& request) const {
    auto ours = std::make_shared<Request>(request);
    ours->mutable_transport_options()->set_type_url(kTicketUrl);
    ours->mutable_transport_options()->set_value(ends_.identity->depot->name());
    return ours;
  }

  void AskForTensor(const Road& road, bool asked, CallOptions* options,
                    const tensorflow::RecvTensorRequest* request,
                    tensorflow::TensorResponse* response, const StatusCallback& done) {
    const auto ours = road.open ? Asking(*request) : nullptr;
    const auto arrived = [=, ends = ends_, task = task_](const absl::Status& status) {
      (void)ours;  // TensorFlow reads the request until it calls this
      if (!status.ok()) return done(status);
      const auto& ticket = response->metadata().transport_options();
      if (road.open && ticket.type_url() == kTicketUrl) {
        // The response is not const, and nothing has been written to its tensor.
        auto& tensor = const_cast<Tensor&>(response->tensor());
        RecycleUnder(&tensor);
        return Fetch(ends, task, road, options, ticket.value(),
                     {static_cast<std::byte*>(tensor.data()), tensor.TotalBytes()}, tensor, done);
      }
      done(Fetchable(response->tensor()) ? CameWhole(ends, task, road, asked) : status);
    };
    inner_->RecvTensorAsync(options, ours ? ours.get() : request, response, arrived);
  }

  /// For a tensor that goes to an accelerator. TensorFlow would make it there as soon as the answer
  /// is read, by copying what is not there yet; so the answer is read for the host.
  void AskForStaged(const Road& road, CallOptions* options,
                    const tensorflow::RecvTensorRequest* request,
                    tensorflow::TensorResponse* response, const StatusCallback& done) {
    const auto ours = Asking(*request);
    const auto answer = std::make_shared<tensorflow::TensorResponse>();
    answer->InitAlloc(ends_.env->device_mgr->HostCPU(), {});
    const auto arrived = [=, ends = ends_, task = task_](const absl::Status& status) {
      (void)ours;
      if (!status.ok()) return done(status);
      const auto& ticket = answer->metadata().transport_options();
      if (answer->metadata().is_dead()) {  // nothing lies anywhere
        const_cast<tensorflow::RecvTensorResponse&>(response->metadata()) = answer->metadata();
        return done(status);
      }
      if (ticket.type_url() != kTicketUrl) {
        tensorflow::RecvTensorResponse whole = answer->metadata();
        answer->tensor().AsProtoTensorContent(whole.mutable_tensor());
        if (absl::Status made = response->InitFrom(&whole); !made.ok()) return done(made);
        return done(Fetchable(answer->tensor()) ? CameWhole(ends, task, road, true) : status);
      }
      response->InitPartial(answer->metadata(), {});
      const Tensor output = response->tensor();
      auto* const device = static_cast<tensorflow::Device*>(response->device());
      const auto type = output.GetMemoryType();
      const bool on_host = type == tensorflow::AllocatorMemoryType::kHostPageable ||
                           type == tensorflow::AllocatorMemoryType::kHostPinned;
      const Tensor host = on_host ? output : PinnedTensor(*device, output.dtype(), output.shape());
      const auto fetched = [=](const absl::Status& outcome) {
        if (!outcome.ok() || on_host) return done(outcome);
        const auto* const info = device->tensorflow_accelerator_device_info();
        StageIn(host, device, info == nullptr ? nullptr : info->default_context, output, done);
      };
      Fetch(ends, task, road, options, ticket.value(),
            {static_cast<std::byte*>(host.data()), host.TotalBytes()}, host, fetched);
    };
    inner_->RecvTensorAsync(options, ours.get(), answer.get(), arrived);
  }

  void AskForBuffer(const Road& road, CallOptions* options,
                    const tensorflow::RecvBufRequest* request,
                    tensorflow::RecvBufResponse* response, const StatusCallback& done) {
    const auto ours = road.open ? Asking(*request) : nullptr;
    const auto arrived = [=, ends = ends_, task = task_](const absl::Status& status) {
      (void)ours;
      if (!status.ok()) return done(status);
      const auto& ticket = response->transport_options();
      if (!road.open || ticket.type_url() != kTicketUrl) {
        return done(CameWhole(ends, task, road, true));
      }
      auto* const data = reinterpret_cast<std::byte*>(request->buf_ptr());  // our own request
      const auto fetched = [response, done](const absl::Status& outcome) {
        response->clear_transport_options();  // TensorFlow then takes the bytes to be in place
        done(outcome);
      };
      Fetch(ends, task, road, options, std::string(ticket.value()),
            {data, static_cast<std::size_t>(request->num_bytes())}, {}, fetched);
    };
    inner_->RecvBufAsync(options, ours ? ours.get() : request, response, arrived);
  }

  tensorflow::WorkerInterface* const inner_;
  const std::string task_;
  const Ends ends_;
};

class WorkerCache : public tensorflow::WorkerCacheWrapper {
 public:
  WorkerCache(std::shared_ptr<tensorflow::WorkerCacheInterface> inner,
              tensorflow::WorkerInterface* own, Ends ends)
      : WorkerCacheWrapper(inner.get()), inner_(inner), own_(own), ends_(std::move(ends)) {}

  tensorflow::WorkerInterface* GetOrCreateWorker(const std::string& target) override {
    tensorflow::WorkerInterface* const worker = inner_->GetOrCreateWorker(target);
    if (worker == nullptr || worker == own_ || ends_.roads == nullptr) return worker;
    return new RemoteWorker(worker, target, ends_);
  }
  void ReleaseWorker(const std::string& target, tensorflow::WorkerInterface* worker) override {
    auto* const remote = dynamic_cast<RemoteWorker*>(worker);
    inner_->ReleaseWorker(target, remote == nullptr ? worker : remote->inner());
    delete remote;
  }
  absl::Status GetEagerClientCache(
      std::unique_ptr<tensorflow::eager::EagerClientCache>* clients) override {
    const absl::Status found = inner_->GetEagerClientCache(clients);
    if (found.ok()) *clients = NewOrderedClients(std::move(*clients));
    return found;
  }

 private:
  const std::shared_ptr<tensorflow::WorkerCacheInterface> inner_;
  tensorflow::WorkerInterface* const own_;
  const Ends ends_;
};

}  // namespace

tensorflow::WorkerCacheInterface* NewWorkerCache(tensorflow::WorkerCacheInterface* inner,
                                                 tensorflow::WorkerInterface* own,
                                                 const tensorflow::WorkerEnv* env,
                                                 std::shared_ptr<const Identity> identity) {
  std::shared_ptr<tensorflow::WorkerCacheInterface> shared(inner);
  const auto roads =
      identity->depot == nullptr ? nullptr : std::make_shared<Roads>(shared, identity);
  return new WorkerCache(shared, own, {identity, roads, env});
}

}  // namespace arcflow::tf
