// SPDX-License-Identifier: Apache-2.0
// BufferMappings: the agent's memory as readers of this process have it mapped, kept from one pass
// to the next.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "arcflow/base/fd.h"
#include "arcflow/base/mapping.h"
#include "arcflow/base/status.h"

namespace arcflow::feed {

/// Read-only mappings of the agent's buffers by id. Memory that is recycled stays mapped, with its
/// pages faulted in. Threads: one thread at a time.
class BufferMappings {
 public:
  /// The mapping of at least `size_bytes` of buffer `id`. `fd`, if valid, is the memory of that id
  /// from now on; it is mapped unless that very file is mapped already. Errors: DataLoss without
  /// memory for the id; InvalidArgument as Mapping::Map.
  Result<std::shared_ptr<const Mapping>> Get(std::uint64_t id, std::size_t size_bytes,
                                             const Fd& fd);
  /// The agent gave that memory up.
  void Drop(std::uint64_t id) { entries_.erase(id); }
  /// Unmaps what was not asked for since the last call.
  void DropUnused();
  /// Takes over what it has not itself.
  void Merge(BufferMappings other) { entries_.merge(other.entries_); }
  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    std::shared_ptr<const Mapping> mapping;
    dev_t device = 0;
    ino_t inode = 0;
    bool used = true;
  };
  std::map<std::uint64_t, Entry> entries_;
};

/// Mappings that no reader uses at the moment. Keras opens a new iterator, hence a new reader, for
/// every epoch; faulting the whole log in again would cost more than reading it. Threads: any.
/// Lifetime: of the process; holds the mappings of one broker, the one used last.
class IdleMappings {
 public:
  static IdleMappings& Instance();

  /// What was given for that feed of that broker, for the taker alone; empty if there is nothing.
  BufferMappings Take(int broker_fd, const std::string& feed);
  /// `complete`: the giver has used every buffer that there still is.
  void Give(int broker_fd, const std::string& feed, BufferMappings mappings, bool complete);
  /// The agent gave that memory up, of whichever feed it was.
  void Drop(std::uint64_t id);

 private:
  bool Knows(int broker_fd);

  std::mutex mutex_;
  // By mutex_:
  ino_t broker_ = 0;
  std::map<std::string, BufferMappings> idle_;
};

}  // namespace arcflow::feed
