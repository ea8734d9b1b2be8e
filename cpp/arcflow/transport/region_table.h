// SPDX-License-Identifier: Apache-2.0
// RegionTable: the registered regions of a context, by key. Internal to this layer.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <unordered_map>

#include "arcflow/base/status.h"
#include "arcflow/transport/counters.h"
#include "arcflow/transport/gate.h"
#include "arcflow/transport/region.h"

namespace arcflow::transport {

/// Fills with random bytes of the system; Internal when it has none.
Status RandomBytes(std::span<std::uint8_t> out);

struct RegionRecord {
  RemoteRegion remote;
  std::byte* data = nullptr;
  Gate gate;
  ValidityTable::Word* word = nullptr;  // for peers that copy out by themselves
  std::uint64_t word_value = 0;
};

/// Threads: any. Lifetime: shared by the context, its regions and sessions.
class RegionTable : public std::enable_shared_from_this<RegionTable> {
 public:
  RegionTable(const NodeId& owner, Counters* counters) : owner_(owner), counters_(counters) {}

  Result<Region> Add(std::span<std::byte> bytes, Access access);
  /// The region with that key, if [offset, offset + n) lies in it and `wanted` is allowed.
  /// NotFound, OutOfRange or InvalidArgument otherwise, as the peer is told.
  Result<std::shared_ptr<RegionRecord>> Check(std::uint64_t key, std::uint64_t offset,
                                              std::uint64_t n, Access wanted) const;
  /// Takes it out, revokes it, waits until nobody is inside. Idempotent.
  void Remove(const std::shared_ptr<RegionRecord>& record);
  /// Revokes all; regions become empty shells.
  void RemoveAll();

  /// Called (without locks) with a closed gate that somebody may still be in, before waiting for
  /// it: a backend whose copies others run makes them end.
  void SetDrain(std::function<void(Gate&)> drain);
  void Drain(Gate& gate);
  ValidityTable& words() { return words_; }

 private:
  const NodeId owner_;
  Counters* const counters_;
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::uint64_t, std::shared_ptr<RegionRecord>> by_key_;
  std::mutex drain_mutex_;
  std::shared_ptr<const std::function<void(Gate&)>> drain_;
  ValidityTable words_;
};

}  // namespace arcflow::transport
