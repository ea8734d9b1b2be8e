// SPDX-License-Identifier: Apache-2.0
// ReaderSession: one reader's packets on the agent's side: checks requests, parks them, sends
// answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <variant>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/feed/log.h"
#include "arcflow/feed/steps.h"

namespace arcflow::net {
struct Message;
}

namespace arcflow::feed {

/// What a reader counted in one pass.
struct PassStats {
  std::uint64_t used = 0;     // real rows handed out
  std::uint64_t padded = 0;   // padding rows handed out
  std::uint64_t dropped = 0;  // rows left over
  std::uint64_t steps = 0;
  std::uint64_t skipped = 0;  // rows before the step that the pass began at
  std::uint64_t wait_ns = 0;
  std::uint64_t compute_ns = 0;   // between handing out a batch and being asked for the next one
  std::uint64_t duration_ns = 0;  // from the first batch asked for to the end of the pass
  std::uint64_t bytes = 0;        // of the tensors handed out
  bool complete = false;          // the pass reached its end
  // What the agent saw since the pass before this one was told:
  std::uint64_t acquire_wait_ns = 0;   // that the feeder waited for memory
  std::uint64_t peak_depth_bytes = 0;  // how far the feeder was ahead, at most, as sampled
};

/// What a session asks of whoever owns the log.
class ReaderHost {
 public:
  using ReaderId = FeedLog::ReaderId;
  struct SegmentAnswer {
    Segment segment;            // leased to the reader
    int fd = -1;                // of the memory or file
    std::shared_ptr<Fd> owner;  // of fd if nobody else is
  };
  struct EndAnswer {
    std::uint64_t rows = 0;  // of the whole feed
  };
  struct Park {
    bool for_rows = false;  // the row is not there yet; false: it is, but must wait for memory
  };
  using GetAnswer = std::variant<Park, SegmentAnswer, EndAnswer>;

  virtual ~ReaderHost() = default;
  /// Leases the segment that holds `row` to the reader, or says why not.
  virtual Result<GetAnswer> Get(ReaderId reader, std::uint64_t row) = 0;
  /// Ends what `answers` segment answers gave (FeedLog::kAllTimes: all). InvalidArgument when the
  /// reader does not hold so much of the segment.
  virtual Status Release(ReaderId reader, std::uint64_t segment, std::uint64_t answers) = 0;
  virtual Result<KnownSteps> Plan(ReaderId reader, std::uint64_t batch, Remainder remainder) = 0;
  virtual void AddPass(ReaderId reader, const PassStats& pass) = 0;
};

/// One reader of one feed, at the other end of a packet socket.
/// Requests: `get` (at most kMaxParked unanswered, answered in order), `plan` (likewise),
/// `release`, `stats`. A request that breaks the protocol is answered with `error` and ends the
/// session; a request that merely fails (rows dropped, feed failed) is answered with `error` and
/// the session goes on. Threads: one thread. Never blocks: a reader that does not take its answers
/// loses its session.
class ReaderSession {
 public:
  static constexpr std::size_t kMaxParked = 2;

  ReaderSession(FeedLog::ReaderId id, Fd socket, ReaderHost& host);
  ~ReaderSession();

  FeedLog::ReaderId id() const { return id_; }
  int descriptor() const { return socket_.get(); }

  /// Sends a packet that answers nothing (`schema`, or `error` to a reader that cannot be served).
  Status Send(const nlohmann::json& packet, const std::vector<int>& fds = {});
  /// Takes in all packets that are there; answers come with Pump(), so that what the reader
  /// released meanwhile counts before what it asks for. OK with alive() == false: the reader
  /// closed. Errors: what was wrong with its packets; the session is over then.
  Status OnReadable();
  /// Answers what can be answered now.
  void Pump();
  /// Over: closed by the reader, broken, or ended by a bad packet. Its socket is shut down, so that
  /// polling it wakes up.
  bool alive() const { return alive_; }

  /// An answer is due that only the feeder, here or at another rank, can bring about.
  bool waits_for_feeder() const { return alive_ && (waits_for_rows_ || !plans_.empty()); }

  /// The buffer's memory is destroyed: the reader hears of it with its next segment, if it ever got
  /// that buffer.
  void Forget(std::uint64_t buffer);
  /// Likewise of memory that an earlier session had, whose mappings the process may have kept.
  void ForgetOfOthers(std::uint64_t buffer);
  /// Buffers that the process may have mapped, and those destroyed of which it has not heard.
  const std::set<std::uint64_t>& known() const { return known_; }
  const std::vector<std::uint64_t>& untold() const { return forgotten_; }
  /// The reader has finished with every row below this one. Its newest answered `get` may be a
  /// look-ahead, so the one before counts; but a reader that waits for rows at the end may need to
  /// be followed at once, or writer and reader could wait for one another.
  std::uint64_t passed_row() const;

 private:
  struct PlanRequest {
    std::uint64_t step = 0;
    std::uint64_t batch = 0;
    Remainder remainder = Remainder::kPad;
  };

  Status Handle(const net::Message& message);
  Status HandleGet(const nlohmann::json& packet);
  Status HandleRelease(const nlohmann::json& packet);
  Status HandlePlan(const nlohmann::json& packet);
  Status HandleStats(const nlohmann::json& packet);
  bool AnswerGet(std::uint64_t row);
  bool AnswerPlan(const PlanRequest& request);
  void SendSegment(const ReaderHost::SegmentAnswer& answer);
  void SendError(const Status& why);
  void Deliver(const nlohmann::json& packet, const std::vector<int>& fds);
  void End();

  FeedLog::ReaderId id_;
  Fd socket_;
  ReaderHost& host_;
  bool alive_ = true;
  std::deque<std::uint64_t> gets_;
  std::deque<PlanRequest> plans_;
  std::set<std::uint64_t> known_;         // buffers whose descriptor the reader got
  std::vector<std::uint64_t> forgotten_;  // destroyed and not told yet
  bool waits_for_rows_ = false;           // the first parked get
  std::uint64_t last_row_ = 0;            // of the newest answered get
  std::uint64_t row_before_ = 0;          // of the one before that
};

/// {"op": "error", "code": …, "message": …}.
nlohmann::json ErrorPacket(const Status& why);

}  // namespace arcflow::feed
