// SPDX-License-Identifier: Apache-2.0
// RecycledBuffer: recycled memory as the memory of a tensor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arcflow/base/recycled_memory.h"
#include "tensorflow/core/framework/allocation_description.pb.h"
#include "tensorflow/core/framework/tensor.h"

namespace arcflow::tf {

/// Gives its memory back to RecycledMemory::Global() when the last tensor over it is gone.
class RecycledBuffer final : public tensorflow::TensorBuffer {
 public:
  RecycledBuffer(RecycledMemory::Buffer buffer, std::size_t bytes)
      : TensorBuffer(buffer.data), buffer_(buffer), bytes_(bytes) {}
  ~RecycledBuffer() override { RecycledMemory::Global().Give(buffer_); }
  std::size_t size() const override { return bytes_; }
  TensorBuffer* root_buffer() override { return this; }
  void FillAllocationDescription(tensorflow::AllocationDescription* proto) const override {
    proto->set_requested_bytes(static_cast<std::int64_t>(bytes_));
    proto->set_allocated_bytes(static_cast<std::int64_t>(buffer_.capacity));
    proto->set_allocator_name("arcflow_recycled");
  }

 private:
  RecycledMemory::Buffer buffer_;
  std::size_t bytes_;
};

/// A tensor over recycled memory of the first `bytes` bytes of `buffer`, which must not be null.
inline tensorflow::Tensor RecycledTensor(RecycledMemory::Buffer buffer, std::size_t bytes,
                                         tensorflow::DataType type,
                                         const tensorflow::TensorShape& shape) {
  return tensorflow::Tensor(
      type, shape,
      tensorflow::core::RefCountPtr<tensorflow::TensorBuffer>(new RecycledBuffer(buffer, bytes)));
}

}  // namespace arcflow::tf
