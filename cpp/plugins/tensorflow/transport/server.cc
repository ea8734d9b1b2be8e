// SPDX-License-Identifier: Apache-2.0
// Servers of the protocols grpc+arc and grpc_rdma: TensorFlow's gRPC server with our collectives.
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "plugins/tensorflow/status.h"
#include "plugins/tensorflow/transport/collectives.h"
#include "plugins/tensorflow/transport/identity.h"
#include "plugins/tensorflow/transport/settings.h"
#include "plugins/tensorflow/transport/workers.h"
#include "tensorflow/core/distributed_runtime/rendezvous_mgr_interface.h"
#include "tensorflow/core/distributed_runtime/rpc/grpc_server_lib.h"
#include "tensorflow/core/distributed_runtime/rpc/grpc_worker_service.h"
#include "tensorflow/core/distributed_runtime/rpc/rpc_rendezvous_mgr.h"
#include "tensorflow/core/distributed_runtime/server_lib.h"
#include "tensorflow/core/framework/step_stats.pb.h"
#include "tensorflow/core/protobuf/worker.pb.h"

namespace arcflow::tf {
namespace {

constexpr char kProtocol[] = "grpc+arc";
constexpr char kRdmaProtocol[] = "grpc_rdma";

class Server : public tensorflow::GrpcServer {
 public:
  Server(const tensorflow::ServerDef& def, tensorflow::Env* env,
         std::shared_ptr<const Identity> identity)
      : GrpcServer(def, env), identity_(std::move(identity)) {}

  absl::Status Open(tensorflow::DeviceMgr* devices) {
    tensorflow::GrpcServerOptions options;
    options.rendezvous_mgr_func = [](const tensorflow::WorkerEnv* env) {
      return static_cast<tensorflow::RendezvousMgrInterface*>(
          new tensorflow::RpcRendezvousMgr(env));
    };
    options.worker_func = [this](tensorflow::WorkerEnv* env, const tensorflow::ConfigProto& config)
        -> std::unique_ptr<tensorflow::GrpcWorker> { return NewWorker(env, config, identity_); };
    options.collective_mgr_func = [this](const tensorflow::ConfigProto& config,
                                         const tensorflow::WorkerEnv* env,
                                         tensorflow::WorkerCacheInterface* workers) {
      return NewCollectiveManager(config, env, workers, identity_);
    };
    options.local_device_mgr = devices;
    return Init(options);
  }

 protected:
  absl::Status WorkerCacheFactory(const tensorflow::WorkerCacheFactoryOptions& options,
                                  tensorflow::WorkerCacheInterface** workers) override {
    tensorflow::WorkerCacheInterface* inner = nullptr;
    if (absl::Status s = GrpcServer::WorkerCacheFactory(options, &inner); !s.ok()) return s;
    *workers = NewWorkerCache(inner, worker_impl(), worker_env(), identity_);
    // Sessions get caches of their own, made here too, on other threads.
    if (std::this_thread::get_id() == updating_.load()) workers_ = *workers;
    return absl::OkStatus();
  }

  /// The base makes a new worker cache and a manager of its own upon it: ours takes its place.
  absl::Status UpdateServerDef(const tensorflow::ServerDef& def) override {
    updating_ = std::this_thread::get_id();
    const absl::Status updated = GrpcServer::UpdateServerDef(def);
    updating_ = std::thread::id();
    if (!updated.ok()) return updated;
    auto* const manager =
        NewCollectiveManager(def.default_session_config(), worker_env(), workers_, identity_);
    worker_env()->collective_executor_mgr.reset(manager);
    master_env()->collective_executor_mgr = manager;
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<const Identity> identity_;
  std::atomic<std::thread::id> updating_{};
  tensorflow::WorkerCacheInterface* workers_ = nullptr;  // of the last update; the base owns it
};

/// "host:port" of the task that the server is.
std::string AddressOf(const tensorflow::ServerDef& def) {
  for (const auto& job : def.cluster().job()) {
    if (job.name() != def.job_name()) continue;
    const auto found = job.tasks().find(def.task_index());
    if (found != job.tasks().end()) return found->second;
  }
  return "";
}

Result<std::shared_ptr<const Identity>> MakeIdentity(const tensorflow::ServerDef& def) {
  ARC_ASSIGN(Settings settings, CurrentSettings());
  if (def.protocol() == kRdmaProtocol) settings.mode = "rdma";  // never anything in its place
  ARC_ASSIGN(auto identity, Identity::Make(settings, AddressOf(def)));
  return std::shared_ptr<const Identity>(std::move(identity));
}

class Factory : public tensorflow::ServerFactory {
 public:
  bool AcceptsOptions(const tensorflow::ServerDef& def) override {
    return def.protocol() == kProtocol || def.protocol() == kRdmaProtocol;
  }

  absl::Status NewServer(const tensorflow::ServerDef& def, const Options& options,
                         std::unique_ptr<tensorflow::ServerInterface>* out) override {
    auto identity = MakeIdentity(def);
    if (!identity.ok()) return ToTf(identity.status().WithContext("protocol " + def.protocol()));
    auto server = std::make_unique<Server>(def, tensorflow::Env::Default(), *std::move(identity));
    if (absl::Status s = server->Open(options.local_device_mgr); !s.ok()) return s;
    *out = std::move(server);
    return absl::OkStatus();
  }
};

const bool g_registered = [] {
  tensorflow::ServerFactory::Register("ARCFLOW_SERVER", new Factory());
  return true;
}();

}  // namespace
}  // namespace arcflow::tf
