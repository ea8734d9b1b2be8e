// SPDX-License-Identifier: Apache-2.0
// Memory whose pages are there, under what arrives from other tasks.
#pragma once

#include <cstddef>

#include "plugins/tensorflow/recycled_buffer.h"
#include "plugins/tensorflow/transport/stats.h"

namespace arcflow::tf {

/// Puts recycled memory under a host tensor of a megabyte and more that nothing has been written
/// to, and counts it (CountOutput): half of what a large tensor costs is new pages. A smaller one,
/// and one for which there is no memory, stays as it is.
inline void RecycleUnder(tensorflow::Tensor* tensor) {
  constexpr std::size_t kLeast = 1 << 20;
  const std::size_t bytes = tensor->TotalBytes();
  if (bytes < kLeast) return;
  const auto buffer = RecycledMemory::Global().Take(bytes);
  if (buffer.data == nullptr) return;
  CountOutput(buffer.recycled ? OutputMemory::kRecycled : OutputMemory::kNew);
  *tensor = RecycledTensor(buffer, bytes, tensor->dtype(), tensor->shape());
}

}  // namespace arcflow::tf
