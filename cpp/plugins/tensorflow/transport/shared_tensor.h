// SPDX-License-Identifier: Apache-2.0
// SharedTensor: a tensor over a result that other processes read too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "tensorflow/core/framework/allocation_description.pb.h"
#include "tensorflow/core/framework/tensor.h"

namespace arcflow::tf {

/// Holds its place in the shared memory until the last tensor over it is gone. Not the owner of its
/// memory, so no kernel is given it to write its own output there (`Tensor::RefCountIsOne`).
class SharedResultBuffer final : public tensorflow::TensorBuffer {
 public:
  SharedResultBuffer(std::shared_ptr<const std::byte> place, std::size_t bytes)
      : TensorBuffer(const_cast<std::byte*>(place.get())),
        place_(std::move(place)),
        bytes_(bytes) {}
  std::size_t size() const override { return bytes_; }
  TensorBuffer* root_buffer() override { return this; }
  bool OwnsMemory() const override { return false; }
  void FillAllocationDescription(tensorflow::AllocationDescription* proto) const override {
    proto->set_requested_bytes(static_cast<std::int64_t>(bytes_));
    proto->set_allocator_name("arcflow_shared");
  }

 private:
  std::shared_ptr<const std::byte> place_;
  std::size_t bytes_;
};

/// A tensor over memory that the process cannot write (a write is a SIGSEGV). `place` begins at a
/// multiple of TensorFlow's alignment.
inline tensorflow::Tensor SharedTensor(std::shared_ptr<const std::byte> place,
                                       tensorflow::DataType type,
                                       const tensorflow::TensorShape& shape) {
  const auto bytes = static_cast<std::size_t>(shape.num_elements()) *
                     static_cast<std::size_t>(tensorflow::DataTypeSize(type));
  return tensorflow::Tensor(type, shape,
                            tensorflow::core::RefCountPtr<tensorflow::TensorBuffer>(
                                new SharedResultBuffer(std::move(place), bytes)));
}

}  // namespace arcflow::tf
