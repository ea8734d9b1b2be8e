// SPDX-License-Identifier: Apache-2.0
// FeedService::Impl: feeds, sessions and parked requests, shared by the sources of FeedService.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "arcflow/feed/exchange.h"
#include "arcflow/feed/reader_session.h"
#include "arcflow/feed/service.h"
#include "arcflow/feed/service_memory.h"

namespace arcflow::feed {

/// Every public call of FeedService changes state first, then pumps (sessions, then the feeder's
/// parked requests), then flushes packets and callbacks: so a callback may call the service again.
/// Threads: one thread.
class FeedService::Impl final : public ReaderHost {
 public:
  Impl(ServiceOptions options, Callbacks callbacks);

  struct GivenPass {
    ExchangePass pass;
    std::vector<Move> moves;  // all of its plan
  };
  struct Feed : FeedState {
    columnar::Schema schema;
    std::vector<RankRows> ranks;
    std::deque<PassStats> passes;  // the newest
    PassStats older;               // sums of the whole ones before them, `steps`: their number
    std::uint64_t older_unfinished = 0;  // rows used in the others before them
    std::uint64_t passes_count = 0;
    std::uint64_t acquire_wait_ns = 0;
    std::uint64_t acquire_wait_told_ns = 0;  // of that, in passes told
    std::uint64_t peak_depth_bytes = 0;      // since the last pass told
    std::chrono::steady_clock::time_point depth_sampled;
    std::chrono::steady_clock::time_point last_get;  // for rows that are there
    Status refusal;                                  // why acquires of this feed are refused
    bool balanced = false;                           // options.balance
    bool spooled = false;                            // of a balanced feed: its feeder has ended it
    std::uint64_t spooled_rows = 0;                  // then
    std::optional<Balance> plan;                     // once all ranks have spooled
    std::set<int> given;                             // ranks that have all they get from here
    bool exchange = false;                           // options.exchange
    std::string newest_pass;                         // of exchanged rows, if one was ever read
    std::optional<GivenPass> given_pass;             // the last one that a rank took rows for
    Feed* source = nullptr;                          // of a pass of exchanged rows: whose
    ExchangePass pass;                               // then
    bool removed = false;                            // goes with its last session
  };
  struct Session {
    std::unique_ptr<ReaderSession> reader;
    Feed* feed = nullptr;
    bool released = false;  // its leases are given back
  };
  struct ParkedAcquire {
    Feed* feed = nullptr;
    std::size_t bytes = 0;
    std::chrono::steady_clock::time_point since;
    bool handed = false;  // for rows of another rank
  };

  // The feeder: service_feeder.cc
  Status OnFeederPacket(const nlohmann::json& body, std::vector<Fd> fds);
  Status OnAcquire(const nlohmann::json& body, Feed& feed);
  Status OnPublish(const nlohmann::json& body, Feed& feed, std::vector<Fd> fds);
  Status OnEnd(Feed& feed);
  Status TakeMemory(std::uint64_t buffer, bool needed, std::vector<Fd> fds);
  void PumpAcquires();
  bool AnswerAcquire(const ParkedAcquire& request);
  bool OthersWaitForFeeder(const Feed& feed) const;
  void OnTick(std::chrono::steady_clock::time_point now);

  // Readers: service.cc
  Result<int> AddReader(const std::string& feed, Fd socket);
  Status SendSchema(ReaderSession& reader, const Feed& feed);
  bool OnReaderReadable(int descriptor);
  Result<GetAnswer> Get(ReaderId reader, std::uint64_t row) override;
  Status Release(ReaderId reader, std::uint64_t segment, std::uint64_t answers) override;
  Result<KnownSteps> Plan(ReaderId reader, std::uint64_t batch, Remainder remainder) override;
  void AddPass(ReaderId reader, const PassStats& pass) override;
  Result<GetAnswer> Lend(Feed& feed, ReaderId reader, const Segment& segment);
  Status Dropped(const Feed& feed, std::uint64_t row) const;
  void PumpSessions();
  void TellOfGone();
  void RememberMapped(const ReaderSession& reader);
  void LetGo(Session& session);

  // Uneven ranks: service_balance.cc
  RankRows Own(const Feed& feed) const;
  std::vector<RankRows> RanksForSteps(const Feed& feed) const;
  std::uint64_t Target(const Feed& feed) const;
  std::uint64_t ReadableRows(const Feed& feed) const;
  void Clamp(const Feed& feed, Segment* segment) const;
  Status OnSpooled(Feed& feed);
  void PlanIfAllEnded(Feed& feed);
  std::vector<Move> Moves(const Feed& feed) const;
  const Move* MoveFor(const std::vector<Move>& moves, int to, std::uint64_t row) const;
  Result<Piece> BeginPiece(Feed& feed, int to, std::uint64_t row);
  Result<Piece> LendPiece(Feed& feed, int to, std::uint64_t row, std::uint64_t end_row);
  void Settle(Feed& feed);
  void Given(Feed& feed, int to);
  Status AddPiece(Feed& feed, std::uint64_t buffer, Fd memory, std::uint64_t rows,
                  std::uint64_t skip);

  // Exchange of rows between passes: service_exchange.cc
  Result<Feed*> FindToRead(const std::string& name);
  void PlanPass(Feed& feed);
  void PlanPassesOf(Feed& source);
  void DropOldPasses(const Feed& source);
  Result<Piece> BeginPassPiece(Feed& source, const ExchangePass& pass, int to, std::uint64_t row);
  Feed* SourceOf(const ExchangePass& pass);
  Result<Feed*> FindToGive(const std::string& name, std::optional<ExchangePass>* pass);

  // Feeds that come and go: service_side.cc
  Status AddFeed(const std::string& name, FeedOptions options);
  void RemoveFeed(const std::string& name);
  void Forget(Feed& feed);
  Status Splice(const std::string& stage, const std::string& target);

  /// What follows every change: answers what can be answered.
  void Pump();
  /// Hands out packets and callbacks. Callbacks may call the service.
  void Flush();

  Result<Feed*> FindFeed(const std::string& name);
  nlohmann::json Stats() const;
  nlohmann::json FeedStats(const Feed& feed) const;
  nlohmann::json Levels(const Feed& feed) const;
  std::uint64_t AcquireWait(const Feed& feed) const;
  static void SampleDepth(Feed& feed, std::chrono::steady_clock::time_point now);

  static FeedMemory::Feeds StatesOf(const std::map<std::string, std::unique_ptr<Feed>>& feeds);
  static std::map<std::string, std::unique_ptr<Feed>> MakeFeeds(const ServiceOptions& options);

  int rank;
  int size;
  Callbacks callbacks;
  std::map<std::string, std::unique_ptr<Feed>> feeds;
  FeedMemory memory;
  std::map<ReaderId, Session> sessions;
  std::map<int, ReaderId> by_descriptor;
  /// What sessions that are over knew: the node keeps it mapped for its next pass, and so keeps its
  /// pages, also when they are given up meanwhile for another feed.
  std::set<std::uint64_t> kept_mapped;
  std::vector<std::uint64_t> kept_gone;  // destroyed and not told: the next session does
  ReaderId next_reader = 1;
  std::deque<ParkedAcquire> acquires;
  Status refusal;  // why acquires are refused; OK while they are not
  Status failure;  // why readers fail; OK while they do not

  std::deque<nlohmann::json> to_feeder;
  std::set<std::string> changed;
  std::set<std::string> planned;  // `balanced` is to be called
  std::set<std::string> settled;  // so is `settled`
  std::set<std::string> dropped;  // and `dropped`
  bool flushing = false;
};

}  // namespace arcflow::feed
