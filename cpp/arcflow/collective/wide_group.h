// SPDX-License-Identifier: Apache-2.0
// WideGroup: ranks of several hosts that run collectives together, over the transport between hosts
// and through shared memory within each.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/agreement.h"
#include "arcflow/collective/board.h"
#include "arcflow/collective/engine.h"
#include "arcflow/collective/host_link.h"
#include "arcflow/collective/layout.h"
#include "arcflow/collective/operation.h"
#include "arcflow/collective/pending.h"
#include "arcflow/transport/context.h"

namespace arcflow::collective {

/// How many chunks of one operation are on their way at most.
inline constexpr std::size_t kWideDepth = 5;

/// What a rank tells the others so that they can reach it.
struct Contact {
  std::string address;             // transport::Context::address()
  transport::RemoteRegion region;  // its rings, HostLink::remote()
};

/// One rank's membership in a group whose ranks are on two hosts or more.
///
/// Results: values of one host are merged first, in order of rank, then those of the hosts, in
/// order of their lowest ranks. With a Wire other than kSame what a host sends is rounded to that
/// type, and so is the result; all ranks still have the same.
/// Order: rank 0 hears of every arrival and tells all what comes next. Death: each rank is
/// connected with rank 0, which sees it first and tells all; a rank that sees another go and hears
/// nothing from rank 0 gives up by itself half a second later.
/// Memory: rings, scratch and connections are made once.
/// Threads: as Engine says; handlers run on the context's threads.
class WideGroup final : public Engine {
 public:
  /// A rank that others cannot reach yet. Errors as of Context::Create.
  static Result<std::shared_ptr<WideGroup>> Open(Layout layout,
                                                 const transport::ContextOptions& options,
                                                 void (*probe)(Moment) = nullptr);
  ~WideGroup() override;
  Contact contact() const;
  /// Who the others are, by rank; before any of them learns where rank 0 is.
  void Introduce(std::vector<Contact> contacts);
  /// Connects with all that this rank has to do with, and waits until every rank of the group has
  /// done so. `local`: the ranks of this host, null when there is one. Blocks.
  Status Meet(std::shared_ptr<Engine> local, const Deadline& deadline);

  int rank() const override { return layout_.rank(); }
  int ranks() const override { return layout_.ranks(); }
  void Submit(Operation operation) override;
  void Fail(const Status& failure) override;
  Status failure() const override;
  GroupCounters counters() const override;

 private:
  friend class WideBlocks;
  struct Word;  // what ranks say to each other; wide_word.h
  struct Tally {
    std::atomic<std::uint64_t> operations{0}, small{0}, in{0}, out{0}, busy_ns{0};
  };

  WideGroup(Layout layout, void (*probe)(Moment));
  Status Start(const transport::ContextOptions& options);
  Status Connect(int rank, const Deadline& deadline);
  Status AwaitConnection(int rank, const Deadline& deadline);
  Status AwaitAll(const Deadline& deadline);

  void Work();
  Status Next(Operation* operation, bool* agreed);
  Status AwaitOrder(std::unique_lock<std::mutex>* lock);
  Status NameTheMissing(std::uint64_t key);
  Status AwaitFailure(std::chrono::milliseconds patience);
  bool Give(Operation* operation, const Status& status);
  Status Execute(const Operation& operation);
  Status ReservePacked();
  /// The failure of the group, which others may be about to tell, else `seen`.
  Status Verdict(const Status& seen);
  Status FailAndWait(const Status& failure);
  void Patrol();

  void Say(int rank, const Word& word, std::string_view text = {});
  void SayToAll(const Word& word, std::string_view text = {});
  void OnWord(const std::shared_ptr<transport::Endpoint>& from, std::span<const std::byte> bytes);
  void OnDown(const std::shared_ptr<transport::Endpoint>& peer, const Status& status);
  void Hear(int from, const Word& word, const std::string& text);
  void Enter(int rank, std::uint64_t key, const Signature& what);
  void Lost(int rank, const std::string& why);
  void Probe(Moment moment) const {
    if (probe_ != nullptr) probe_(moment);
  }

  const Layout layout_;
  void (*const probe_)(Moment);
  HostLink link_;
  std::shared_ptr<Engine> local_;  // under mutex_ while the group is made
  std::unique_ptr<std::byte, void (*)(void*)> scratch_;
  std::unique_ptr<std::byte, void (*)(void*)> packed_;  // from the first operation that packs
  std::array<Flights, 2 * kWideDepth> flights_;         // the worker's own: by chunk and step

  std::mutex agreement_mutex_;  // also keeps what is told of the order in order
  Agreement agreement_;         // rank 0 only

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Contact> contacts_;
  std::map<transport::NodeId, int> rank_of_;
  std::vector<std::shared_ptr<transport::Endpoint>> endpoints_;  // by rank; null: not connected
  Pending pending_;
  std::deque<OrderEntry> order_;
  std::uint64_t ready_ = 0;  // bit r: rank r has met all that it needs
  bool open_ = false;
  bool failing_ = false;  // others are being told
  Status failure_;
  struct Suspicion {
    int rank;
    std::string why;
    Deadline::Clock::time_point since;
  };
  std::optional<Suspicion> suspicion_;

  std::uint64_t local_key_ = 0;  // the worker's own
  Tally tally_;
  std::unique_ptr<transport::Context> context_;  // last: its threads use all the rest
};

}  // namespace arcflow::collective
