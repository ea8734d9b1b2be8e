// SPDX-License-Identifier: Apache-2.0
// The worker whose tensors others fetch: cards, and tickets in answers.
#include "plugins/tensorflow/transport/workers.h"

#include <optional>
#include <string>
#include <utility>

#include "arcflow/transport/depot.h"
#include "plugins/tensorflow/transport/staging.h"
#include "plugins/tensorflow/transport/stats.h"
#include "plugins/tensorflow/transport/task_name.h"
#include "tensorflow/core/common_runtime/buf_rendezvous.h"
#include "tensorflow/core/common_runtime/device.h"
#include "tensorflow/core/common_runtime/device_mgr.h"
#include "tensorflow/core/distributed_runtime/call_options.h"
#include "tensorflow/core/distributed_runtime/rendezvous_mgr_interface.h"
#include "tensorflow/core/distributed_runtime/rpc/grpc_tensor_coding.h"
#include "tensorflow/core/framework/collective.h"
#include "tensorflow/core/framework/step_stats.pb.h"
#include "tensorflow/core/lib/core/threadpool.h"
#include "tensorflow/core/protobuf/transport_options.pb.h"
#include "tensorflow/core/protobuf/worker.pb.h"

namespace arcflow::tf {
namespace {

using tensorflow::BufRendezvous;
using tensorflow::CallOptions;
using tensorflow::Rendezvous;
using tensorflow::StatusCallback;
using tensorflow::Tensor;

class Worker : public tensorflow::GrpcWorker {
 public:
  Worker(tensorflow::WorkerEnv* env, const tensorflow::ConfigProto& config,
         std::shared_ptr<const Identity> identity)
      : GrpcWorker(env, config),
        // TensorFlow's cache of answers would keep tickets that were used.
        gives_tickets_(identity->depot != nullptr && !config.rpc_options().cache_rpc_response()),
        identity_(std::move(identity)) {}

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
    Rendezvous::ParsedKey key;
    tensorflow::Device* device = nullptr;
    if (!gives_tickets_ || request->transport_options().type_url() != kTicketUrl ||
        !Rendezvous::ParseKey(request->rendezvous_key(), &key).ok() ||
        !PrepareRecvTensor(key, &device).ok()) {
      return GrpcWorker::GrpcRecvTensorAsync(options, request, response, std::move(done));
    }
    const absl::Status unique = recent_request_ids_.TrackUnique(
        request->request_id(), "RecvTensor (arcflow::tf::Worker)", *request);
    if (!unique.ok()) return done(unique);
    const std::string peer = request->transport_options().value();
    const std::string task = TaskOf(std::string(key.dst_device));
    // As in TensorFlow, a call that is cancelled does not end the step: the caller does that.
    env_->rendezvous_mgr->RecvLocalAsync(
        request->step_id(), key,
        [=, this](const absl::Status& status, const Rendezvous::Args& sent, const Rendezvous::Args&,
                  const Tensor& tensor, bool dead) {
          if (!status.ok()) return done(status);
          if (dead || !OnAccelerator(*device, sent.alloc_attrs)) {
            return done(Answer(tensor, dead, peer, task, response));
          }
          StageOut(tensor, device, sent.device_context,
                   [=, this](const absl::Status& staged, const Tensor& host) {
                     done(staged.ok() ? Answer(host, false, peer, task, response) : staged);
                   });
        });
  }

  void RecvBufAsync(CallOptions* options, const tensorflow::RecvBufRequest* request,
                    tensorflow::RecvBufResponse* response, StatusCallback done) override {
    tensorflow::Device* device = nullptr;
    if (!gives_tickets_ || request->transport_options().type_url() != kTicketUrl ||
        !env_->device_mgr->LookupDevice(request->src_device(), &device).ok()) {
      return GrpcWorker::RecvBufAsync(options, request, response, std::move(done));
    }
    const absl::Status unique = recent_request_ids_.TrackUnique(
        request->request_id(), "RecvBuf (arcflow::tf::Worker)", *request);
    if (!unique.ok()) return done(unique);
    tensorflow::CollectiveExecutor::Handle executor(
        env_->collective_executor_mgr->FindOrCreate(request->step_id()), true);
    executor.get()->remote_access()->buf_rendezvous()->ConsumeBuf(
        request->buf_rendezvous_key(), request->src_device(), request->src_incarnation(),
        [this, request, response, done](const absl::Status& status, BufRendezvous::Hook* hook) {
          if (!status.ok()) return done(status);
          if (hook == nullptr) return done(absl::InternalError("a buffer without its owner"));
          // What waits for the buffer's end computes, which no thread of the transport should.
          const std::shared_ptr<BufRendezvous::Hook> hold(
              hook, [pool = env_->compute_pool](BufRendezvous::Hook* used) {
                pool->Schedule([used] { BufRendezvous::DoneWithHook(used); });
              });
          if (!OnAccelerator(*hook->prod_dev, hook->prod_attr)) {
            return done(Answer(*hook->prod_value, hold, *request, response));
          }
          StageOut(*hook->prod_value, hook->prod_dev, hook->prod_ctx,
                   [=, this](const absl::Status& staged, const Tensor& host) {
                     // The copy is what is offered: the buffer itself is free again.
                     const auto copy = std::make_shared<const Tensor>(host);
                     (void)hold;
                     done(staged.ok() ? Answer(*copy, copy, *request, response) : staged);
                   });
        },
        nullptr);
  }

 private:
  absl::Status Answer(const Tensor& tensor, bool dead, const std::string& peer,
                      const std::string& task, ::grpc::ByteBuffer* response) {
    if (!dead && Fetchable(tensor)) {
      auto hold = std::make_shared<const Tensor>(tensor);
      const std::span bytes(static_cast<const std::byte*>(hold->data()), hold->TotalBytes());
      if (const auto ticket = Offer(bytes, hold, peer, task)) {
        tensorflow::RecvTensorResponse answer;
        answer.mutable_tensor()->set_dtype(tensor.dtype());
        tensor.shape().AsProto(answer.mutable_tensor()->mutable_tensor_shape());
        answer.mutable_transport_options()->set_type_url(kTicketUrl);
        answer.mutable_transport_options()->set_value(*ticket);
        tensorflow::grpc::EncodeRecvTensorResponseToByteBuffer(answer, response);
        return absl::OkStatus();
      }
    }
    return tensorflow::grpc::EncodeTensorToByteBuffer(dead, tensor, false, response);
  }

  absl::Status Answer(const Tensor& value, const std::shared_ptr<const void>& hold,
                      const tensorflow::RecvBufRequest& request,
                      tensorflow::RecvBufResponse* response) {
    if (!tensorflow::DataTypeCanUseMemcpy(value.dtype())) {
      return absl::InternalError("a buffer that is not plain memory");
    }
    const auto* const data = static_cast<const std::byte*>(value.data());
    if (Fetchable(value)) {
      const auto ticket = Offer({data, value.TotalBytes()}, hold,
                                request.transport_options().value(), TaskOf(request.dst_device()));
      if (ticket) {
        response->mutable_transport_options()->set_type_url(kTicketUrl);
        response->mutable_transport_options()->set_value(*ticket);
        return absl::OkStatus();
      }
    }
    tensorflow::RecvBufRespExtra extra;
    extra.add_tensor_content(reinterpret_cast<const char*>(data), value.TotalBytes());
    response->mutable_transport_options()->PackFrom(extra);
    return absl::OkStatus();
  }

  std::optional<std::string> Offer(std::span<const std::byte> bytes,
                                   std::shared_ptr<const void> hold, const std::string& peer,
                                   const std::string& task) {
    const auto ticket = identity_->depot->Offer(bytes, std::move(hold), peer);
    if (!ticket.ok()) {
      CountFallback("tensors for " + task + ": " + std::string(ticket.status().message()));
      return std::nullopt;
    }
    CountTensor(task, "", Way::kOffered, bytes.size());
    return *ticket;
  }

  const bool gives_tickets_;
  const std::shared_ptr<const Identity> identity_;
};

}  // namespace

bool Fetchable(const Tensor& tensor) {
  return tensor.TotalBytes() >= kLeastFetched && tensorflow::DataTypeCanUseMemcpy(tensor.dtype());
}

std::unique_ptr<tensorflow::GrpcWorker> NewWorker(tensorflow::WorkerEnv* env,
                                                  const tensorflow::ConfigProto& config,
                                                  std::shared_ptr<const Identity> identity) {
  return std::make_unique<Worker>(env, config, std::move(identity));
}

}  // namespace arcflow::tf
