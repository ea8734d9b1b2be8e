// SPDX-License-Identifier: Apache-2.0
// ArcflowAllReduceList: the sum of several tensors over all ranks in one operation, read and
// written where they lie.
#include "absl/strings/str_cat.h"
#include "plugins/tensorflow/transport/collectives.h"
#include "tensorflow/core/framework/collective.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace arcflow::tf {
namespace {

using tensorflow::AsyncOpKernel;
using tensorflow::CollectiveParams;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

REGISTER_OP("ArcflowAllReduceList")
    .Input("inputs: N * T")
    .Input("group_size: int32")
    .Input("group_key: int32")
    .Input("instance_key: int32")
    .Input("ordering_token: Nordering_token * resource")
    .Output("outputs: N * T")
    .Attr("N: int >= 1")
    .Attr("T: {bfloat16, half, float, double, int32, int64}")
    .Attr("Nordering_token: int >= 0 = 0")
    .Attr("timeout_seconds: float = 0")
    .SetIsStateful()
    .SetIsDistributedCommunication()
    .SetShapeFn([](tensorflow::shape_inference::InferenceContext* c) {
      for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, c->input(i));
      return absl::OkStatus();
    })
    .Doc(R"doc(
What CollectiveReduceV2 with merge_op "Add" gives for the tensors laid end to end, without laying
them there. Groups that Arcflow's transport does not carry are an error (FailedPrecondition).
)doc");

absl::Status Scalar(OpKernelContext* context, int index, const char* name, int* value) {
  const Tensor& input = context->input(index);
  if (input.NumElements() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is a scalar, not of shape ", input.shape().DebugString()));
  }
  *value = input.unaligned_flat<tensorflow::int32>()(0);
  return absl::OkStatus();
}

/// Does what TensorFlow's own kernel does: completes the parameters, where the resolver names our
/// collective, and has the executor run it, which finds the list in this kernel's context.
class AllReduceListOp : public AsyncOpKernel {
 public:
  explicit AllReduceListOp(OpKernelConstruction* c) : AsyncOpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("N", &count_));
    OP_REQUIRES_OK(c, c->GetAttr("T", &type_));
    OP_REQUIRES_OK(c, c->GetAttr("timeout_seconds", &timeout_seconds_));
  }

  void ComputeAsync(OpKernelContext* context, DoneCallback done) override {
    auto* const params = new CollectiveParams();
    const auto finish = [params, context, done](const absl::Status& status) {
      if (!status.ok()) context->SetStatus(status);
      params->Unref();
      done();
    };
    if (absl::Status s = Fill(context, params); !s.ok()) return finish(s);
    auto* const executor = context->collective_executor();
    if (executor == nullptr) {
      return finish(absl::FailedPreconditionError("this server has no collectives"));
    }
    // It may block.
    executor->RunClosure([=] {
      executor->CompleteParamsAsync(
          context->device()->attributes(), params, context->cancellation_manager(),
          [=](const absl::Status& status) {
            if (!status.ok()) return finish(status);
            if (!IsOurs(*params)) {
              return finish(absl::FailedPreconditionError(
                  "lists of tensors are reduced by Arcflow's transport only, which does not carry "
                  "this group"));
            }
            const auto frame = context->frame_iter();
            executor->ExecuteAsync(
                context, params,
                absl::StrCat(params->group.group_key, ":", params->instance.instance_key, ":",
                             frame.frame_id, ":", frame.iter_id),
                finish);
          });
    });
  }

 private:
  absl::Status Fill(OpKernelContext* context, CollectiveParams* params) {
    params->name = name();
    params->group.device_type = tensorflow::DeviceType(tensorflow::DEVICE_CPU);
    if (absl::Status s = Scalar(context, count_, "group_size", &params->group.group_size); !s.ok())
      return s;
    if (absl::Status s = Scalar(context, count_ + 1, "group_key", &params->group.group_key);
        !s.ok())
      return s;
    auto& instance = params->instance;
    if (absl::Status s = Scalar(context, count_ + 2, "instance_key", &instance.instance_key);
        !s.ok())
      return s;
    instance.type = tensorflow::REDUCTION_COLLECTIVE;
    instance.data_type = type_;
    instance.impl_details.communication_hint = "auto";
    instance.impl_details.timeout_seconds = timeout_seconds_;
    tensorflow::int64 elements = 0;
    for (int i = 0; i < count_; ++i) {
      elements += context->input(i).NumElements();
      Tensor* output = nullptr;
      if (absl::Status s =
              context->forward_input_or_allocate_output({i}, i, context->input(i).shape(), &output);
          !s.ok())
        return s;
    }
    instance.shape = tensorflow::TensorShape({elements});
    return absl::OkStatus();
  }

  int count_ = 0;
  tensorflow::DataType type_ = tensorflow::DT_INVALID;
  float timeout_seconds_ = 0;
};

REGISTER_KERNEL_BUILDER(Name(kReduceListOp).Device(tensorflow::DEVICE_CPU), AllReduceListOp);

}  // namespace
}  // namespace arcflow::tf
