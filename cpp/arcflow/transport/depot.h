// SPDX-License-Identifier: Apache-2.0
// Depot: memory that a peer is told of and fetches by itself; held until it has.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "arcflow/base/status.h"
#include "arcflow/transport/context.h"

namespace arcflow::transport {

/// What a depot has done; each number is exact on its own.
struct DepotCounters {
  std::uint64_t offered = 0;  // tickets made
  std::uint64_t bytes_offered = 0;
  std::uint64_t fetched = 0;  // by this side, with OK
  std::uint64_t bytes_fetched = 0;
  std::uint64_t held = 0;     // now
  std::uint64_t expired = 0;  // let go unfetched
};

/// One end of exchanges in which whoever owns the bytes hands out a ticket (by any road; it is
/// worthless without the run's secret) and whoever holds the ticket fetches them.
///
/// Memory: what is offered is held until it was fetched, or its peer went down, or `patience` has
/// passed and anything happens (a peer that never saw its ticket); then the owner's hold is
/// dropped, mostly on a thread of the transport. What is fetched into is the caller's again when
/// `done` is called or Cancel() returned (Endpoint says more).
///
/// Threads: all from any. Lifetime: the destructor ends all fetches with Cancelled and drops all
/// holds; it must not run on a thread of the transport.
class Depot {
 public:
  /// Errors as of Context::Create.
  static Result<std::unique_ptr<Depot>> Open(
      const ContextOptions& options, std::chrono::nanoseconds patience = std::chrono::minutes(2));
  ~Depot();
  Depot(const Depot&) = delete;
  Depot& operator=(const Depot&) = delete;

  /// Who this is, for Offer() at the other side; 32 hexadecimal digits.
  const std::string& name() const;

  /// Offers `bytes`, kept alive by `hold`, to the depot of that name. Cost: a registration, no
  /// copy. InvalidArgument for no bytes or no name; Unavailable when no connection to it is up.
  Result<std::string> Offer(std::span<const std::byte> bytes, std::shared_ptr<const void> hold,
                            std::string_view peer);

  class Fetch;
  /// Fetches what the ticket stands for; `into` must be as long. Does not block. Errors (to `done`,
  /// exactly once, inside this call or on a thread of the transport): InvalidArgument for what is
  /// no ticket or of another length; NotFound when it was let go; Unavailable; Cancelled.
  void Start(const std::shared_ptr<Fetch>& fetch, std::string_view ticket,
             std::span<std::byte> into, Done done);

  /// How others reach this depot; text.
  const std::string& address() const;
  /// Connects with the depot of that address, which both ends need before tickets can go either
  /// way; its name. Blocks. Errors as of Context::Connect.
  Result<std::string> Reach(std::string_view address, Deadline deadline);
  /// The backend of the connection to the depot of that name; empty when none is up. Never blocks.
  std::string BackendTo(std::string_view peer) const;

  DepotCounters counters() const;
  /// Bytes by backend, as the context counts them.
  Counters& traffic();

 private:
  struct State;
  explicit Depot(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// One fetch; made by who starts it, so that it can be cancelled at any time. Threads: any.
class Depot::Fetch {
 public:
  /// Ends it early; `into` is the caller's again when this returns. Waits for a running copy, never
  /// for the peer.
  void Cancel();

 private:
  friend class Depot;
  std::mutex mutex_;
  bool cancelled_ = false;
  std::shared_ptr<Endpoint> endpoint_;
  OpId op_ = 0;
};

}  // namespace arcflow::transport
