// SPDX-License-Identifier: Apache-2.0
// Workers: requests for tensors say that we can fetch; answers are tickets; tickets are fetched.
#include "plugins/tensorflow/transport/workers.h"

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "arcflow/transport/depot.h"
#include "plugins/tensorflow/status.h"
#include "plugins/tensorflow/transport/groups.h"
#include "plugins/tensorflow/transport/stats.h"
#include "tensorflow/core/common_runtime/device.h"
#include "tensorflow/core/distributed_runtime/call_options.h"
#include "tensorflow/core/distributed_runtime/rendezvous_mgr_interface.h"
#include "tensorflow/core/distributed_runtime/rpc/grpc_tensor_coding.h"
#include "tensorflow/core/distributed_runtime/tensor_coding.h"
#include "tensorflow/core/distributed_runtime/worker_cache_wrapper.h"
#include "tensorflow/core/framework/step_stats.pb.h"
#include "tensorflow/core/protobuf/worker.pb.h"

namespace arcflow::tf {
namespace {

using tensorflow::CallOptions;
using tensorflow::StatusCallback;
using tensorflow::Tensor;
using transport::Depot;

// In RecvTensorRequest: the name of the depot that asks. In the answer: a ticket.
constexpr char kTensorUrl[] = "arcflow/tensor/1";
constexpr double kReachSeconds = 20;
constexpr std::size_t kLeastBytes = 64 << 10;  // what is smaller travels in the answer

bool Fetchable(const Tensor& tensor) {
  return tensor.TotalBytes() >= kLeastBytes && tensorflow::DataTypeCanUseMemcpy(tensor.dtype());
}

// ---- whose tensors they are ----

class Worker : public tensorflow::GrpcWorker {
 public:
  Worker(tensorflow::WorkerEnv* env, const tensorflow::ConfigProto& config,
         std::shared_ptr<const Identity> identity)
      : GrpcWorker(env, config), identity_(std::move(identity)) {}

  void LoggingAsync(const tensorflow::LoggingRequest* request,
                    tensorflow::LoggingResponse* response, StatusCallback done) override {
    if (request->fetch_step_id_size() != 1 || request->fetch_step_id(0) != kCardStep) {
      return GrpcWorker::LoggingAsync(request, response, std::move(done));
    }
    auto* step = response->add_step();
    step->set_step_id(kCardStep);
    step->mutable_step_stats()->add_dev_stats()->set_device(identity_->card.ToJson());
    done(absl::OkStatus());
  }

  void GrpcRecvTensorAsync(CallOptions* options, const tensorflow::RecvTensorRequest* request,
                           ::grpc::ByteBuffer* response, StatusCallback done) override {
    tensorflow::Rendezvous::ParsedKey key;
    tensorflow::Device* device = nullptr;
    const bool asked = request->transport_options().type_url() == kTensorUrl;
    if (!asked || identity_->depot == nullptr ||
        !tensorflow::Rendezvous::ParseKey(request->rendezvous_key(), &key).ok() ||
        !PrepareRecvTensor(key, &device).ok() || device->device_type() != "CPU") {
      return GrpcWorker::GrpcRecvTensorAsync(options, request, response, std::move(done));
    }
    const absl::Status unique = recent_request_ids_.TrackUnique(
        request->request_id(), "RecvTensor (arcflow::tf::Worker)", *request);
    if (!unique.ok()) return done(unique);
    const std::int64_t step = request->step_id();
    options->SetCancelCallback([this, step] { AbortStep(step); });  // as TensorFlow's does
    const std::string peer = request->transport_options().value();
    env_->rendezvous_mgr->RecvLocalAsync(
        step, key,
        [this, options, response, peer, done](
            const absl::Status& status, const tensorflow::Rendezvous::Args&,
            const tensorflow::Rendezvous::Args&, const Tensor& tensor, bool dead) {
          options->ClearCancelCallback();
          done(status.ok() ? Answer(tensor, dead, peer, response) : status);
        });
  }

 private:
  absl::Status Answer(const Tensor& tensor, bool dead, const std::string& peer,
                      ::grpc::ByteBuffer* response) {
    if (!dead && Fetchable(tensor)) {
      auto hold = std::make_shared<const Tensor>(tensor);
      const auto ticket = identity_->depot->Offer(
          {static_cast<const std::byte*>(hold->data()), hold->TotalBytes()}, hold, peer);
      if (ticket.ok()) {
        tensorflow::RecvTensorResponse answer;
        answer.mutable_tensor()->set_dtype(tensor.dtype());
        tensor.shape().AsProto(answer.mutable_tensor()->mutable_tensor_shape());
        answer.mutable_transport_options()->set_type_url(kTensorUrl);
        answer.mutable_transport_options()->set_value(*ticket);
        tensorflow::grpc::EncodeRecvTensorResponseToByteBuffer(answer, response);
        return absl::OkStatus();
      }
      CountFallback("tensors: " + std::string(ticket.status().message()));
    }
    return tensorflow::grpc::EncodeTensorToByteBuffer(dead, tensor, false, response);
  }

  const std::shared_ptr<const Identity> identity_;
};

// ---- who fetches them ----

/// Whether tensors of a task can be fetched: found out once, in the background; until then, and
/// when not, they come by gRPC.
class Roads {
 public:
  Roads(tensorflow::WorkerCacheInterface* workers, std::shared_ptr<const Identity> identity)
      : workers_(workers), identity_(std::move(identity)) {}

  static bool Open(const std::shared_ptr<Roads>& roads, const std::string& task) {
    const std::lock_guard lock(roads->mutex_);
    const auto [at, first] = roads->open_.try_emplace(task, false);
    if (first) {
      tensorflow::Env::Default()->SchedClosure([roads, task] { roads->Find(task); });
    }
    return at->second;
  }
  /// The cache of workers is about to go.
  void Close() {
    const std::lock_guard lock(asking_);
    workers_ = nullptr;
  }

 private:
  void Find(const std::string& task) {
    const std::lock_guard alone(asking_);
    if (workers_ == nullptr) return;
    std::optional<Card> card;
    std::string why;
    if (const absl::Status asked = AskForCard(workers_, task, &card); !asked.ok()) {
      why = std::string(asked.message());
    } else {
      why = WhyNotFetched(card, identity_->card).value_or("");
    }
    if (why.empty()) {
      const Status reached =
          identity_->depot->Reach(card->depot, Deadline::AfterSeconds(kReachSeconds));
      why = std::string(reached.message());
    }
    if (!why.empty()) return CountFallback("tensors of " + task + ": " + why);
    const std::lock_guard lock(mutex_);
    open_[task] = true;
  }

  std::mutex asking_;
  tensorflow::WorkerCacheInterface* workers_;
  const std::shared_ptr<const Identity> identity_;
  std::mutex mutex_;
  std::map<std::string, bool> open_;
};

class RemoteWorker : public tensorflow::WorkerInterface {
 public:
  RemoteWorker(tensorflow::WorkerInterface* inner, std::string task, std::shared_ptr<Roads> roads,
               std::shared_ptr<const Identity> identity)
      : inner_(inner),
        task_(std::move(task)),
        roads_(std::move(roads)),
        identity_(std::move(identity)) {}
  ~RemoteWorker() override = default;
  tensorflow::WorkerInterface* inner() const { return inner_; }

  void RecvTensorAsync(CallOptions* options, const tensorflow::RecvTensorRequest* request,
                       tensorflow::TensorResponse* response, StatusCallback done) override {
    const bool host =
        response->device() != nullptr && response->device()->attributes().device_type() == "CPU";
    if (!host || !Roads::Open(roads_, task_)) {
      return inner_->RecvTensorAsync(options, request, response, std::move(done));
    }
    auto ours = std::make_shared<tensorflow::RecvTensorRequest>(*request);
    ours->mutable_transport_options()->set_type_url(kTensorUrl);
    ours->mutable_transport_options()->set_value(identity_->depot->name());
    const auto identity = identity_;
    inner_->RecvTensorAsync(options, ours.get(), response, [=](const absl::Status& status) mutable {
      ours.reset();
      const auto& road = response->metadata().transport_options();
      if (!status.ok() || road.type_url() != kTensorUrl) return done(status);
      Fetch(*identity->depot, options, response, std::move(done));
    });
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
  ARC_FORWARD4(RecvBuf)
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
  /// TensorFlow has made the tensor from the answer's type and shape; its bytes come now.
  static void Fetch(Depot& depot, CallOptions* options, tensorflow::TensorResponse* response,
                    StatusCallback done) {
    auto fetch = std::make_shared<Depot::Fetch>();
    // Not on the thread that cancels: it holds the lock that ClearCancelCallback takes.
    options->SetCancelCallback(
        [fetch] { tensorflow::Env::Default()->SchedClosure([fetch] { fetch->Cancel(); }); });
    const Tensor tensor = response->tensor();
    const std::span<std::byte> into(static_cast<std::byte*>(tensor.data()), tensor.TotalBytes());
    depot.Start(fetch, response->metadata().transport_options().value(), into,
                [options, tensor, done = std::move(done)](const Status& status) {
                  // What follows may compute, and a thread of the transport serves others.
                  tensorflow::Env::Default()->SchedClosure([options, done, status] {
                    options->ClearCancelCallback();
                    done(ToTf(status.WithContext("arcflow: a tensor of another task")));
                  });
                });
  }

  tensorflow::WorkerInterface* const inner_;
  const std::string task_;
  const std::shared_ptr<Roads> roads_;
  const std::shared_ptr<const Identity> identity_;
};

class WorkerCache : public tensorflow::WorkerCacheWrapper {
 public:
  WorkerCache(tensorflow::WorkerCacheInterface* inner, tensorflow::WorkerInterface* own,
              std::shared_ptr<const Identity> identity)
      : WorkerCacheWrapper(inner),
        inner_(inner),
        own_(own),
        identity_(std::move(identity)),
        roads_(std::make_shared<Roads>(inner, identity_)) {}
  ~WorkerCache() override { roads_->Close(); }

  tensorflow::WorkerInterface* GetOrCreateWorker(const std::string& target) override {
    tensorflow::WorkerInterface* const worker = inner_->GetOrCreateWorker(target);
    if (worker == nullptr || worker == own_) return worker;
    return new RemoteWorker(worker, target, roads_, identity_);
  }
  void ReleaseWorker(const std::string& target, tensorflow::WorkerInterface* worker) override {
    auto* const remote = dynamic_cast<RemoteWorker*>(worker);
    inner_->ReleaseWorker(target, remote == nullptr ? worker : remote->inner());
    delete remote;
  }

 private:
  const std::unique_ptr<tensorflow::WorkerCacheInterface> inner_;
  tensorflow::WorkerInterface* const own_;
  const std::shared_ptr<const Identity> identity_;
  const std::shared_ptr<Roads> roads_;
};

}  // namespace

std::unique_ptr<tensorflow::GrpcWorker> NewWorker(tensorflow::WorkerEnv* env,
                                                  const tensorflow::ConfigProto& config,
                                                  std::shared_ptr<const Identity> identity) {
  return std::make_unique<Worker>(env, config, std::move(identity));
}

tensorflow::WorkerCacheInterface* NewWorkerCache(tensorflow::WorkerCacheInterface* inner,
                                                 tensorflow::WorkerInterface* own,
                                                 std::shared_ptr<const Identity> identity) {
  if (identity->depot == nullptr) return inner;
  return new WorkerCache(inner, own, std::move(identity));
}

}  // namespace arcflow::tf
