// SPDX-License-Identifier: Apache-2.0
// Staging: copies between an accelerator and pinned host memory.
#include "plugins/tensorflow/transport/staging.h"

#include <memory>
#include <string>
#include <utility>

#include "tensorflow/core/framework/device_base.h"

namespace arcflow::tf {
namespace {

using tensorflow::Tensor;

absl::Status NoContext(const tensorflow::DeviceBase& device) {
  return absl::InternalError("arcflow: " + device.attributes().name() +
                             " gave no context to copy with");
}

}  // namespace

bool OnAccelerator(const tensorflow::DeviceBase& device,
                   const tensorflow::AllocatorAttributes& attributes) {
  return device.attributes().device_type() != tensorflow::DEVICE_CPU && !attributes.on_host();
}

Tensor PinnedTensor(tensorflow::DeviceBase& device, tensorflow::DataType type,
                    const tensorflow::TensorShape& shape) {
  tensorflow::AllocatorAttributes pinned;
  pinned.set_on_host(true);
  pinned.set_gpu_compatible(true);
  return Tensor(device.GetAllocator(pinned), type, shape);
}

void StageOut(const Tensor& tensor, tensorflow::Device* device, tensorflow::DeviceContext* context,
              std::function<void(const absl::Status&, const Tensor& host)> done) {
  if (context == nullptr) return done(NoContext(*device), {});
  const auto host = std::make_shared<Tensor>(PinnedTensor(*device, tensor.dtype(), tensor.shape()));
  if (!host->IsInitialized()) {
    return done(absl::ResourceExhaustedError("arcflow: no pinned host memory for a tensor of " +
                                             std::to_string(tensor.TotalBytes()) + " bytes"),
                {});
  }
  const auto source = std::make_shared<const Tensor>(tensor);
  context->CopyDeviceTensorToCPU(
      source.get(), "arcflow", device, host.get(),
      [source, host, done = std::move(done)](const absl::Status& status) { done(status, *host); });
}

void StageIn(const Tensor& host, tensorflow::Device* device, tensorflow::DeviceContext* context,
             const Tensor& output, tensorflow::StatusCallback done) {
  if (context == nullptr) return done(NoContext(*device));
  const auto from = std::make_shared<const Tensor>(host);
  const auto to = std::make_shared<Tensor>(output);
  context->CopyCPUTensorToDevice(
      from.get(), device, to.get(),
      [from, to, done = std::move(done)](const absl::Status& status) { done(status); });
}

}  // namespace arcflow::tf
