// SPDX-License-Identifier: Apache-2.0
// GrantedMemory: the writable mappings of one feeder, whichever of its feeds they were made for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/mapping.h"
#include "arcflow/base/status.h"

namespace arcflow::feed {

/// Buffers that the agent granted and this process made. They stay mapped while the agent may grant
/// them again, so that recycled memory keeps its pages; what the agent gives up, and what belongs
/// to a feed that has ended, is unmapped, because a mapping holds memory that the budget no longer
/// counts. Threads: one thread at a time. Never blocks.
class GrantedMemory {
 public:
  /// A new buffer that is not known here yet.
  struct Fresh {
    Fd memfd;  // to publish
    Mapping mapping;
  };
  /// Makes and maps a buffer, its pages faulted in, sealed so that this mapping stays the only
  /// writable one. Errors: those of memfd and mmap. Threads: any.
  static Result<Fresh> Make(const std::string& feed, std::size_t size_bytes);
  /// Knows `fresh` as `buffer` from now on. `memfd` receives the descriptor to publish.
  std::byte* Adopt(const std::string& feed, std::uint64_t buffer, Fresh fresh, Fd* memfd);
  /// Make and Adopt.
  Result<std::byte*> Create(const std::string& feed, std::uint64_t buffer, std::size_t size_bytes,
                            Fd* memfd);
  /// The mapping of a buffer made before. Internal unless it is there and has `size_bytes`.
  Result<std::byte*> Find(std::uint64_t buffer, std::size_t size_bytes) const;
  /// Holds the mapping of a buffer beyond Drop and DropFeed; null for one that is not there.
  std::shared_ptr<void> Keep(std::uint64_t buffer) const;
  /// Unmaps the buffers that are still mapped.
  void Drop(const std::vector<std::uint64_t>& buffers);
  /// Unmaps every buffer of a feed that gets no more rows.
  void DropFeed(const std::string& feed);

  std::size_t mapped_bytes() const;

 private:
  struct Buffer {
    std::string feed;
    std::shared_ptr<Mapping> mapping;
  };
  std::map<std::uint64_t, Buffer> buffers_;
};

}  // namespace arcflow::feed
