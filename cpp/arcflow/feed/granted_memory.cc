// SPDX-License-Identifier: Apache-2.0
// GrantedMemory: makes, finds and unmaps the buffers of a feeder.
#include "arcflow/feed/granted_memory.h"

#include <utility>

namespace arcflow::feed {

Result<GrantedMemory::Fresh> GrantedMemory::Make(const std::string& feed, std::size_t size_bytes) {
  Fresh fresh;
  ARC_ASSIGN(fresh.memfd, CreateMemfd("arcflow-" + feed, size_bytes));
  ARC_ASSIGN(fresh.mapping, Mapping::Map(fresh.memfd, size_bytes, true, true));
  ARC_TRY(SealForReaders(fresh.memfd));  // after mapping: this one stays the only writable one
  return fresh;
}

std::byte* GrantedMemory::Adopt(const std::string& feed, std::uint64_t buffer, Fresh fresh,
                                Fd* memfd) {
  *memfd = std::move(fresh.memfd);
  std::byte* base = fresh.mapping.data();
  buffers_.insert_or_assign(buffer,
                            Buffer{feed, std::make_shared<Mapping>(std::move(fresh.mapping))});
  return base;
}

Result<std::byte*> GrantedMemory::Create(const std::string& feed, std::uint64_t buffer,
                                         std::size_t size_bytes, Fd* memfd) {
  ARC_ASSIGN(Fresh fresh, Make(feed, size_bytes));
  return Adopt(feed, buffer, std::move(fresh), memfd);
}

Result<std::byte*> GrantedMemory::Find(std::uint64_t buffer, std::size_t size_bytes) const {
  const auto it = buffers_.find(buffer);
  if (it == buffers_.end() || it->second.mapping->size_bytes() < size_bytes) {
    return Internal("buffer " + std::to_string(buffer) + " of " + std::to_string(size_bytes) +
                    " bytes was never made by this feeder");
  }
  return it->second.mapping->data();
}

std::shared_ptr<void> GrantedMemory::Keep(std::uint64_t buffer) const {
  const auto it = buffers_.find(buffer);
  return it == buffers_.end() ? nullptr : it->second.mapping;
}

void GrantedMemory::Drop(const std::vector<std::uint64_t>& buffers) {
  for (const std::uint64_t id : buffers) buffers_.erase(id);
}

void GrantedMemory::DropFeed(const std::string& feed) {
  std::erase_if(buffers_, [&](const auto& entry) { return entry.second.feed == feed; });
}

std::size_t GrantedMemory::mapped_bytes() const {
  std::size_t sum = 0;
  for (const auto& [id, buffer] : buffers_) sum += buffer.mapping->size_bytes();
  return sum;
}

}  // namespace arcflow::feed
