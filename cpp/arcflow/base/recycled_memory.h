// SPDX-License-Identifier: Apache-2.0
// RecycledMemory: large buffers that keep their pages between steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace arcflow {

/// Page faults on fresh memory cost more than a whole all-reduce, or gathering, of that memory.
/// Buffers come back here and keep their pages; as many bytes are kept as were ever in use at once.
/// Threads: all from any. Buffers may outlive what asked for them, not this object.
class RecycledMemory {
 public:
  /// Never destroyed: tensors may give their memory back while the process ends.
  static RecycledMemory& Global();
  ~RecycledMemory();

  struct Buffer {
    std::byte* data = nullptr;  // null when the system has no memory; aligned to a page, from 2 MiB
                                // on to a large one
    std::size_t capacity = 0;
    bool recycled = false;  // its pages are there
  };
  /// At least `bytes` bytes of no particular content.
  Buffer Take(std::size_t bytes);
  void Give(Buffer buffer);

  /// Bytes that wait for reuse.
  std::size_t kept() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::size_t, std::vector<std::byte*>> free_;  // by capacity
  std::size_t kept_ = 0;
  std::size_t in_use_ = 0;
  std::size_t most_ = 0;  // in use at once
};

}  // namespace arcflow
