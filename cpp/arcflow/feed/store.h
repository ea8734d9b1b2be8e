// SPDX-License-Identifier: Apache-2.0
// BufferStore: the node's segment memory: who has which buffer, and what the budget allows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"

namespace arcflow::feed {

/// Decides which memory a writer gets: a free buffer of its feed, a new one within the budget, or a
/// new one in place of free ones that nobody can use any better. The sum of all buffers never
/// exceeds the budget. A buffer goes granted (being filled) → kept (closed) → free → granted …; it
/// belongs to one feed, because the feed's writer keeps it mapped. Memory that the store destroys
/// is freed when its last holder unmaps it: the ids go to the feeder with the grant that takes
/// their place, and to readers by TakeDestroyed(). Threads: one thread. Never blocks.
class BufferStore {
 public:
  explicit BufferStore(std::size_t budget_bytes) : budget_(budget_bytes) {}

  /// Buffers are whole pages; every size is rounded up to this.
  static constexpr std::size_t kPageBytes = 4096;
  static std::size_t RoundUp(std::size_t bytes);

  /// An id that no buffer or file of this node has or had.
  std::uint64_t NextId() { return next_id_++; }

  struct Grant {
    std::uint64_t buffer = 0;
    std::size_t bytes = 0;
    bool create =
        false;  // the writer makes a memfd of that size; else it has made this buffer before
    std::vector<std::uint64_t> drop;  // the feeder unmaps these before it makes the new one; empty
                                      // for a retired feed, whose memory the agent fills itself
  };
  /// Grants at least `bytes` (rounded up) if it can without taking memory from anybody.
  std::optional<Grant> TryGrant(const std::string& feed, std::size_t bytes);

  struct Buffer {
    enum class State { kGranted, kKept, kFree };
    std::string feed;
    std::size_t bytes = 0;
    State state = State::kGranted;
    Fd memfd;               // invalid until Adopt
    bool by_agent = false;  // made for a retired feed: no feeder ever had it mapped
  };
  /// The buffer of that id, or nullptr.
  const Buffer* Find(std::uint64_t buffer) const;

  /// Takes the memfd that the writer made for a granted buffer. InvalidArgument unless its size is
  /// what was granted and it is sealed against shrinking and growing (else a peer could make
  /// readers crash), or when there is one already.
  Status Adopt(std::uint64_t buffer, Fd memfd);
  /// The writer is through with a granted buffer.
  void Close(std::uint64_t buffer);
  /// The buffer is empty. One that never got its memfd, or whose feed is retired, is destroyed.
  void Free(std::uint64_t buffer);
  /// The feed has no writer any more: destroys its free buffers now and others when they become
  /// free. Granted buffers of the feed must have been closed or freed.
  void RetireFeed(const std::string& feed);

  /// The kept buffers of one feed are another's from now on.
  void Move(const std::string& from, const std::string& to);
  /// Destroys every buffer of the feed and forgets it.
  void Remove(const std::string& feed);

  /// Ids destroyed since the last call, for readers that may have them mapped.
  std::vector<std::uint64_t> TakeDestroyed();
  /// Ids of the feed's granted buffers.
  std::vector<std::uint64_t> Granted(const std::string& feed) const;

  std::size_t budget_bytes() const { return budget_; }
  std::size_t used_bytes() const { return used_; }
  std::size_t peak_bytes() const { return peak_; }
  std::size_t free_bytes() const { return free_; }
  /// Bytes of a feed that are not free: being filled, and all.
  std::size_t granted_bytes(const std::string& feed) const;
  std::size_t busy_bytes(const std::string& feed) const;

 private:
  struct FeedBytes {
    std::size_t granted = 0;
    std::size_t kept = 0;
    bool retired = false;
  };
  Grant Reuse(std::uint64_t id);
  Grant Create(const std::string& feed, std::size_t bytes);
  std::optional<std::uint64_t> LeastUseful(const std::string& feed) const;
  void Destroy(std::uint64_t buffer);
  void Leave(const Buffer& buffer);

  std::size_t budget_;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
  std::size_t free_ = 0;
  std::uint64_t next_id_ = 1;
  std::map<std::uint64_t, Buffer> buffers_;
  std::map<std::string, FeedBytes> feeds_;
  std::vector<std::uint64_t> destroyed_;       // not told to readers yet
  std::vector<std::uint64_t> feeder_to_drop_;  // not told to the feeder yet
};

}  // namespace arcflow::feed
