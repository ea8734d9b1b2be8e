// SPDX-License-Identifier: Apache-2.0
// ReaderLink: the node's end of one reader session: asks for rows and plans, maps what comes back,
// gives leases back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/feed/reader.h"
#include "arcflow/feed/reader_mappings.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {

/// One session with the agent. It reads forwards only: the rows asked for never fall. Therefore the
/// agent's answer about a segment can never cross our release of the same segment, which would let
/// memory change under a view. Lifetime: views keep the session's socket open, so their leases hold
/// even when the link is gone. Threads: one thread at a time; views may go in any.
class ReaderLink {
 public:
  struct SegmentAnswer {
    std::uint64_t segment = 0;
    std::uint64_t first_row = 0;
    std::size_t rows = 0;
    bool closed = false;
    std::shared_ptr<SegmentView>
        view;  // all rows; the view of the last answer, grown, where possible
  };
  struct EndAnswer {
    std::uint64_t rows = 0;
  };
  struct PlanAnswer {
    std::uint64_t steps = 0;
    bool final = false;
  };
  using Answer = std::variant<SegmentAnswer, EndAnswer, PlanAnswer>;

  /// Hands one end of a fresh packet pair to the agent and waits for the schema.
  /// `cancel_fd` ends this and every later wait. Errors: those of Reader::Open.
  static Result<std::unique_ptr<ReaderLink>> Open(int broker_fd, const std::string& feed,
                                                  int cancel_fd, Deadline deadline);

  const columnar::Schema& schema() const { return schema_; }
  std::size_t max_leases() const { return max_leases_; }
  /// Rows may be gone once they were read (cache none).
  bool read_once() const { return read_once_; }
  /// Shuffled passes but the first read rows that ranks have exchanged (exchange.h).
  bool exchange() const { return exchange_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

  /// Asks for the segment that holds `row`; at most one such question is open.
  Status AskRow(std::uint64_t row);
  bool row_asked() const { return row_asked_; }
  /// Asks whether `step` exists; at most one such question is open.
  Status AskPlan(std::uint64_t step, std::uint64_t batch, Remainder remainder);
  bool plan_asked() const { return plan_asked_; }

  /// The next answer. `known` is the segment the caller holds last, for which no new view is
  /// wanted. Errors: DeadlineExceeded (ask nothing again, receive later), Cancelled, Unavailable,
  /// DataLoss, the agent's error.
  Result<Answer> Receive(BufferMappings* mappings, const std::shared_ptr<LeaseGauge>& gauge,
                         Deadline deadline);

  /// Tells the agent something that needs no answer; errors do not matter any more then.
  void Tell(const nlohmann::json& packet);

 private:
  class Session;  // the socket, shared with the leases
  class Lease;    // on one segment, shared by its views
  ReaderLink(std::shared_ptr<Session> session, int cancel_fd);
  Status ReadSchema(const nlohmann::json& packet, const std::vector<Fd>& fds);
  Result<SegmentAnswer> ReadSegment(const nlohmann::json& packet, const std::vector<Fd>& fds,
                                    BufferMappings* mappings,
                                    const std::shared_ptr<LeaseGauge>& gauge);

  std::shared_ptr<Session> session_;
  int cancel_fd_;
  columnar::Schema schema_;
  std::size_t max_leases_ = 0;
  bool read_once_ = false;
  bool exchange_ = false;
  int rank_ = 0;
  int size_ = 1;
  bool row_asked_ = false;
  bool plan_asked_ = false;
  // The segment of the last answer, which may come again when it has grown, in the same memory or
  // in a copy.
  std::uint64_t last_segment_ = 0;
  std::uint64_t last_buffer_ = 0;
  std::weak_ptr<const Lease> last_lease_;
  std::weak_ptr<SegmentView> last_view_;
};

}  // namespace arcflow::feed
