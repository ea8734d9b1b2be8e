// SPDX-License-Identifier: Apache-2.0
// RecycledMemory: anonymous mappings by size class, with large pages where the system gives them.
#include "arcflow/base/recycled_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

namespace arcflow {
namespace {

constexpr std::size_t kLargePage = 2 << 20;

constexpr std::size_t kSmallPage = 4096;

/// Eighths of a power of two, so at most an eighth is wasted and near sizes share buffers; whole
/// large pages where there is at least one.
std::size_t Capacity(std::size_t bytes) {
  const std::size_t page = bytes < kLargePage ? kSmallPage : kLargePage;
  const std::size_t step = std::max(page, std::bit_floor(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

void* MapAnonymous(std::size_t bytes) {
  return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
}

std::byte* Fresh(std::size_t capacity) {
  if (capacity < kLargePage) {
    void* small = MapAnonymous(capacity);
    return small == MAP_FAILED ? nullptr : static_cast<std::byte*>(small);
  }
  // One large page more, cut off again at both ends, for the alignment.
  void* base = MapAnonymous(capacity + kLargePage);
  if (base == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(base);
  const auto odd = reinterpret_cast<std::uintptr_t>(begin) % kLargePage;
  const std::size_t head = odd == 0 ? 0 : kLargePage - odd;
  if (head > 0) ::munmap(begin, head);
  if (head < kLargePage) ::munmap(begin + head + capacity, kLargePage - head);
  ::madvise(begin + head, capacity, MADV_HUGEPAGE);  // a wish
  return begin + head;
}

}  // namespace

RecycledMemory& RecycledMemory::Global() {
  static auto* const global = new RecycledMemory();
  return *global;
}

RecycledMemory::~RecycledMemory() {
  for (const auto& [capacity, buffers] : free_) {
    for (std::byte* data : buffers) ::munmap(data, capacity);
  }
}

RecycledMemory::Buffer RecycledMemory::Take(std::size_t bytes) {
  Buffer buffer{nullptr, Capacity(std::max<std::size_t>(bytes, 1)), false};
  {
    const std::lock_guard lock(mutex_);
    in_use_ += buffer.capacity;
    most_ = std::max(most_, in_use_);
    const auto found = free_.find(buffer.capacity);
    if (found != free_.end() && !found->second.empty()) {
      buffer.data = found->second.back();
      found->second.pop_back();
      kept_ -= buffer.capacity;
      buffer.recycled = true;
      return buffer;
    }
  }
  buffer.data = Fresh(buffer.capacity);
  if (buffer.data == nullptr) {
    const std::lock_guard lock(mutex_);
    in_use_ -= buffer.capacity;
  }
  return buffer;
}

void RecycledMemory::Give(Buffer buffer) {
  if (buffer.data == nullptr) return;
  std::vector<std::pair<std::byte*, std::size_t>> surplus;
  {
    const std::lock_guard lock(mutex_);
    in_use_ -= buffer.capacity;
    free_[buffer.capacity].push_back(buffer.data);
    kept_ += buffer.capacity;
    // Sizes that are out of use make room: the smallest first, as large ones cost most to fault in.
    for (auto at = free_.begin(); kept_ + in_use_ > most_ && at != free_.end(); ++at) {
      while (!at->second.empty() && kept_ + in_use_ > most_) {
        surplus.emplace_back(at->second.front(), at->first);
        at->second.erase(at->second.begin());
        kept_ -= at->first;
      }
    }
  }
  for (const auto& [data, capacity] : surplus) ::munmap(data, capacity);
}

std::size_t RecycledMemory::kept() const {
  const std::lock_guard lock(mutex_);
  return kept_;
}

}  // namespace arcflow
