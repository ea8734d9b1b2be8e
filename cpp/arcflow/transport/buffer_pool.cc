// SPDX-License-Identifier: Apache-2.0
// Pooled and cached registrations.
#include "arcflow/transport/buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

namespace arcflow::transport {

struct PooledBuffer::Block {
  Block(Counters& c, std::byte* d, std::size_t n) : counters(&c), data(d), size_bytes(n) {}
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() {
    region.Deregister();  // nothing lands after it, so that unmapping is safe
    ::munmap(data, size_bytes);
    counters->pool_bytes.fetch_sub(size_bytes, std::memory_order_relaxed);
  }

  Counters* counters;
  std::byte* data;
  std::size_t size_bytes;
  Region region;
};

PooledBuffer::PooledBuffer(std::shared_ptr<BufferPool> pool, std::unique_ptr<Block> block)
    : pool_(std::move(pool)), block_(std::move(block)) {}

PooledBuffer::PooledBuffer(PooledBuffer&& other) noexcept = default;

PooledBuffer& PooledBuffer::operator=(PooledBuffer&& other) noexcept {
  if (this != &other) {
    Return();
    pool_ = std::move(other.pool_);
    block_ = std::move(other.block_);
  }
  return *this;
}

PooledBuffer::~PooledBuffer() { Return(); }

std::span<std::byte> PooledBuffer::bytes() const { return block_->region.bytes(); }

const RemoteRegion& PooledBuffer::remote() const { return block_->region.remote(); }

void PooledBuffer::Return() {
  if (block_ != nullptr) pool_->Give(std::move(block_));
  pool_.reset();
}

void PooledBuffer::ReturnRevoked() {
  if (block_ == nullptr) return;
  block_->region.Deregister();
  auto fresh = pool_->context_->Register({block_->data, block_->size_bytes}, Access::kReadWrite);
  if (fresh.ok()) {
    block_->region = std::move(*fresh);
    Return();
  } else {  // no random bytes: the block goes instead
    block_.reset();
    pool_.reset();
  }
}

BufferPool::BufferPool(Context& context) : context_(&context) {}

BufferPool::~BufferPool() = default;

std::shared_ptr<BufferPool> BufferPool::Create(Context& context) {
  return std::shared_ptr<BufferPool>(new BufferPool(context));
}

Result<PooledBuffer> BufferPool::Take(std::size_t size_bytes) {
  if (size_bytes > (std::size_t{1} << 46U)) {
    return ResourceExhausted("a buffer of " + std::to_string(size_bytes) + " bytes");
  }
  const std::size_t size = std::bit_ceil(std::max(size_bytes, kMinBytes));
  {
    std::lock_guard lock(mutex_);
    auto it = free_.find(size);
    if (it != free_.end() && !it->second.empty()) {
      auto block = std::move(it->second.back());
      it->second.pop_back();
      return PooledBuffer(shared_from_this(), std::move(block));
    }
  }
  // Faulted in here, so that no step pays for it.
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (data == MAP_FAILED) {
    return ResourceExhausted("buffer of " + std::to_string(size) +
                             " bytes: " + Status::FromErrno(errno, "mmap").ToString());
  }
  Counters& counters = context_->counters();
  counters.pool_allocations.fetch_add(1, std::memory_order_relaxed);
  counters.pool_bytes.fetch_add(size, std::memory_order_relaxed);
  auto block = std::make_unique<PooledBuffer::Block>(counters, static_cast<std::byte*>(data), size);
  ARC_ASSIGN(block->region, context_->Register({block->data, size}, Access::kReadWrite));
  return PooledBuffer(shared_from_this(), std::move(block));
}

void BufferPool::Give(std::unique_ptr<PooledBuffer::Block> block) {
  std::lock_guard lock(mutex_);
  free_[block->size_bytes].push_back(std::move(block));
}

Result<RegistrationCache::Entry> RegistrationCache::Find(std::span<std::byte> bytes,
                                                         Access access) {
  const std::byte* begin = bytes.data();
  const std::byte* end = begin + bytes.size();
  std::lock_guard lock(mutex_);
  for (auto it = by_start_.upper_bound(begin); it != by_start_.begin();) {
    --it;
    if (static_cast<std::size_t>(begin - it->first) > longest_) break;
    const auto& [region, has] = it->second;
    const auto covered = region->bytes();
    if (has == access && end <= covered.data() + covered.size()) {
      context_->counters().cache_hits.fetch_add(1, std::memory_order_relaxed);
      return Entry{region, static_cast<std::size_t>(begin - it->first)};
    }
  }
  ARC_ASSIGN(Region region, context_->Register(bytes, access));
  auto shared = std::make_shared<Region>(std::move(region));
  by_start_.emplace(begin, std::pair(shared, access));
  longest_ = std::max(longest_, bytes.size());
  return Entry{std::move(shared), 0};
}

void RegistrationCache::Invalidate(std::span<const std::byte> bytes) {
  std::vector<std::shared_ptr<Region>> gone;
  {
    std::lock_guard lock(mutex_);
    const std::byte* end = bytes.data() + bytes.size();
    for (auto it = by_start_.lower_bound(end); it != by_start_.begin();) {
      --it;
      if (it->first < bytes.data() &&
          static_cast<std::size_t>(bytes.data() - it->first) > longest_) {
        break;
      }
      const auto covered = it->second.first->bytes();
      if (covered.data() + covered.size() <= bytes.data()) continue;
      gone.push_back(it->second.first);
      it = by_start_.erase(it);
    }
  }
  for (const auto& region : gone) region->Deregister();  // waits: not under the lock
}

std::size_t RegistrationCache::size() const {
  std::lock_guard lock(mutex_);
  return by_start_.size();
}

}  // namespace arcflow::transport
