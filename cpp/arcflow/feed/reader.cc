// SPDX-License-Identifier: Apache-2.0
// Reader: cuts the log's segments into batches, one question to the agent ahead of need.
#include "arcflow/feed/reader.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <deque>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/feed/exchange.h"
#include "arcflow/feed/log.h"
#include "arcflow/feed/reader_link.h"
#include "arcflow/feed/reader_mappings.h"
#include "arcflow/feed/row_shuffle.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {
namespace {

using Clock = Deadline::Clock;

std::uint64_t NanosSince(Clock::time_point begin) {
  return static_cast<std::uint64_t>(std::chrono::nanoseconds(Clock::now() - begin).count());
}

/// Whether `step` is sure not to overflow when multiplied by a batch size.
bool StepInRange(std::uint64_t step, std::uint64_t batch_size) {
  return step < (std::uint64_t{1} << 62) / batch_size - 1;
}

}  // namespace

struct Reader::Impl {
  /// A segment whose rows are not all handed out yet; `view` is this reader's own lease.
  struct Held {
    std::uint64_t segment = 0;
    std::uint64_t first_row = 0;
    std::size_t rows = 0;
    bool closed = false;
    std::shared_ptr<SegmentView> view;

    std::uint64_t end_row() const { return first_row + rows; }
  };
  /// What stands between the reader and its next batch.
  enum class Need { kNothing, kRows, kPlan, kEnd };
  struct PassStats {
    std::uint64_t used = 0;
    std::uint64_t padded = 0;
    std::uint64_t skipped = 0;  // by Seek, before the first step
    std::uint64_t wait_ns = 0;
    std::uint64_t compute_ns = 0;
    std::uint64_t bytes = 0;
    std::uint64_t steps = 0;
    std::optional<Clock::time_point> began;  // when the first batch was asked for
    bool told = false;
  };

  ~Impl() { EndPass(false); }

  Result<std::optional<Batch>> Next(Deadline deadline);
  Result<std::optional<Batch>> Take(Deadline deadline, std::uint64_t* waited);
  void HandOut(const Batch* batch, std::uint64_t waited);
  BufferMappings FirstMappings() const;
  Status WaitForBatch(Deadline deadline, Need* need, std::uint64_t* waited);
  Result<Need> WhatIsMissing() const;
  Result<Need> Planned(Need if_it_exists) const;
  Status AskAhead(Need need);
  Status Apply(ReaderLink::Answer answer);
  Status ApplySegment(ReaderLink::SegmentAnswer answer);
  void DropPassed();
  void DropAll();
  Batch Cut();
  void CutShuffled(Batch* batch);
  void PrepareShuffle();
  void Count(const Batch& batch);
  void NoteWaited(std::uint64_t waited);
  void NoteComputed(std::uint64_t waited);
  void EndPass(bool complete);

  std::uint64_t first_row() const { return step * options.batch_size; }
  bool shuffled() const { return options.shuffle_seed.has_value(); }
  bool exchanged() const { return exchange && shuffled() && epoch > 0; }
  /// The feed that this pass reads: once rows have been exchanged, one of its own.
  std::string SourceOfPass() const {
    if (!exchanged()) return options.feed;
    return ExchangePass{options.feed, *options.shuffle_seed, epoch}.Name();
  }
  bool cancelled() const { return cancel_requested.load(std::memory_order_relaxed); }

  ReaderOptions options;
  Fd broker;  // own duplicate, for the session after a Seek
  Fd cancel;  // eventfd; readable for ever once Cancel was called
  std::atomic<bool> cancel_requested{false};
  columnar::Schema schema;
  std::optional<BufferMappings> mappings;  // as long as a pass goes on
  std::shared_ptr<LeaseGauge> gauge = std::make_shared<LeaseGauge>();

  std::unique_ptr<ReaderLink> link;  // null after a Seek until the next Next
  bool link_used = false;            // has asked anything
  bool exchange = false;             // ranks mix their rows for every shuffled pass but the first
  std::deque<Held> held;
  std::uint64_t known_end = 0;             // rows [first_row(), known_end) lie in `held`
  std::optional<std::uint64_t> feed_rows;  // once the feed has ended
  ReaderLink::PlanAnswer plan;
  std::uint64_t step = 0;
  bool ended = false;
  // Of a shuffled pass, once all rows are there:
  std::uint64_t epoch = 0;
  RowShuffle order;
  std::vector<std::uint64_t> starts;  // first rows of `held`
  std::shared_ptr<const std::vector<std::shared_ptr<const SegmentView>>> all;  // its views
  Status failed;                                                               // sticky until Seek
  PassStats pass;
  std::optional<Clock::time_point> handed_out;  // when the last batch was
};

/// `if_it_exists` when the step is known to exist; kPlan when that is not decided; kEnd when it
/// does not.
Result<Reader::Impl::Need> Reader::Impl::Planned(Need if_it_exists) const {
  if (step < plan.steps) return if_it_exists;
  return plan.final ? Need::kEnd : Need::kPlan;
}

Result<Reader::Impl::Need> Reader::Impl::WhatIsMissing() const {
  // Any row may be the first: all of them have to be there, and then places count as rows do.
  if (shuffled() && (!feed_rows || known_end < *feed_rows)) return Need::kRows;
  const bool full = known_end >= first_row() + options.batch_size;
  const bool any = feed_rows && *feed_rows > first_row();  // a short batch of own rows
  switch (options.remainder) {
    case Remainder::kDrop: {
      ARC_ASSIGN(const Need need, Planned(full ? Need::kNothing : Need::kRows));
      if (need == Need::kRows && feed_rows) {
        return Internal("step " + std::to_string(step) + " was promised, but the feed ended");
      }
      return need;
    }
    case Remainder::kPad:
      if (full || any) return Need::kNothing;
      return feed_rows ? Planned(Need::kNothing) : Need::kRows;
    case Remainder::kRefuse:
      if (full) return Need::kNothing;
      return feed_rows ? Planned(Need::kNothing) : Need::kRows;
    case Remainder::kPartial:
      if (full || any) return Need::kNothing;
      return feed_rows ? Need::kEnd : Need::kRows;
  }
  return Internal("unknown remainder");
}

/// Keeps one question about rows open as long as at most one segment lies ahead, and under kDrop
/// one about steps.
Status Reader::Impl::AskAhead(Need need) {
  const bool want_rows = need == Need::kRows || (need == Need::kNothing && held.size() < 2);
  const bool may_come = !feed_rows || (shuffled() && known_end < *feed_rows);
  if (want_rows && may_come && !link->row_asked()) {
    link_used = true;
    // To ask for a row that there never is means to wait for the end, without a lease on anything.
    ARC_TRY(link->AskRow(shuffled() && !feed_rows ? FeedLog::kMaxRows : known_end));
  }
  const bool plan_ahead = options.remainder == Remainder::kDrop && !plan.final &&
                          step + 1 >= plan.steps && need != Need::kEnd;
  if ((need == Need::kPlan || plan_ahead) && !link->plan_asked()) {
    link_used = true;
    ARC_TRY(link->AskPlan(std::max(step, plan.steps), options.batch_size, options.remainder));
  }
  return Status::Ok();
}

Status Reader::Impl::Apply(ReaderLink::Answer answer) {
  if (auto* segment = std::get_if<ReaderLink::SegmentAnswer>(&answer)) {
    return ApplySegment(std::move(*segment));
  }
  if (const auto* end = std::get_if<ReaderLink::EndAnswer>(&answer); end != nullptr && shuffled()) {
    if (feed_rows) return DataLoss("the feed ended again, at row " + std::to_string(end->rows));
    feed_rows = end->rows;
    link.reset();  // a session reads forwards only
    plan = {};
    return Status::Ok();
  }
  if (const auto* end = std::get_if<ReaderLink::EndAnswer>(&answer)) {
    if (end->rows > known_end || (!held.empty() && end->rows != known_end)) {
      return DataLoss("the feed ended at row " + std::to_string(end->rows) + ", read are " +
                      std::to_string(known_end));
    }
    feed_rows = end->rows;
    return Status::Ok();
  }
  plan = std::get<ReaderLink::PlanAnswer>(answer);
  if (!plan.final && plan.steps <= step) {
    return DataLoss("the agent's plan of " + std::to_string(plan.steps) +
                    " steps leaves open whether step " + std::to_string(step) + " exists");
  }
  return Status::Ok();
}

Status Reader::Impl::ApplySegment(ReaderLink::SegmentAnswer answer) {
  const std::uint64_t end = answer.first_row + answer.rows;
  if (answer.first_row > known_end || end <= known_end) {
    return DataLoss("asked for row " + std::to_string(known_end) + ", got rows " +
                    std::to_string(answer.first_row) + " to " + std::to_string(end));
  }
  const bool grown = !held.empty() && held.back().segment == answer.segment;
  if (grown ? answer.first_row != held.back().first_row
            : !held.empty() && answer.first_row != known_end) {
    return DataLoss("segment " + std::to_string(answer.segment) + " begins at row " +
                    std::to_string(answer.first_row) + ", which is not where it should");
  }
  if (!grown) {
    held.emplace_back();
    gauge->held.fetch_add(1, std::memory_order_relaxed);
  }
  held.back() = {answer.segment, answer.first_row, answer.rows, answer.closed, answer.view};
  known_end = end;
  return Status::Ok();
}

/// Gives up segments that hold no row of the coming batches. The last one may still grow unless it
/// is closed, and an answer about it may be under way; it stays.
void Reader::Impl::DropPassed() {
  while (!held.empty() && held.front().end_row() <= first_row() &&
         (held.size() > 1 || held.front().closed)) {
    gauge->held.fetch_sub(1, std::memory_order_relaxed);
    held.pop_front();
  }
}

void Reader::Impl::DropAll() {
  gauge->held.fetch_sub(static_cast<std::int64_t>(held.size()), std::memory_order_relaxed);
  held.clear();
}

/// Memory that earlier passes have mapped. Rows that were exchanged lie in memory of their pass,
/// for which the agent may give up what the others lay in: kept mapped, that would be memory beyond
/// the bound.
BufferMappings Reader::Impl::FirstMappings() const {
  BufferMappings idle = IdleMappings::Instance().Take(broker.get(), options.feed);
  return exchanged() ? BufferMappings() : std::move(idle);
}

Status Reader::Impl::WaitForBatch(Deadline deadline, Need* need, std::uint64_t* waited) {
  for (;;) {
    if (link == nullptr) {
      ARC_ASSIGN(link, ReaderLink::Open(broker.get(), SourceOfPass(), cancel.get(), deadline));
      link_used = false;
    }
    ARC_ASSIGN(*need, WhatIsMissing());
    ARC_TRY(AskAhead(*need));
    if (*need == Need::kNothing || *need == Need::kEnd) return Status::Ok();
    if (!mappings) mappings = FirstMappings();
    const auto begin = Clock::now();
    Result<ReaderLink::Answer> answer = link->Receive(&*mappings, gauge, deadline);
    *waited += NanosSince(begin);
    if (!answer.ok()) return answer.status();
    ARC_TRY(Apply(*std::move(answer)));
  }
}

/// Once, when all rows are there.
void Reader::Impl::PrepareShuffle() {
  order = RowShuffle(*feed_rows, *options.shuffle_seed, epoch,
                     static_cast<std::uint64_t>(link->rank()));
  starts.clear();
  auto views = std::make_shared<std::vector<std::shared_ptr<const SegmentView>>>();
  for (const Held& h : held) {
    starts.push_back(h.first_row);
    views->push_back(h.view);
  }
  all = std::move(views);
}

void Reader::Impl::CutShuffled(Batch* batch) {
  if (all == nullptr) PrepareShuffle();
  batch->segments = all;
  const std::uint64_t end = std::min(first_row() + options.batch_size, known_end);
  if (end > first_row()) batch->gathered.reserve(end - first_row());
  for (std::uint64_t place = first_row(); place < end; ++place) {
    const std::uint64_t row = order(place);
    const auto after = std::upper_bound(starts.begin(), starts.end(), row);
    const auto i = static_cast<std::size_t>(after - starts.begin()) - 1;
    batch->gathered.push_back({(*all)[i].get(), row - starts[i]});
  }
}

/// The rows of this step that are there, and padding for those that are not.
Batch Reader::Impl::Cut() {
  Batch batch;
  batch.step = step;
  if (shuffled()) {
    CutShuffled(&batch);
    if (options.remainder == Remainder::kPad)
      batch.padding = options.batch_size - batch.real_rows();
    return batch;
  }
  std::uint64_t row = first_row();
  const std::uint64_t end = std::min(row + options.batch_size, known_end);
  for (const Held& h : held) {
    if (row >= end) break;
    if (h.end_row() <= row) continue;
    const std::uint64_t stop = std::min(end, h.end_row());
    batch.pieces.push_back({h.view, row - h.first_row, stop - row});
    row = stop;
  }
  if (options.remainder == Remainder::kPad) batch.padding = options.batch_size - batch.real_rows();
  return batch;
}

void Reader::Impl::Count(const Batch& batch) {
  const std::size_t real = batch.real_rows();
  pass.used += real;
  pass.padded += batch.padding;
  ++pass.steps;
  std::uint64_t bytes = 0;
  bool copied = false;
  for (std::size_t c = 0; c < schema.columns.size(); ++c) {
    if (schema.columns[c].variable()) {
      for (const Piece& p : batch.pieces) bytes += p.segment->RowBytes(c, p.begin, p.rows);
      for (const RowAt& at : batch.gathered) bytes += at.segment->RowBytes(c, at.row, 1);
    } else {
      bytes += batch.rows() * schema.columns[c].row_bytes();
      copied = copied || (schema.columns[c].row_bytes() > 0 && DenseView(batch, c).empty());
    }
  }
  pass.bytes += bytes;
  if (options.counters == nullptr) return;
  CounterPageLayout& counters = options.counters->counters();
  constexpr auto kRelaxed = std::memory_order_relaxed;
  counters.steps.fetch_add(1, kRelaxed);
  counters.rows_used.fetch_add(real, kRelaxed);
  counters.rows_padded.fetch_add(batch.padding, kRelaxed);
  counters.bytes_used.fetch_add(bytes, kRelaxed);
  if (copied) counters.batches_copied.fetch_add(1, kRelaxed);
  counters.heartbeat.fetch_add(1, kRelaxed);
}

/// Tells the agent what was read in this pass, once, and gives up all segments.
void Reader::Impl::EndPass(bool complete) {
  if (!pass.told && link != nullptr && (complete || pass.steps > 0)) {
    const std::uint64_t have = feed_rows.value_or(known_end);
    link->Tell(nlohmann::json{{"op", "stats"},
                              {"used", pass.used},
                              {"padded", pass.padded},
                              {"skipped", std::min(pass.skipped, have)},
                              {"dropped", complete && have > first_row() ? have - first_row() : 0},
                              {"steps", pass.steps},
                              {"bytes", pass.bytes},
                              {"wait_ns", pass.wait_ns},
                              {"compute_ns", pass.compute_ns},
                              {"duration_ns", pass.began ? NanosSince(*pass.began) : 0},
                              {"complete", complete}});
    pass.told = true;
    if (complete && options.counters != nullptr) {
      options.counters->counters().epochs.fetch_add(1, std::memory_order_relaxed);
      options.counters->counters().heartbeat.fetch_add(1, std::memory_order_relaxed);
    }
  }
  all.reset();
  order = {};
  DropAll();
  // The agent keeps a pass of exchanged rows as long as a session looks at it.
  if (complete && exchanged()) link.reset();
  if (!mappings) return;
  if (!exchanged())
    IdleMappings::Instance().Give(broker.get(), options.feed, *std::move(mappings), complete);
  mappings.reset();
}

void Reader::Impl::NoteWaited(std::uint64_t waited) {
  pass.wait_ns += waited;
  if (options.counters == nullptr) return;
  options.counters->counters().wait_ns.fetch_add(waited, std::memory_order_relaxed);
}

/// What the program did with the last batch has ended, `waited` ago.
void Reader::Impl::NoteComputed(std::uint64_t waited) {
  if (!handed_out) return;
  const std::uint64_t since = NanosSince(*handed_out);
  const std::uint64_t computed = since > waited ? since - waited : 0;
  handed_out.reset();
  pass.compute_ns += computed;
  if (options.counters == nullptr) return;
  options.counters->counters().compute_ns.fetch_add(computed, std::memory_order_relaxed);
}

Result<std::optional<Batch>> Reader::Impl::Take(Deadline deadline, std::uint64_t* waited) {
  if (cancelled()) return Cancelled("the reader was cancelled");
  if (!failed.ok()) return failed;
  if (ended) return std::optional<Batch>();
  if (!shuffled()) DropPassed();
  Need need = Need::kNothing;
  if (const Status status = WaitForBatch(deadline, &need, waited); !status.ok()) {
    if (cancelled()) return Cancelled("the reader was cancelled");
    if (status.code() != Code::kDeadlineExceeded) failed = status;
    return status;
  }
  if (need == Need::kEnd) {
    ended = true;
    return std::optional<Batch>();
  }
  std::optional<Batch> batch = Cut();
  ++step;
  return batch;
}

void Reader::Impl::HandOut(const Batch* batch, std::uint64_t waited) {
  NoteComputed(waited);
  NoteWaited(waited);
  if (!pass.began) pass.began = Clock::now() - std::chrono::nanoseconds(waited);
  if (batch == nullptr) return EndPass(true);
  Count(*batch);
  handed_out = Clock::now();
}

Result<std::optional<Batch>> Reader::Impl::Next(Deadline deadline) {
  NoteComputed(0);
  if (!pass.began) pass.began = Clock::now();
  std::uint64_t waited = 0;
  Result<std::optional<Batch>> batch = Take(deadline, &waited);
  NoteWaited(waited);
  if (!batch.ok()) return batch;
  if (!batch->has_value()) {
    EndPass(true);
    return batch;
  }
  Count(**batch);
  handed_out = Clock::now();
  return batch;
}

Result<std::unique_ptr<Reader>> Reader::Open(int broker_fd, ReaderOptions options,
                                             Deadline deadline) {
  if (options.batch_size == 0 || options.batch_size > std::numeric_limits<std::uint32_t>::max()) {
    return InvalidArgument("feed '" + options.feed + "': a batch size of " +
                           std::to_string(options.batch_size) + " is not possible");
  }
  auto impl = std::make_unique<Impl>();
  impl->broker = Fd(::fcntl(broker_fd, F_DUPFD_CLOEXEC, 3));
  if (!impl->broker.valid()) return Status::FromErrno(errno, "the broker's descriptor");
  impl->cancel = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!impl->cancel.valid()) return Status::FromErrno(errno, "eventfd");
  impl->options = std::move(options);
  ARC_ASSIGN(impl->link, ReaderLink::Open(impl->broker.get(), impl->options.feed,
                                          impl->cancel.get(), deadline));
  if (impl->shuffled() && impl->link->read_once()) {
    return FailedPrecondition(
        "feed '" + impl->options.feed +
        "' has cache='none', so its rows can be read only once and in order: to "
        "shuffle all of them use cache='auto', or tf.data's shuffle(buffer) "
        "without shuffle=");
  }
  impl->schema = impl->link->schema();
  impl->exchange = impl->link->exchange();
  impl->gauge->max_leases = static_cast<std::int64_t>(impl->link->max_leases());
  return std::unique_ptr<Reader>(new Reader(std::move(impl)));
}

Reader::Reader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Reader::~Reader() = default;

const columnar::Schema& Reader::schema() const { return impl_->schema; }
const ReaderOptions& Reader::options() const { return impl_->options; }
Result<std::optional<Batch>> Reader::Next(Deadline deadline) { return impl_->Next(deadline); }
Result<std::optional<Batch>> Reader::Take(Deadline deadline) {
  std::uint64_t waited = 0;  // by whoever takes ahead, not by the program
  return impl_->Take(deadline, &waited);
}
void Reader::HandOut(const Batch* batch, std::chrono::nanoseconds waited) {
  impl_->HandOut(batch, static_cast<std::uint64_t>(waited.count()));
}
std::uint64_t Reader::position() const { return impl_->step; }

Status Reader::Seek(std::uint64_t step) { return Seek(step, impl_->epoch); }

Status Reader::Seek(std::uint64_t step, std::uint64_t epoch) {
  Impl& r = *impl_;
  if (!StepInRange(step, r.options.batch_size)) {
    return OutOfRange("step " + std::to_string(step) + " is out of range");
  }
  r.EndPass(false);
  // A session reads forwards only (see ReaderLink); one that has asked for nothing yet can begin
  // anywhere.
  const std::string source = r.SourceOfPass();
  r.step = step;
  r.epoch = epoch;
  if (r.link_used || !r.failed.ok() || r.SourceOfPass() != source) r.link.reset();
  r.known_end = r.shuffled() ? 0 : r.first_row();
  r.feed_rows.reset();
  r.plan = {};
  r.ended = false;
  r.failed = Status::Ok();
  r.pass = {};
  r.pass.skipped = r.first_row();
  r.handed_out.reset();
  return Status::Ok();
}

void Reader::Cancel() {
  impl_->cancel_requested.store(true, std::memory_order_relaxed);
  const std::uint64_t one = 1;
  // Fails only when the counter is full, and then the descriptor is readable already.
  [[maybe_unused]] const ssize_t n = ::write(impl_->cancel.get(), &one, sizeof(one));
}

}  // namespace arcflow::feed
