// SPDX-License-Identifier: Apache-2.0
// Staging: tensors in an accelerator's memory travel by way of pinned host memory.
#pragma once

#include <functional>

#include "tensorflow/core/framework/allocator.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/types.h"

namespace arcflow::tf {

/// Whether a tensor that was made on `device` with these attributes lies in the device's memory.
bool OnAccelerator(const tensorflow::DeviceBase& device,
                   const tensorflow::AllocatorAttributes& attributes);

/// Room in host memory that the device copies from and to directly. It comes from TensorFlow's pool
/// for that, which pins its memory once and hands it out again, so a step costs no new
/// registration. An empty tensor (no buffer) when there is no memory left.
tensorflow::Tensor PinnedTensor(tensorflow::DeviceBase& device, tensorflow::DataType type,
                                const tensorflow::TensorShape& shape);

/// Copies a tensor of the device into pinned memory. `done` gets the copy, on whatever thread the
/// device calls back; it must not block. Errors: ResourceExhausted; those of the device.
void StageOut(const tensorflow::Tensor& tensor, tensorflow::Device* device,
              tensorflow::DeviceContext* context,
              std::function<void(const absl::Status&, const tensorflow::Tensor& host)> done);

/// Copies host memory into `output`, which lies on the device and has the same type and shape. Both
/// are kept until `done`. Errors: those of the device.
void StageIn(const tensorflow::Tensor& host, tensorflow::Device* device,
             tensorflow::DeviceContext* context, const tensorflow::Tensor& output,
             tensorflow::StatusCallback done);

}  // namespace arcflow::tf
