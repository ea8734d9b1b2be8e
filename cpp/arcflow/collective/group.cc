// SPDX-License-Identifier: Apache-2.0
// Group: the queue, the order, and who works. The data moves in blocks.cc.
#include "arcflow/collective/group.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "arcflow/collective/blocks.h"

namespace arcflow::collective {

Group::Group(std::shared_ptr<BoardMemory> memory, int rank, void (*probe)(Moment))
    : board_(std::move(memory), rank), probe_(probe) {}

Group::~Group() { Fail(Unavailable("rank " + std::to_string(rank()) + " has left the group")); }

std::optional<SharedResult> Group::Reserve(std::uint64_t key, const Signature& what,
                                           std::size_t bytes) {
  // What takes one round has nothing to gain.
  if (what.count * SizeOf(what.element) <= board_.geometry().small_bytes) return std::nullopt;
  return board_.Reserve(key, what, bytes, stopped_);
}

void Group::Submit(Operation operation) {
  Status status = CheckOperation(operation, ranks());
  const std::uint64_t key = operation.key;
  const Signature what = operation.what;
  auto done = operation.done;
  {
    const std::lock_guard lock(mutex_);
    if (status.ok()) status = failure_;
    // Before the others can know: the worker looks here.
    if (status.ok()) status = pending_.Add(&operation);
  }
  if (!status.ok()) return done(status);
  // Without room for one more the ranks would part: nothing but failing all is left.
  if (Status arrived = board_.Arrive(key, what, stopped_); !arrived.ok()) Fail(arrived);
  Probe(Moment::kArrived);
  {
    const std::lock_guard lock(mutex_);
    if (!pending_.TakeRole()) return;
  }
  Work();
}

void Group::Work() {
  for (;;) {
    Operation operation;
    bool agreed = true;
    Status status = Next(&operation, &agreed);
    if (status.ok()) status = Execute(operation);
    if (!status.ok() && agreed) {
      Fail(status);
      status = failure();  // the first one, of whichever rank
    }
    if (!Give(&operation, status)) return;
  }
}

/// Tells the end of an operation. Returns false when nothing is left: the role was given up, before
/// `done`, which may submit again.
bool Group::Give(Operation* operation, const Status& status) {
  bool more = true;
  {
    const std::lock_guard lock(mutex_);
    more = pending_.Finish();
  }
  Pending::Tell(operation, status, more);
  return more;
}

/// The next operation in the order of all; with an error also some operation, which is to be given
/// that error. `agreed` becomes false when ranks disagree about this one, which ends only it.
Status Group::Next(Operation* operation, bool* agreed) {
  Deadline deadline = Deadline::Infinite();
  std::uint64_t key = 0;
  Status failed;
  {
    const std::lock_guard lock(mutex_);
    failed = failure_;
    const Operation& earliest = pending_.Earliest();
    deadline = earliest.deadline, key = earliest.key;
  }
  if (failed.ok()) failed = AwaitOrder(deadline, key);
  const std::lock_guard lock(mutex_);
  if (!failed.ok()) {
    *operation = pending_.TakeFirst();
    return failed;
  }
  const OrderEntry entry = board_.Entry(ticket_++);
  const Status taken = pending_.TakeOrdered(entry, operation, agreed);
  if (taken.ok() && operation->result_shared != (entry.result != kNoRegion)) {
    return Internal("ranks disagree about where the result of a collective lies");
  }
  return taken;
}

Status Group::AwaitOrder(const Deadline& deadline, std::uint64_t key) {
  const auto ready = [&] { return board_.ordered() > ticket_; };
  const auto waited = board_.Wait(ready, stopped_, deadline);
  if (!waited) {
    const std::string missing = board_.Missing(key);
    return DeadlineExceeded("ranks " + (missing.empty() ? "unknown" : missing) +
                            " did not come to a collective within its time limit");
  }
  ARC_TRY(Judge(waited, "the order"));
  Probe(Moment::kOrdered);
  return Status::Ok();
}

/// The error of a wait that ended without what was waited for.
Status Group::Judge(const std::optional<bool>& waited, const char* what) {
  if (!waited) {
    return DeadlineExceeded(std::string("waited for ") + what + " until the time limit");
  }
  if (*waited) return Status::Ok();
  if (Status mine = failure(); !mine.ok()) return mine;
  int rank = 0;
  const Status theirs = board_.Failure(&rank);
  return theirs.ok() ? Unavailable("the group has failed") : theirs;
}

Status Group::Execute(const Operation& operation) {
  const auto began = Deadline::Clock::now();
  ARC_TRY(Blocks(*this, operation).Run());
  const auto took = std::chrono::nanoseconds(Deadline::Clock::now() - began);
  tally_.busy_ns.fetch_add(static_cast<std::uint64_t>(took.count()), std::memory_order_relaxed);
  tally_.operations.fetch_add(1, std::memory_order_relaxed);
  Probe(Moment::kFinished);
  return Status::Ok();
}

void Group::Fail(const Status& failure) {
  int rank = 0;
  const Status told = board_.Failure(&rank);  // who fails because of another's failure repeats it
  {
    const std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = told.ok() ? failure : told;
  }
  stopped_.store(true);
  board_.PublishFailure(failure);
}

Status Group::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

GroupCounters Group::counters() const {
  const auto read = [](const std::atomic<std::uint64_t>& v) {
    return v.load(std::memory_order_relaxed);
  };
  GroupCounters counters;
  counters.operations = read(tally_.operations);
  counters.small_operations = read(tally_.small);
  counters.bytes_in = read(tally_.in);
  counters.bytes_out = read(tally_.out);
  counters.bytes_shared = read(tally_.shared);
  counters.sleeps = board_.sleeps();
  counters.mappings = 1;
  counters.busy_ns = read(tally_.busy_ns);
  for (std::size_t r = 0; r < static_cast<std::size_t>(ranks()); ++r) {
    const bool other = static_cast<int>(r) != rank();
    counters.pairs.push_back(
        {read(tally_.sent[r]), read(tally_.received[r]), other ? "shm" : std::string()});
  }
  return counters;
}

}  // namespace arcflow::collective
