// SPDX-License-Identifier: Apache-2.0
// Group: ranks of one host that run collectives together through shared memory made once.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/board.h"
#include "arcflow/collective/engine.h"
#include "arcflow/collective/operation.h"
#include "arcflow/collective/pending.h"

namespace arcflow::collective {

/// One rank's membership in a group of one host.
/// Memory: nothing is allocated or mapped by an operation but its queue entry.
class Group final : public Engine {
 public:
  /// Rank `rank` on a board that all ranks map. `probe` is for tests.
  Group(std::shared_ptr<BoardMemory> memory, int rank, void (*probe)(Moment) = nullptr);
  ~Group() override;

  int rank() const override { return board_.rank(); }
  int ranks() const override { return board_.ranks(); }

  std::optional<SharedResult> Reserve(std::uint64_t key, const Signature& what,
                                      std::size_t bytes) override;
  void Submit(Operation operation) override;
  void Fail(const Status& failure) override;
  Status failure() const override;
  GroupCounters counters() const override;

 private:
  friend class Blocks;
  struct Tally {
    std::atomic<std::uint64_t> operations{0}, small{0}, in{0}, out{0}, shared{0}, busy_ns{0};
    std::array<std::atomic<std::uint64_t>, kMaxRanks> sent{}, received{};
  };

  void Work();  // runs operations in their order until none is left; `mutex_` is not held
  Status Next(Operation* operation, bool* agreed);
  Status AwaitOrder(const Deadline& deadline, std::uint64_t key);
  bool Give(Operation* operation, const Status& status);
  Status Execute(const Operation& operation);
  Status Judge(const std::optional<bool>& waited, const char* what);
  void Probe(Moment moment) const {
    if (probe_ != nullptr) probe_(moment);
  }

  Board board_;
  void (*probe_)(Moment) = nullptr;
  mutable std::mutex mutex_;
  Pending pending_;
  Status failure_;
  std::atomic<bool> stopped_{false};
  // The worker's own.
  std::uint64_t ticket_ = 0;
  std::uint64_t blocks_ = 0;  // used by all operations so far
  std::uint64_t rounds_ = 0;
  Tally tally_;
};

}  // namespace arcflow::collective
