// SPDX-License-Identifier: Apache-2.0
// FeedService: the agent's side of feeding: grants memory to the feeder, keeps the logs, answers
// readers.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/feed/balance.h"
#include "arcflow/feed/steps.h"

namespace arcflow::feed {

enum class Cache : int { kAuto = 0, kMemory = 1, kDisk = 2, kNone = 3 };
Result<Cache> CacheFromName(const std::string& name);

struct FeedOptions {
  columnar::Schema schema;
  Cache cache = Cache::kAuto;
  bool balance = false;  // ranks with more rows hand some to ranks with fewer; not with kNone
  /// Ranks mix their rows for every shuffled pass but the first: readers then find
  /// "name@seed.epoch" (exchange.h). Needs `balance`.
  bool exchange = false;
};

struct ServiceOptions {
  int rank = 0;
  int size = 1;
  std::map<std::string, FeedOptions> feeds;
  std::size_t feed_memory_bytes = 0;  // bound on the sum of all buffers of this node
  std::size_t segment_bytes =
      0;  // usual size of a segment, for max_leases; 0: learnt from what writers ask for
  std::vector<std::string> local_dirs;  // for spilled segments; tried in order
};

/// Owns buffers, logs and reader sessions of one node. Driven by its owner's event loop: the owner
/// polls the descriptors and calls the On… functions; the service never blocks (but for writing a
/// spilled segment to disk) and has no thread. Threads: one thread. Lifetime: destroying it closes
/// every descriptor; memory lives on while a node maps it.
class FeedService {
 public:
  /// `send` hands a packet for the feeder to the owner. `changed(feed)` is called after rows or the
  /// end of a local feed changed.
  struct Callbacks {
    std::function<void(const nlohmann::json&)> send_to_feeder;
    std::function<void(const std::string& feed)> rows_changed;
    /// All ranks have all rows of a balanced feed, and some of Moves(feed) concern this one.
    std::function<void(const std::string& feed)> balanced = {};
    /// This rank has all rows of a feed with `exchange` that it will ever have: others may take
    /// them for their passes.
    std::function<void(const std::string& feed)> settled = {};
    /// A pass of exchanged rows, for which rows may be on their way, is not wanted any more.
    std::function<void(const std::string& feed)> dropped = {};
  };
  FeedService(ServiceOptions options, Callbacks callbacks);
  ~FeedService();

  /// A packet of the feeder: `acquire`, `publish`, `end`. InvalidArgument: the feeder broke the
  /// protocol.
  Status OnFeederPacket(const nlohmann::json& body, std::vector<Fd> fds);
  /// A new reader session (the broker's `open`): takes the socket, sends `schema` or `error`.
  /// Returns its descriptor for polling. The name of a pass of exchanged rows makes that pass.
  Result<int> AddReader(const std::string& feed, Fd socket);
  /// The session's socket is readable or closed. False: the session has ended, stop polling it.
  bool OnReaderReadable(int descriptor);

  /// Adds a feed after the start. AlreadyExists when there is one of that name.
  Status AddFeed(const std::string& name, FeedOptions options);
  /// Forgets a feed and its rows: at once, or when its last reader session ends. Nothing to do for
  /// one that is not there.
  void RemoveFeed(const std::string& name);
  /// No more rows of a feed that has no writer. Idempotent. NotFound.
  Status EndFeed(const std::string& name);
  /// All rows of `stage`, which has ended and was never read, become the newest of `target`,
  /// without a copy. Errors: NotFound; InvalidArgument when `target` has ended.
  Status Splice(const std::string& stage, const std::string& target);
  /// Refuses parked and later `acquire`s of one feed.
  void RefuseFeed(const std::string& name, const Status& why);
  /// How far its writers are ahead of a feed's readers, in bytes.
  std::uint64_t DepthBytes(const std::string& name) const;
  /// When a reader last got rows of the feed; the clock's epoch if none ever did.
  std::chrono::steady_clock::time_point LastRead(const std::string& name) const;

  /// What other ranks have, as the coordinator says; `ranks` has `size` entries (this rank's own
  /// entry is ignored).
  void SetRanks(const std::string& feed, const std::vector<RankRows>& ranks);
  /// This rank's own rows, as its feeder brought them: those that it hands to others count here.
  RankRows Local(const std::string& feed) const;

  // Rows that ranks hand one another (docs/design/feed.md, "Uneven ranks" and "Exchange of rows"):
  // service_balance.cc, service_exchange.cc. `feed` may be a pass of exchanged rows: rows are then
  // given from the log of the feed that it is a pass of, which keeps them.

  /// What this rank gives and takes, in order; empty before `balanced` was called.
  std::vector<Move> Moves(const std::string& feed) const;
  /// Whether there is such a feed, and ranks exchange its rows between passes.
  bool Exchanges(const std::string& feed) const;
  /// A run of rows that lie in one segment, for another rank to take.
  struct Piece {
    std::uint64_t segment = 0;
    std::uint64_t rows = 0;
    std::uint64_t skip = 0;  // rows of the segment before the first one
    std::size_t bytes = 0;   // of the whole segment
    Fd memory;               // a descriptor of its own, of memory or of a file
  };
  /// Rows from `row` on that rank `to` is to get; the segment stays where it is until EndPiece.
  /// InvalidArgument when that rank gets no such row.
  Result<Piece> BeginPiece(const std::string& feed, int to, std::uint64_t row);
  void EndPiece(const std::string& feed, int to, std::uint64_t segment);
  /// Rank `to` has all that it gets from here. When the last one has, the rows are forgotten; those
  /// of a pass stay.
  void Given(const std::string& feed, int to);
  /// Asks for room for a piece, within the bound, answered by `send_to_feeder` with a packet as the
  /// feeder gets, in which "handed" is true. NotFound, InvalidArgument.
  Status AskRoom(const std::string& feed, std::size_t bytes);
  /// The piece lies in the granted buffer, whose memory comes along; its rows are the newest. When
  /// all are there the feed ends. Errors: as of a feeder's publish.
  Status AddPiece(const std::string& feed, std::uint64_t buffer, Fd memory, std::uint64_t rows,
                  std::uint64_t skip);

  /// Where the feed is now: {"rows", "bytes", "ended", "spilled_bytes", "depth_bytes",
  /// "acquire_wait_ns"}, as in Stats(); empty for an unknown feed.
  nlohmann::json Levels(const std::string& feed) const;

  /// Call about once a second. When the feeder has waited kStuckAfter for room while readers wait
  /// for the feeder, rows of feeds that nobody read meanwhile may go to disk, even under kNone.
  void OnTick(std::chrono::steady_clock::time_point now);
  static constexpr std::chrono::milliseconds kStuckAfter{500};

  /// Some reader waits for rows, of this rank or others, that only feeders can bring.
  bool WaitsForRows() const;

  /// The node is done or the run is ending: later and parked `acquire`s are refused with CANCELLED.
  void RefuseMore();
  /// Fails every parked and later request of readers, and refuses every `acquire` with this code.
  /// The first one counts.
  void Fail(const Status& why);

  /// {"buffers_bytes", "spilled_bytes", "feeds": {name: {"rows", "given", "taken", "bytes",
  /// "ended", "segments", "spilled_segments", "depth_bytes",
  ///  "passes": [{"used", "padded", "dropped", "skipped", "steps", "bytes", "wait_ns",
  ///  "compute_ns", "duration_ns", "acquire_wait_ns", "peak_depth_bytes", "complete"}…],
  ///  "acquire_wait_ns"}}}
  /// buffers_bytes: memory of all buffers now (peak_buffers_bytes: at most so far; never above the
  /// budget). rows: that this rank has or, once ranks are evened out, will have; given, taken: by
  /// handing over (of what its feeder brought; from others). bytes: of all segments begun.
  /// depth_bytes: of those that no reader has passed. acquire_wait_ns: how long the feeder has
  /// waited for memory. passes: the newest kMaxPasses ("passes_count": all; "older": {"used",
  /// "padded", "dropped", "skipped", "unfinished"} of those before them, the last being rows used
  /// in passes that did not reach their end).
  nlohmann::json Stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::feed
