// SPDX-License-Identifier: Apache-2.0
// The resolver that names our collective, and the collective that TensorFlow then runs.
#include "plugins/tensorflow/transport/collectives.h"

#include <functional>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "arcflow/base/round_up.h"
#include "plugins/tensorflow/status.h"
#include "plugins/tensorflow/transport/groups.h"
#include "plugins/tensorflow/transport/recycled_output.h"
#include "plugins/tensorflow/transport/shared_tensor.h"
#include "plugins/tensorflow/transport/staging.h"
#include "plugins/tensorflow/transport/stats.h"
#include "plugins/tensorflow/transport/task_name.h"
#include "tensorflow/core/common_runtime/base_collective_executor.h"
#include "tensorflow/core/common_runtime/device_mgr.h"
#include "tensorflow/core/distributed_runtime/collective_param_resolver_distributed.h"
#include "tensorflow/core/distributed_runtime/device_resolver_distributed.h"
#include "tensorflow/core/distributed_runtime/rpc_collective_executor_mgr.h"
#include "tensorflow/core/framework/allocation_description.pb.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/device_attributes.pb.h"
#include "tensorflow/core/nccl/collective_communicator.h"

namespace arcflow::tf {
namespace {

using collective::Element;
using collective::Kind;
using collective::Merge;
using tensorflow::CancellationManager;
using tensorflow::CollectiveParams;
using tensorflow::CollGroupParams;
using tensorflow::DeviceAttributes;
using tensorflow::StatusCallback;
using tensorflow::Tensor;

constexpr char kName[] = "ArcflowCollective";
// Results of all-reduce from here on lie in one place for all ranks of a host.
constexpr std::size_t kShareBytes = 1 << 20;
// Of lists, which are sums of gradients, only those without a tensor above this: what updates a
// variable would write a shared one into fresh memory, which above malloc's largest threshold
// (DEFAULT_MMAP_THRESHOLD_MAX) has its pages made anew at each step.
constexpr std::size_t kMostSharedInList = 32 << 20;

// ---- which operations we cover, and what they are to the engine ----

std::optional<Element> ElementOf(tensorflow::DataType type) {
  switch (type) {
    case tensorflow::DT_HALF:
      return Element::kFloat16;
    case tensorflow::DT_BFLOAT16:
      return Element::kBFloat16;
    case tensorflow::DT_FLOAT:
      return Element::kFloat32;
    case tensorflow::DT_DOUBLE:
      return Element::kFloat64;
    case tensorflow::DT_INT32:
      return Element::kInt32;
    case tensorflow::DT_INT64:
      return Element::kInt64;
    default:
      break;
  }
  if (!tensorflow::DataTypeCanUseMemcpy(type)) return std::nullopt;
  switch (tensorflow::DataTypeSize(type)) {
    case 1:
      return Element::kByte;
    case 2:
      return Element::kTwo;
    case 4:
      return Element::kFour;
    case 8:
      return Element::kEight;
    case 16:
      return Element::kSixteen;
    default:
      return std::nullopt;
  }
}

std::optional<Kind> KindOf(tensorflow::CollectiveType type) {
  switch (type) {
    case tensorflow::REDUCTION_COLLECTIVE:
      return Kind::kAllReduce;
    case tensorflow::BROADCAST_COLLECTIVE:
      return Kind::kBroadcast;
    case tensorflow::GATHER_COLLECTIVE:
      return Kind::kAllGather;
    case tensorflow::ALL_TO_ALL_COLLECTIVE:
      return Kind::kAllToAll;
    case tensorflow::REDUCE_SCATTER_COLLECTIVE:
      return Kind::kReduceScatter;
    default:
      return std::nullopt;  // permute
  }
}

std::optional<Merge> MergeOf(const tensorflow::OpKernel* op) {
  if (op == nullptr) return Merge::kAdd;  // kReduceListOp
  const std::string name(op->type_string());
  if (name == "Add" || name == "AddV2") return Merge::kAdd;
  if (name == "Mul") return Merge::kMul;
  if (name == "Minimum") return Merge::kMin;
  if (name == "Maximum") return Merge::kMax;
  return std::nullopt;
}

/// Why TensorFlow has to run an operation; nothing when we can. Looks only at what is equal on all
/// ranks of a correct program, so that all decide alike. `nccl`: this TensorFlow has it.
std::optional<std::string> WhyNotCovered(const CollectiveParams& params, bool nccl) {
  const auto kind = KindOf(params.instance.type);
  if (!kind) return "collectives of this kind (permute)";
  const auto& device = params.group.device_type;
  if (device == tensorflow::DeviceType(tensorflow::DEVICE_GPU)) {
    // NCCL goes from GPU to GPU; ours by way of the host's memory, as TensorFlow's ring does.
    if (nccl && params.instance.impl_details.communication_hint != "ring") {
      return "collectives on GPUs, which NCCL runs (not with the hint RING)";
    }
  } else if (device != tensorflow::DeviceType(tensorflow::DEVICE_CPU)) {
    return "collectives on " + device.type_string();
  }
  if (params.group.group_size < 2) return "groups of one";
  if (params.group.group_size > collective::kMaxRanks) return "groups of very many ranks";
  const auto element = ElementOf(params.instance.data_type);
  if (!element) return "values of " + tensorflow::DataTypeString(params.instance.data_type);
  if (*kind == Kind::kAllReduce || *kind == Kind::kReduceScatter) {
    if (!collective::Reducible(*element)) {
      return "merging of " + tensorflow::DataTypeString(params.instance.data_type);
    }
    if (!MergeOf(params.merge_op)) return "another merge operation than add, mul, min, max";
    if (params.final_op != nullptr && params.final_op->type_string() != "Div" &&
        params.final_op->type_string() != "Identity") {
      return "another final operation than Id and Div";
    }
  }
  return std::nullopt;
}

// ---- the resolver ----

class Resolver : public tensorflow::CollectiveParamResolverDistributed {
 public:
  using Base = tensorflow::CollectiveParamResolverDistributed;
  Resolver(const tensorflow::ConfigProto& config, const tensorflow::DeviceMgr* devices,
           tensorflow::DeviceResolverDistributed* device_resolver,
           tensorflow::NcclCommunicatorInterface* nccl, tensorflow::WorkerCacheInterface* workers,
           const std::string& task, std::shared_ptr<const Identity> identity)
      : Base(config, devices, device_resolver, nccl, workers, task),
        nccl_(nccl != nullptr),
        groups_(std::make_shared<Groups>(std::move(identity), workers, task)) {}

  void CompleteParamsAsync(const DeviceAttributes& device, CollectiveParams* params,
                           CancellationManager* cancel, const StatusCallback& done) override {
    if (const auto why = WhyNotCovered(*params, nccl_)) {
      CountFallback(*why);
      return Base::CompleteParamsAsync(device, params, cancel, done);
    }
    if (const absl::Status aborted = Aborted(); !aborted.ok()) return done(aborted);
    bool first = false;
    const auto member = groups_->Find(params->group.group_key, device.name(), &first);
    groups_->WhenDecided(member, [=, this] { Complete(member, device, params, cancel, done); });
    if (first) Make(member, device, params, cancel);
  }

  void StartAbort(const absl::Status& status) override {
    groups_->Abort(status);
    Base::StartAbort(status);
  }

 private:
  absl::Status Aborted() {
    tensorflow::mutex_lock lock(status_mu_);
    return status_;
  }

  void Make(const std::shared_ptr<Member>& member, const DeviceAttributes& device,
            CollectiveParams* params, CancellationManager* cancel) {
    auto group = std::make_shared<CollGroupParams>(params->group);
    const auto groups = groups_;
    const std::string name = device.name();
    CompleteGroupAsync(device, group.get(), cancel, [=](const absl::Status& status) {
      if (!status.ok()) return groups->Fail(member, status);
      // On a thread of its own: it waits for other processes.
      tensorflow::Env::Default()->SchedClosure([=] { groups->Make(member, *group, name); });
    });
  }

  void Complete(const std::shared_ptr<Member>& member, const DeviceAttributes& device,
                CollectiveParams* params, CancellationManager* cancel, const StatusCallback& done) {
    switch (member->state) {
      case Member::State::kStock:
        CountFallback("operations of such groups");
        return Base::CompleteParamsAsync(device, params, cancel, done);
      case Member::State::kOurs:
        break;
      default:
        return done(member->status);
    }
    if (params->instance.type != tensorflow::BROADCAST_COLLECTIVE) {
      // All that TensorFlow would ask the group's leader for is known here.
      params->group = member->group;
      params->default_rank = member->index;
      Name(*member, params);
      return done(absl::OkStatus());
    }
    Base::CompleteParamsAsync(device, params, cancel, [=](const absl::Status& status) {
      if (status.ok()) Name(*member, params);  // who the source is had to be asked for
      done(status);
    });
  }

  static void Name(const Member& member, CollectiveParams* params) {
    params->instance.impl_details.collective_name = kName;
    params->group.runtime_details.communicator_key = member.token;
  }

  const bool nccl_;
  const std::shared_ptr<Groups> groups_;
};

// ---- the collective ----

/// Bytes of a tensor in a shared result, in which each begins where TensorFlow wants one to.
constexpr std::size_t Aligned(std::size_t bytes) {
  return RoundUp(bytes, tensorflow::Allocator::kAllocatorAlignment);
}

std::uint64_t Hash(std::uint64_t hash, std::uint64_t value) {
  return (hash ^ value) * 0x9e3779b97f4a7c15u + (hash >> 29);
}

std::uint64_t HashOf(const tensorflow::TensorShape& shape) {
  std::uint64_t hash = 1 + static_cast<std::uint64_t>(shape.dims());
  for (int d = 0; d < shape.dims(); ++d) {
    hash = Hash(hash, static_cast<std::uint64_t>(shape.dim_size(d)));
  }
  return hash;
}

class Collective : public tensorflow::CollectiveImplementationInterface {
 public:
  absl::Status InitializeCollectiveParams(CollectiveParams*) override { return absl::OkStatus(); }
  absl::Status InitializeCollectiveContext(
      std::shared_ptr<tensorflow::CollectiveContext> context) override {
    context_ = std::move(context);
    return context_->dev_mgr->LookupDevice(context_->device_name, &context_->device);
  }

  void Run(StatusCallback done) override {
    const CollectiveParams& params = *context_->col_params;
    // Only operations with keys of their own, those of version 1, are waited for by others; keys of
    // the others are new at each step, and TensorFlow would remember all of them.
    if (HasFixedKey()) context_->col_exec->UnblockDependencies(params);
    const auto member = FindMember(params.group.runtime_details.communicator_key);
    if (!member) return done(absl::AbortedError("the collective's group is gone"));
    collective::Operation operation;
    if (absl::Status s = Describe(*member, &operation); !s.ok()) return done(s);
    operation.defer = [executor = context_->col_exec](std::function<void()> work) {
      executor->RunClosure(std::move(work));
    };
    if (OnAccelerator(*context_->device, context_->op_ctx->output_alloc_attr(0))) {
      return RunStaged(member, std::move(operation), std::move(done));
    }
    // TensorFlow may end the kernel at a time limit while the engine still works: tensors stay
    // until the engine has done with them, and are nobody's but the kernel's when it hears of it.
    struct Held {
      std::vector<Tensor> tensors;
      std::vector<collective::Piece> pieces;
    };
    const auto held = std::make_shared<Held>();
    const auto shared = Reserve(*member, operation);
    operation.result_shared = shared.has_value();
    if (IsList()) {
      held->pieces = Pieces(shared, &held->tensors);
      operation.pieces = held->pieces;
    } else {
      operation.in = InputBytes(context_->input);
      operation.out = Place(shared, 0, context_->input, context_->output);
      if (context_->input != nullptr) held->tensors.push_back(*context_->input);
      held->tensors.push_back(*context_->output);
    }
    const auto keep = context_;
    operation.done = [done, keep, member, held](const Status& status) {
      held->tensors.clear();
      done(ToTf(status));
    };
    member->engine->Submit(std::move(operation));
  }

 private:
  bool HasFixedKey() const {
    const std::string_view type = context_->op_ctx->op_kernel().type_string();
    return !IsList() && !type.ends_with("V2") && !type.ends_with("V3");
  }
  bool IsList() const { return context_->op_ctx->op_kernel().type_string() == kReduceListOp; }

  /// A place for the result that all ranks of this host read, where there is one. Depends only on
  /// what is equal on all ranks.
  std::optional<collective::SharedResult> Reserve(const Member& member,
                                                  const collective::Operation& operation) {
    if (operation.what.kind != Kind::kAllReduce) return std::nullopt;
    auto* const kernel = context_->op_ctx;
    std::size_t bytes = 0;
    for (int i = 0; i < kernel->num_outputs(); ++i) {
      const std::size_t each = kernel->mutable_output(i)->TotalBytes();
      if (IsList() && each > kMostSharedInList) return std::nullopt;
      bytes += Aligned(each);
    }
    if (bytes < kShareBytes) return std::nullopt;
    return member.engine->Reserve(operation.key, operation.what, bytes);
  }

  /// Gives `output` its memory: `at` bytes into what is shared, or recycled. Returns where to
  /// write.
  static std::byte* Place(const std::optional<collective::SharedResult>& shared, std::size_t at,
                          const Tensor* input, Tensor* output) {
    if (!shared) {
      if (input == nullptr || input->data() != output->data()) RecycleUnder(output);
      return static_cast<std::byte*>(output->data());
    }
    *output = SharedTensor(std::shared_ptr<const std::byte>(shared->read, shared->read.get() + at),
                           output->dtype(), output->shape());
    CountOutput(OutputMemory::kShared);
    return shared->write + at;
  }

  /// Of the tensors of a list, which are added to `tensors`. Empty ones have no piece.
  std::vector<collective::Piece> Pieces(const std::optional<collective::SharedResult>& shared,
                                        std::vector<Tensor>* tensors) {
    std::vector<collective::Piece> pieces;
    std::size_t at = 0;
    auto* const kernel = context_->op_ctx;
    for (int i = 0; i < kernel->num_outputs(); ++i) {
      const Tensor& input = kernel->input(i);
      Tensor* const output = kernel->mutable_output(i);
      if (input.TotalBytes() == 0) continue;
      std::byte* const out = Place(shared, at, &input, output);
      at += Aligned(input.TotalBytes());
      tensors->insert(tensors->end(), {input, *output});
      pieces.push_back({InputBytes(&input), out, input.TotalBytes()});
    }
    return pieces;
  }

  static const std::byte* InputBytes(const Tensor* input) {
    return input == nullptr ? nullptr : static_cast<const std::byte*>(input->data());
  }

  /// From the accelerator to pinned memory, through the group, and back.
  void RunStaged(const std::shared_ptr<Member>& member, collective::Operation operation,
                 StatusCallback done) {
    auto* const device = context_->device;
    auto* const copier = context_->op_ctx->op_device_context();
    const Tensor output = *context_->output;
    const Tensor host = PinnedTensor(*device, output.dtype(), output.shape());
    if (!host.IsInitialized()) {
      return done(absl::ResourceExhaustedError("no pinned host memory for a collective"));
    }
    operation.out = static_cast<std::byte*>(host.data());
    operation.done = [=, keep = context_](const Status& status) {
      if (!status.ok()) return done(ToTf(status));
      StageIn(host, device, copier, output, [keep, done](const absl::Status& s) { done(s); });
    };
    if (context_->input == nullptr) return member->engine->Submit(std::move(operation));
    const auto shared = std::make_shared<collective::Operation>(std::move(operation));
    StageOut(*context_->input, device, copier,
             [=](const absl::Status& status, const Tensor& input) {
               if (!status.ok()) return done(status);
               shared->in = InputBytes(&input);
               shared->done = [input, finished = std::move(shared->done)](const Status& outcome) {
                 finished(outcome);
               };
               member->engine->Submit(std::move(*shared));
             });
  }

  absl::Status Describe(const Member& member, collective::Operation* operation) {
    const CollectiveParams& params = *context_->col_params;
    const Tensor* const input = context_->input;
    const Tensor& like = input != nullptr ? *input : *context_->output;
    auto& what = operation->what;
    what.kind = *KindOf(params.instance.type);
    what.element = *ElementOf(params.instance.data_type);
    what.count = static_cast<std::uint64_t>(like.NumElements());
    what.shape = HashOf(like.shape());
    if (what.kind == Kind::kAllReduce || what.kind == Kind::kReduceScatter) {
      what.merge = *MergeOf(params.merge_op);
      what.divide = params.final_op != nullptr && params.final_op->type_string() == "Div" ? 1 : 0;
    }
    if (what.kind == Kind::kAllReduce && what.element == Element::kFloat32) what.wire = member.wire;
    if (what.kind == Kind::kBroadcast) {
      const auto source = static_cast<std::size_t>(params.source_rank);
      if (source >= member.ranks.size()) return absl::InternalError("a broadcast has no source");
      what.root = static_cast<std::uint32_t>(member.ranks[source]);
    }
    if (IsList()) {
      what.count = static_cast<std::uint64_t>(params.instance.shape.num_elements());
      for (int i = 1; i < context_->op_ctx->num_outputs(); ++i) {
        what.shape = Hash(what.shape, HashOf(context_->op_ctx->input(i).shape()));
      }
    } else if (absl::Status s = CheckShapes(&what, like); !s.ok()) {
      return s;
    }
    operation->key = std::hash<std::string>()(context_->exec_key);
    const float limit = params.instance.impl_details.timeout_seconds;
    if (limit > 0) operation->deadline = Deadline::AfterSeconds(limit);
    return absl::OkStatus();
  }

  absl::Status CheckShapes(collective::Signature* what, const Tensor& input) {
    const auto ranks = static_cast<std::uint64_t>(context_->col_params->group.group_size);
    const auto out = static_cast<std::uint64_t>(context_->output->NumElements());
    const bool parted = what->kind == Kind::kAllToAll || what->kind == Kind::kReduceScatter;
    if (parted) {
      if (what->count % ranks != 0) {
        return absl::InvalidArgumentError("an input of " + input.shape().DebugString() +
                                          " cannot be parted between " + std::to_string(ranks) +
                                          " ranks");
      }
      what->count /= ranks;
    }
    const bool wide = what->kind == Kind::kAllToAll || what->kind == Kind::kAllGather;
    if (out != what->count * (wide ? ranks : 1)) {
      return absl::InternalError("an output of " + context_->output->shape().DebugString() +
                                 " does not fit an input of " + input.shape().DebugString());
    }
    return absl::OkStatus();
  }

  std::shared_ptr<tensorflow::CollectiveContext> context_;
};

tensorflow::CollectiveRegistration g_registration(kName, [] { return new Collective(); });

}  // namespace

bool IsOurs(const CollectiveParams& params) {
  return params.instance.impl_details.collective_name == kName;
}

tensorflow::CollectiveExecutorMgrInterface* NewCollectiveManager(
    const tensorflow::ConfigProto& config, const tensorflow::WorkerEnv* env,
    tensorflow::WorkerCacheInterface* workers, std::shared_ptr<const Identity> identity) {
  const std::string task = TaskOf(env->device_mgr->ListDevices()[0]->name());
  auto nccl = tensorflow::MaybeCreateNcclCommunicator(config);
  auto devices = std::make_unique<tensorflow::DeviceResolverDistributed>(env->device_mgr);
  auto resolver = std::make_unique<Resolver>(config, env->device_mgr, devices.get(), nccl.get(),
                                             workers, task, std::move(identity));
  return new tensorflow::RpcCollectiveExecutorMgr(config, env->device_mgr, std::move(devices),
                                                  std::move(resolver), std::move(nccl), workers,
                                                  task);
}

}  // namespace arcflow::tf
