// SPDX-License-Identifier: Apache-2.0
// BufferMappings: one mapping a buffer, recognised by its inode when a new session hands it over
// again.
#include "arcflow/feed/reader_mappings.h"

#include <sys/stat.h>

#include <cerrno>
#include <utility>

namespace arcflow::feed {
namespace {

// Each mapping is one of the kernel's 65530 (vm.max_map_count); beyond this number they are made
// anew every pass.
constexpr std::size_t kMaxIdle = 16384;

}  // namespace

Result<std::shared_ptr<const Mapping>> BufferMappings::Get(std::uint64_t id, std::size_t size_bytes,
                                                           const Fd& fd) {
  const auto it = entries_.find(id);
  if (!fd.valid()) {
    if (it == entries_.end()) {
      return DataLoss("the agent named buffer " + std::to_string(id) + " without handing it over");
    }
    if (it->second.mapping->size_bytes() < size_bytes) {
      return DataLoss("buffer " + std::to_string(id) + " has " +
                      std::to_string(it->second.mapping->size_bytes()) + " bytes, not " +
                      std::to_string(size_bytes));
    }
    it->second.used = true;
    return it->second.mapping;
  }
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return Status::FromErrno(errno, "fstat");
  if (it != entries_.end() && it->second.device == st.st_dev && it->second.inode == st.st_ino &&
      it->second.mapping->size_bytes() >= size_bytes) {
    it->second.used = true;
    return it->second.mapping;
  }
  ARC_ASSIGN(Mapping mapping, Mapping::Map(fd, size_bytes, false, true));
  auto shared = std::make_shared<const Mapping>(std::move(mapping));
  entries_.insert_or_assign(id, Entry{shared, st.st_dev, st.st_ino, true});
  return shared;
}

void BufferMappings::DropUnused() {
  for (auto it = entries_.begin(); it != entries_.end();) {
    if (!std::exchange(it->second.used, false)) {
      it = entries_.erase(it);
    } else {
      ++it;
    }
  }
}

IdleMappings& IdleMappings::Instance() {
  static auto* const instance = new IdleMappings;  // readers may go after static destruction
  return *instance;
}

/// Forgets everything when the broker is another than before.
bool IdleMappings::Knows(int broker_fd) {
  struct stat st {};
  if (::fstat(broker_fd, &st) != 0) return false;
  if (std::exchange(broker_, st.st_ino) != st.st_ino) idle_.clear();
  return true;
}

BufferMappings IdleMappings::Take(int broker_fd, const std::string& feed) {
  const std::lock_guard lock(mutex_);
  if (!Knows(broker_fd)) return {};
  const auto it = idle_.find(feed);
  return it == idle_.end() ? BufferMappings() : std::exchange(it->second, BufferMappings());
}

void IdleMappings::Drop(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  for (auto& [feed, mappings] : idle_) mappings.Drop(id);
}

void IdleMappings::Give(int broker_fd, const std::string& feed, BufferMappings mappings,
                        bool complete) {
  if (complete) mappings.DropUnused();
  const std::lock_guard lock(mutex_);
  if (!Knows(broker_fd) || mappings.size() > kMaxIdle) return;
  BufferMappings& idle = idle_[feed];
  if (!complete) mappings.Merge(std::move(idle));
  idle = std::move(mappings);
}

}  // namespace arcflow::feed
