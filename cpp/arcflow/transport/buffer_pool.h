// SPDX-License-Identifier: Apache-2.0
// BufferPool and RegistrationCache: memory that is allocated and registered once and reused in
// every step.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/transport/context.h"

namespace arcflow::transport {

class BufferPool;

/// A registered buffer on loan; goes back to its pool when destroyed. Move-only. The registration
/// stays valid in the pool: a peer that still has work in flight for it when it is returned writes
/// into memory that another borrower may hold, so end what concerns it first.
class PooledBuffer {
 public:
  PooledBuffer() = default;
  PooledBuffer(PooledBuffer&& other) noexcept;
  PooledBuffer& operator=(PooledBuffer&& other) noexcept;
  ~PooledBuffer();

  bool valid() const { return block_ != nullptr; }
  /// At least as long as asked for; page aligned.
  std::span<std::byte> bytes() const;
  const RemoteRegion& remote() const;
  /// Gives it back with a fresh key, so that nothing in flight for the old one can land: for a
  /// buffer whose operation failed. Waits as Region::Deregister.
  void ReturnRevoked();

 private:
  friend class BufferPool;
  struct Block;
  PooledBuffer(std::shared_ptr<BufferPool> pool, std::unique_ptr<Block> block);
  void Return();

  std::shared_ptr<BufferPool> pool_;
  std::unique_ptr<Block> block_;
};

/// Buffers by size class (powers of two from kMinBytes), faulted in when made, kept until the pool
/// dies. Counts into Counters::pool_allocations.
/// Threads: any. Lifetime: buffers on loan keep the pool; both must be gone before the context.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  static constexpr std::size_t kMinBytes = 4096;

  static std::shared_ptr<BufferPool> Create(Context& context);
  ~BufferPool();

  /// A buffer of `size_bytes` or more, a used one if there is any. ResourceExhausted when the
  /// system has no memory.
  Result<PooledBuffer> Take(std::size_t size_bytes);

 private:
  friend class PooledBuffer;
  explicit BufferPool(Context& context);
  void Give(std::unique_ptr<PooledBuffer::Block> block);

  Context* context_;
  std::mutex mutex_;
  std::map<std::size_t, std::vector<std::unique_ptr<PooledBuffer::Block>>> free_;  // by size
};

/// Registrations of memory that others own and keep (variables, arenas), found by address range.
/// The owner promises to call Invalidate() before it unmaps or frees memory it showed here; memory
/// without such an owner is registered for one operation instead (Context::Register).
/// Threads: any.
class RegistrationCache {
 public:
  explicit RegistrationCache(Context& context) : context_(&context) {}

  /// A registration that covers `bytes` with exactly `access`, and where in it `bytes` starts. Made
  /// if there is none; ranges that overlap without covering are registered beside each other.
  struct Entry {
    std::shared_ptr<Region> region;
    std::size_t offset_bytes = 0;
  };
  Result<Entry> Find(std::span<std::byte> bytes, Access access);
  /// Drops and deregisters everything that touches `bytes`, also what callers still hold; when it
  /// returns nothing can land there.
  void Invalidate(std::span<const std::byte> bytes);
  std::size_t size() const;

 private:
  Context* context_;
  mutable std::mutex mutex_;
  std::multimap<const std::byte*, std::pair<std::shared_ptr<Region>, Access>> by_start_;
  std::size_t longest_ = 0;  // no entry is longer: bounds the search to the left
};

}  // namespace arcflow::transport
