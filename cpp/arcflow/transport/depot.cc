// SPDX-License-Identifier: Apache-2.0
// Depot: tickets, holds, fetches.
#include "arcflow/transport/depot.h"

#include <array>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "arcflow/base/hex.h"

namespace arcflow::transport {
namespace {

constexpr Channel kReleaseChannel = 1;
constexpr std::string_view kMagic = "ARCT";
constexpr std::size_t kTicketBytes = 4 + 8 + RemoteRegion::kBytes;  // magic, number, region

struct Ticket {
  std::uint64_t number = 0;
  RemoteRegion region;
};

Result<Ticket> ReadTicket(std::string_view bytes) {
  if (bytes.size() != kTicketBytes || bytes.substr(0, 4) != kMagic) {
    return InvalidArgument("what a peer sent is no ticket");
  }
  Ticket ticket;
  std::memcpy(&ticket.number, bytes.data() + 4, 8);
  ARC_ASSIGN(ticket.region, RemoteRegion::Parse(bytes.substr(12)));
  return ticket;
}

Result<NodeId> ReadName(std::string_view name) {
  NodeId node;
  const auto bytes = FromHex(name);
  if (!bytes.ok() || bytes->size() != node.bytes.size()) {
    return InvalidArgument("a depot's name has 32 hexadecimal digits");
  }
  std::memcpy(node.bytes.data(), bytes->data(), node.bytes.size());
  return node;
}

Status Gone(const std::string& name) {
  return Unavailable("no connection to the peer " + name.substr(0, 8) + ": it is gone or cut off");
}

}  // namespace

struct Depot::State {
  struct Held {
    NodeId peer;
    std::shared_ptr<const void> hold;
    Region region;  // after `hold`: goes before it
    Deadline until = Deadline::Infinite();
  };

  std::chrono::nanoseconds patience{};
  std::string name;
  std::string address;
  std::mutex mutex;
  std::uint64_t last = 0;
  std::map<std::uint64_t, Held> held;
  std::atomic<std::uint64_t> offered{0}, bytes_offered{0}, fetched{0}, bytes_fetched{0}, expired{0};
  std::unique_ptr<Context> context;  // last: its threads use all the rest

  template <typename Which>
  std::vector<Held> TakeIf(const Which& which);
  void DropLate();
  void OnRelease(const std::shared_ptr<Endpoint>& from, std::span<const std::byte> bytes);
  Status Begin(const std::shared_ptr<Fetch>& fetch, std::string_view bytes,
               std::span<std::byte> into, const std::shared_ptr<Done>& done);
};

/// What is taken is let go by the caller, without the lock.
template <typename Which>
std::vector<Depot::State::Held> Depot::State::TakeIf(const Which& which) {
  std::vector<Held> taken;
  const std::lock_guard lock(mutex);
  for (auto it = held.begin(); it != held.end();) {
    if (which(it->first, it->second)) {
      taken.push_back(std::move(it->second));
      it = held.erase(it);
    } else {
      ++it;
    }
  }
  return taken;
}

Result<std::unique_ptr<Depot>> Depot::Open(const ContextOptions& options,
                                           std::chrono::nanoseconds patience) {
  auto state = std::make_unique<State>();
  State* const raw = state.get();
  raw->patience = patience;
  ARC_ASSIGN(raw->context, Context::Create(options));
  raw->name = raw->context->id().ToString();
  raw->address = ToHex(raw->context->address());
  raw->context->Handle(kReleaseChannel, [raw](const auto& from, std::span<const std::byte> bytes) {
    raw->OnRelease(from, bytes);
  });
  // The context's own end comes here too, when `raw->context` is null already.
  raw->context->OnPeerDown([raw, context = raw->context.get()](const auto& endpoint,
                                                               const Status&) {
    const NodeId gone = endpoint->peer();
    if (context->Find(gone) != nullptr) return;  // there is another connection
    (void)raw->TakeIf([&](std::uint64_t, const State::Held& each) { return each.peer == gone; });
  });
  return std::unique_ptr<Depot>(new Depot(std::move(state)));
}

Depot::Depot(std::unique_ptr<State> state) : state_(std::move(state)) {}
Depot::~Depot() { state_->context.reset(); }

const std::string& Depot::name() const { return state_->name; }
Counters& Depot::traffic() { return state_->context->counters(); }

DepotCounters Depot::counters() const {
  state_->DropLate();
  const auto read = [](const std::atomic<std::uint64_t>& v) {
    return v.load(std::memory_order_relaxed);
  };
  DepotCounters counters{read(state_->offered),
                         read(state_->bytes_offered),
                         read(state_->fetched),
                         read(state_->bytes_fetched),
                         0,
                         read(state_->expired)};
  const std::lock_guard lock(state_->mutex);
  counters.held = state_->held.size();
  return counters;
}

// ---- the owner ----

Result<std::string> Depot::Offer(std::span<const std::byte> bytes, std::shared_ptr<const void> hold,
                                 std::string_view peer) {
  ARC_ASSIGN(const NodeId node, ReadName(peer));
  state_->DropLate();
  // Only read: the region is for reading.
  ARC_ASSIGN(Region region,
             state_->context->Register({const_cast<std::byte*>(bytes.data()), bytes.size()},
                                       Access::kRead));
  const std::string name_of_region = region.remote().Serialize();
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(state_->mutex);
    number = ++state_->last;
    state_->held.emplace(number, State::Held{node, std::move(hold), std::move(region),
                                             Deadline::After(state_->patience)});
  }
  // After it is held: from here on OnPeerDown finds it. Without a connection nothing would.
  if (state_->context->Find(node) == nullptr) {
    (void)state_->TakeIf([&](std::uint64_t each, const State::Held&) { return each == number; });
    return Gone(std::string(peer));
  }
  state_->offered.fetch_add(1, std::memory_order_relaxed);
  state_->bytes_offered.fetch_add(bytes.size(), std::memory_order_relaxed);
  std::string ticket(kMagic);
  ticket.append(reinterpret_cast<const char*>(&number), sizeof number);
  return ticket + name_of_region;
}

/// Peers that got a ticket and never came: nothing else would find them.
void Depot::State::DropLate() {
  const auto late = TakeIf([](std::uint64_t, const Held& each) { return each.until.expired(); });
  expired.fetch_add(late.size(), std::memory_order_relaxed);
}

void Depot::State::OnRelease(const std::shared_ptr<Endpoint>& from,
                             std::span<const std::byte> bytes) {
  std::uint64_t number = 0;
  if (bytes.size() != sizeof number) return;
  std::memcpy(&number, bytes.data(), sizeof number);
  (void)TakeIf([&](std::uint64_t each, const Held& what) {
    return each == number && what.peer == from->peer();  // nobody lets go of what is another's
  });
  DropLate();
}

// ---- who fetches ----

void Depot::Start(const std::shared_ptr<Fetch>& fetch, std::string_view ticket,
                  std::span<std::byte> into, Done done) {
  auto shared = std::make_shared<Done>(std::move(done));
  if (Status begun = state_->Begin(fetch, ticket, into, shared); !begun.ok()) (*shared)(begun);
}

const std::string& Depot::address() const { return state_->address; }

Result<std::string> Depot::Reach(std::string_view address, Deadline deadline) {
  ARC_ASSIGN(const std::string bytes, FromHex(address));
  ARC_ASSIGN(const auto endpoint, state_->context->Connect(bytes, deadline));
  ARC_TRY(endpoint->FlushAndWait(deadline));  // an answer: the other end has its endpoint too
  return endpoint->peer().ToString();
}

std::string Depot::BackendTo(std::string_view peer) const {
  const auto node = ReadName(peer);
  const auto endpoint = node.ok() ? state_->context->Find(*node) : nullptr;
  return endpoint == nullptr ? "" : std::string(endpoint->backend());
}

Status Depot::State::Begin(const std::shared_ptr<Fetch>& fetch, std::string_view bytes,
                           std::span<std::byte> into, const std::shared_ptr<Done>& done) {
  ARC_ASSIGN(const Ticket ticket, ReadTicket(bytes));
  const auto endpoint = context->Find(ticket.region.owner);
  if (endpoint == nullptr) return Gone(ticket.region.owner.ToString());
  const auto let_go = [endpoint, number = ticket.number] {
    // One that is gone finds out by itself.
    (void)endpoint->Send(kReleaseChannel, std::as_bytes(std::span(&number, 1))).ok();
  };
  if (ticket.region.size_bytes != into.size()) {
    let_go();
    return InvalidArgument("a peer offers " + std::to_string(ticket.region.size_bytes) +
                           " bytes for " + std::to_string(into.size()));
  }
  const std::lock_guard lock(fetch->mutex_);
  if (fetch->cancelled_) {
    let_go();
    return Cancelled("cancelled by the caller");
  }
  fetch->endpoint_ = endpoint;
  fetch->op_ = endpoint->Get(into, ticket.region, 0, Deadline::Infinite(),
                             [this, done, let_go, n = into.size()](const Status& status) {
                               if (status.ok()) {
                                 fetched.fetch_add(1, std::memory_order_relaxed);
                                 bytes_fetched.fetch_add(n, std::memory_order_relaxed);
                               }
                               let_go();  // also when it failed: nobody will come again
                               (*done)(status);
                             });
  return Status::Ok();
}

void Depot::Fetch::Cancel() {
  std::shared_ptr<Endpoint> endpoint;
  OpId op = 0;
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
    endpoint = endpoint_;
    op = op_;
  }
  if (endpoint != nullptr) endpoint->Cancel(op);
}

}  // namespace arcflow::transport
