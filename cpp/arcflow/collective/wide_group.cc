// SPDX-License-Identifier: Apache-2.0
// WideGroup: how ranks meet, and who works. The order and the end are in wide_words.cc, the data
// moves in wide_blocks.cc.
#include "arcflow/collective/wide_group.h"

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <utility>

#include "arcflow/collective/group.h"
#include "arcflow/collective/wide_blocks.h"
#include "arcflow/collective/wide_word.h"

namespace arcflow::collective {
namespace {

constexpr std::chrono::milliseconds kLook{100};
constexpr std::chrono::milliseconds kVerdict{1000};

}  // namespace

// ---- made and met ----

Result<std::shared_ptr<WideGroup>> WideGroup::Open(Layout layout,
                                                   const transport::ContextOptions& options,
                                                   void (*probe)(Moment)) {
  if (layout.ranks() > kMaxRanks) {
    return InvalidArgument("a group has at most " + std::to_string(kMaxRanks) + " ranks");
  }
  std::shared_ptr<WideGroup> group(new WideGroup(std::move(layout), probe));
  ARC_TRY(group->Start(options));
  return group;
}

WideGroup::WideGroup(Layout layout, void (*probe)(Moment))
    : layout_(std::move(layout)),
      probe_(probe),
      link_(
          layout_.hosts(), layout_.host(), HostLink::Sizes::For(layout_.hosts()),
          [this](const Status& status) { Fail(status); }, [this] { Patrol(); }),
      scratch_(nullptr, &std::free),
      packed_(nullptr, &std::free),
      agreement_(layout_.ranks()),
      endpoints_(static_cast<std::size_t>(layout_.ranks())) {}

Status WideGroup::Start(const transport::ContextOptions& options) {
  const std::size_t bytes = WideBlocks::ScratchBytes(layout_, link_.sizes());
  scratch_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
  if (scratch_ == nullptr) {
    return ResourceExhausted("no memory for a group's " + std::to_string(bytes) + " bytes");
  }
  ARC_ASSIGN(context_, transport::Context::Create(options));
  context_->Handle(kWideWordChannel,
                   [this](const auto& from, std::span<const std::byte> b) { OnWord(from, b); });
  context_->OnPeerDown([this](const auto& peer, const Status& s) { OnDown(peer, s); });
  return link_.Open(*context_);
}

WideGroup::~WideGroup() {
  Fail(Unavailable("rank " + std::to_string(rank()) + " has left the group"));
  context_.reset();
}

Contact WideGroup::contact() const { return {context_->address(), link_.remote()}; }

void WideGroup::Introduce(std::vector<Contact> contacts) {
  const std::lock_guard lock(mutex_);
  for (std::size_t r = 0; r < contacts.size(); ++r) {
    rank_of_[contacts[r].region.owner] = static_cast<int>(r);
  }
  contacts_ = std::move(contacts);
}

Status WideGroup::Meet(std::shared_ptr<Engine> local, const Deadline& deadline) {
  {
    const std::lock_guard lock(mutex_);
    local_ = std::move(local);
  }
  // The higher rank connects, so that each pair has one connection.
  for (int r = 0; r < ranks(); ++r) {
    if (!layout_.connected(rank(), r)) continue;
    const Status met = r < rank() ? Connect(r, deadline) : AwaitConnection(r, deadline);
    if (!met.ok()) return met.WithContext("rank " + std::to_string(r));
  }
  for (int host = 0; layout_.exchanges() && host < layout_.hosts(); ++host) {
    if (host == layout_.host()) continue;
    const auto partner = static_cast<std::size_t>(layout_.partner(host));
    ARC_TRY(link_.Attach(host, endpoints_[partner], contacts_[partner].region));
  }
  return AwaitAll(deadline);
}

Status WideGroup::Connect(int rank, const Deadline& deadline) {
  const auto at = static_cast<std::size_t>(rank);
  ARC_ASSIGN(auto endpoint, context_->Connect(contacts_[at].address, deadline));
  const std::lock_guard lock(mutex_);
  endpoints_[at] = std::move(endpoint);
  return failure_;
}

Status WideGroup::AwaitConnection(int rank, const Deadline& deadline) {
  const auto at = static_cast<std::size_t>(rank);
  for (;;) {
    auto endpoint = context_->Find(contacts_[at].region.owner);
    {
      const std::lock_guard lock(mutex_);
      if (!failure_.ok()) return failure_;
      if (endpoint != nullptr) {
        endpoints_[at] = std::move(endpoint);
        return Status::Ok();
      }
    }
    if (deadline.expired()) return DeadlineExceeded("did not connect while the group was made");
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Status WideGroup::AwaitAll(const Deadline& deadline) {
  const std::uint64_t all = (~std::uint64_t{0} >> (64 - ranks())) & ~std::uint64_t{1};
  if (rank() != 0) Say(0, Word{WordType::kReady});
  {
    std::unique_lock lock(mutex_);
    const auto met = [&] { return rank() == 0 ? ready_ == all : open_; };
    while (!met() && failure_.ok()) {
      if (deadline.expired()) {
        std::string missing;
        for (int r = 1; rank() == 0 && r < ranks(); ++r) {
          if ((ready_ >> r & 1) == 0) missing += " " + std::to_string(r);
        }
        return DeadlineExceeded("a group was not made in time; missing ranks:" +
                                (missing.empty() ? " unknown" : missing));
      }
      changed_.wait_until(lock, std::min(Deadline::Clock::now() + kLook, deadline.at()));
    }
    if (!failure_.ok()) return failure_;
  }
  if (rank() == 0) SayToAll(Word{WordType::kOpen});
  return Status::Ok();
}

// ---- operations ----

void WideGroup::Submit(Operation operation) {
  Status status = CheckOperation(operation, ranks());
  const std::uint64_t key = operation.key;
  const Signature what = operation.what;
  auto done = operation.done;
  {
    const std::lock_guard lock(mutex_);
    if (status.ok()) status = failure_;
    // Before rank 0 can know: the worker looks here.
    if (status.ok()) status = pending_.Add(&operation);
  }
  if (!status.ok()) return done(status);
  if (rank() == 0) {
    Enter(0, key, what);
  } else {
    Word word{WordType::kArrive};
    word.key = key;
    word.first = what;
    Say(0, word);
  }
  Probe(Moment::kArrived);
  {
    const std::lock_guard lock(mutex_);
    if (!pending_.TakeRole()) return;
  }
  Work();
}

void WideGroup::Work() {
  for (;;) {
    Operation operation;
    bool agreed = true;
    Status status = Next(&operation, &agreed);
    if (status.ok()) status = Execute(operation);
    if (!status.ok() && agreed) status = FailAndWait(status);  // the first, of whichever rank
    if (!Give(&operation, status)) return;
  }
}

/// Tells the end of an operation. Returns false when nothing is left: the role was given up, before
/// `done`, which may submit again.
bool WideGroup::Give(Operation* operation, const Status& status) {
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
Status WideGroup::Next(Operation* operation, bool* agreed) {
  std::unique_lock lock(mutex_);
  const Status failed = AwaitOrder(&lock);
  if (!failed.ok()) {
    *operation = pending_.TakeFirst();
    return failed;
  }
  const OrderEntry entry = order_.front();
  order_.pop_front();
  const Status taken = pending_.TakeOrdered(entry, operation, agreed);
  lock.unlock();
  Probe(Moment::kOrdered);
  return taken;
}

Status WideGroup::AwaitOrder(std::unique_lock<std::mutex>* lock) {
  for (;;) {
    if (!order_.empty()) return Status::Ok();  // what all have come to may still end well
    if (!failure_.ok()) return failure_;
    const Operation& first = pending_.Earliest();
    if (first.deadline.expired()) {
      const std::uint64_t key = first.key;
      lock->unlock();
      const Status late = NameTheMissing(key);
      lock->lock();
      return late;
    }
    const auto until = std::min(Deadline::Clock::now() + kLook, first.deadline.at());
    if (changed_.wait_until(*lock, until) == std::cv_status::timeout) {
      lock->unlock();
      Patrol();
      lock->lock();
    }
  }
}

/// Only rank 0 knows who has not come.
Status WideGroup::NameTheMissing(std::uint64_t key) {
  std::string missing;
  if (rank() == 0) {
    const std::lock_guard lock(agreement_mutex_);
    missing = agreement_.Missing(key);
  } else {
    Word word{WordType::kLate};
    word.key = key;
    Say(0, word);
    if (Status told = AwaitFailure(kVerdict); !told.ok()) return told;
  }
  return DeadlineExceeded("ranks " + (missing.empty() ? "unknown" : missing) +
                          " did not come to a collective within its time limit");
}

Status WideGroup::ReservePacked() {
  if (packed_ != nullptr) return Status::Ok();
  const std::size_t bytes = WideBlocks::PackBytes(layout_, link_.sizes());
  packed_.reset(static_cast<std::byte*>(std::aligned_alloc(4096, bytes)));
  if (packed_ != nullptr) return Status::Ok();
  return ResourceExhausted("no memory for a group's " + std::to_string(bytes) + " packed bytes");
}

Status WideGroup::Execute(const Operation& operation) {
  const auto began = Deadline::Clock::now();
  if (Status moved = WideBlocks(*this, operation).Run(); !moved.ok()) {
    const Status failed = FailAndWait(Verdict(moved));
    link_.Stop();
    link_.CancelAll();  // the caller's memory is its own again
    return failed;
  }
  const auto took = std::chrono::nanoseconds(Deadline::Clock::now() - began);
  tally_.busy_ns.fetch_add(static_cast<std::uint64_t>(took.count()), std::memory_order_relaxed);
  tally_.operations.fetch_add(1, std::memory_order_relaxed);
  Probe(Moment::kFinished);
  return Status::Ok();
}

/// Ranks of this host fail each other at once and know each other by other numbers, so rank 0 is
/// waited for, who names the right one.
Status WideGroup::Verdict(const Status& seen) {
  if (seen.code() != Code::kUnavailable && seen.code() != Code::kCancelled) return seen;
  const Status told = AwaitFailure(kVerdict);
  return told.ok() ? seen.WithContext("a rank beside rank " + std::to_string(rank())) : told;
}

Status WideGroup::AwaitFailure(std::chrono::milliseconds patience) {
  const auto until = Deadline::Clock::now() + patience;
  std::unique_lock lock(mutex_);
  while (failure_.ok() && Deadline::Clock::now() < until) {
    changed_.wait_until(lock, std::min(until, Deadline::Clock::now() + kLook));
    lock.unlock();
    Patrol();
    lock.lock();
  }
  return failure_;
}

GroupCounters WideGroup::counters() const {
  const auto read = [](const std::atomic<std::uint64_t>& v) {
    return v.load(std::memory_order_relaxed);
  };
  GroupCounters counters;
  counters.operations = read(tally_.operations);
  counters.small_operations = read(tally_.small);
  counters.bytes_in = read(tally_.in);
  counters.bytes_out = read(tally_.out);
  counters.sleeps = link_.sleeps();
  counters.mappings = 1;
  counters.registrations = read(context_->counters().registrations);
  counters.busy_ns = read(tally_.busy_ns);
  counters.pairs.resize(static_cast<std::size_t>(ranks()));
  if (local_ != nullptr) {
    const GroupCounters local = local_->counters();
    counters.mappings += local.mappings;
    counters.sleeps += local.sleeps;
    counters.bytes_shared = local.bytes_shared;
    const std::vector<int>& members = layout_.members(layout_.host());
    for (std::size_t l = 0; l < members.size(); ++l) {
      counters.pairs[static_cast<std::size_t>(members[l])] = local.pairs[l];
    }
  }
  for (int host = 0; layout_.exchanges() && host < layout_.hosts(); ++host) {
    if (host == layout_.host()) continue;
    const HostLink::Bytes bytes = link_.bytes(host);
    counters.bytes_between_hosts += bytes.sent;
    counters.pairs[static_cast<std::size_t>(layout_.partner(host))] = {bytes.sent, bytes.received,
                                                                       bytes.backend};
  }
  return counters;
}

}  // namespace arcflow::collective
