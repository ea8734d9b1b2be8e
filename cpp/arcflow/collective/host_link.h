// SPDX-License-Identifier: Apache-2.0
// HostLink: streams of messages between a rank and its partners on other hosts, through memory that
// is registered once.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/transport/context.h"

namespace arcflow::collective {

/// Puts that are on their way from one place; counts them under the link's lock.
struct Flights {
  int out = 0;
};

/// From each partner comes one stream, into a ring of slots of ours; both ends know which message
/// comes next and how long it is. A sender has at most `slots` messages out that the receiver has
/// not released. Source memory is read until its Flights are zero again.
///
/// Threads: Send, Await, Release, AwaitSent and CancelAll by one thread at a time, the group's
/// worker; Stop from any; the rest before the first of these. Lifetime: the context must be gone
/// before the link.
class HostLink {
 public:
  /// Sizes, the same at all ranks.
  struct Sizes {
    std::size_t slot_bytes = 0;  // longest message; a multiple of 64
    std::uint32_t slots = 8;     // messages on their way, for each partner

    /// With more hosts messages are shorter, and the memory of a rank about the same.
    static Sizes For(int hosts);
  };
  static constexpr transport::Channel kDataChannel = 2;
  static constexpr transport::Channel kCreditChannel = 3;

  /// `broken` hears of a partner that breaks the rules, on a thread of the transport; `patrol` is
  /// called now and then by whoever waits.
  HostLink(int hosts, int host, const Sizes& sizes, std::function<void(const Status&)> broken,
           std::function<void()> patrol);

  /// Registers the rings and the handlers: before the context's address is handed out.
  Status Open(transport::Context& context);
  const transport::RemoteRegion& remote() const { return region_.remote(); }
  /// InvalidArgument when the partner's rings are not as long as ours.
  Status Attach(int host, std::shared_ptr<transport::Endpoint> to,
                const transport::RemoteRegion& rings);

  /// Starts to send `bytes` (at most slot_bytes) as the next message to `host`; waits while the
  /// partner's ring is full. Errors: DeadlineExceeded; Cancelled after Stop.
  Status Send(int host, std::span<const std::byte> bytes, Flights* flights,
              const Deadline& deadline);
  /// The next message from `host`, which has `bytes` bytes; valid until Release.
  Result<const std::byte*> Await(int host, std::size_t bytes, const Deadline& deadline);
  void Release(int host);
  /// Waits until nothing of `flights` is out.
  Status AwaitSent(const Flights& flights, const Deadline& deadline);

  /// All waits for what is not there end now, with Cancelled.
  void Stop();
  /// After Stop: takes back the memory of everything that is out; waits for running copies, never
  /// for a peer.
  void CancelAll();

  const Sizes& sizes() const { return sizes_; }
  struct Bytes {
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
    std::string backend;
  };
  /// What went to and came from a host.
  Bytes bytes(int host) const;
  /// Waits that had to sleep.
  std::uint64_t sleeps() const;

 private:
  struct Partner {
    std::shared_ptr<transport::Endpoint> endpoint;
    transport::RemoteRegion rings;
    std::uint64_t sent = 0;      // messages begun
    std::uint64_t credited = 0;  // of these, released by the partner
    std::uint64_t taken = 0;     // messages released by us
    // By slot: number and length of the message that lies there; a number is never used twice.
    std::vector<std::uint64_t> arrived;
    std::vector<std::uint64_t> lengths;
    std::uint64_t bytes_sent = 0;
    std::uint64_t bytes_received = 0;
  };
  struct Flight {
    std::shared_ptr<transport::Endpoint> endpoint;
    transport::OpId op = 0;
    Flights* flights = nullptr;
  };

  template <typename Ready>
  Status Wait(std::unique_lock<std::mutex>* lock, const Ready& ready, const Deadline& deadline);
  std::size_t RingBytes() const { return sizes_.slots * sizes_.slot_bytes; }
  std::byte* Slot(int host, std::uint64_t message);
  void OnData(const std::shared_ptr<transport::Endpoint>& from, std::span<const std::byte> notice);
  void OnCredit(const std::shared_ptr<transport::Endpoint>& from,
                std::span<const std::byte> message);
  void OnSent(std::uint64_t flight, const Status& status);
  Partner* Find(const transport::NodeId& node);

  const int host_;
  const Sizes sizes_;
  const std::function<void(const Status&)> broken_;
  const std::function<void()> patrol_;
  std::unique_ptr<std::byte, void (*)(void*)> memory_;
  transport::Region region_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  std::vector<Partner> partners_;  // by host; the own one is unused
  std::map<std::uint64_t, Flight> flights_;
  std::uint64_t next_flight_ = 1;
  std::uint64_t sleeps_ = 0;
};

}  // namespace arcflow::collective
