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
constexpr double kConnectSeconds = 20;
constexpr std::string_view kMagic = "ARCT";
constexpr std::size_t kHead = 4 + 8 + RemoteRegion::kBytes;  // magic, number, region; then address

struct Ticket {
  std::uint64_t number = 0;
  RemoteRegion region;
  std::string_view address;
};

Result<Ticket> Read(std::string_view bytes) {
  if (bytes.size() <= kHead || bytes.size() > kHead + Context::kMaxAddressBytes ||
      bytes.substr(0, 4) != kMagic) {
    return InvalidArgument("what a peer sent is no ticket");
  }
  Ticket ticket;
  std::memcpy(&ticket.number, bytes.data() + 4, 8);
  ARC_ASSIGN(ticket.region, RemoteRegion::Parse(bytes.substr(12, RemoteRegion::kBytes)));
  ticket.address = bytes.substr(kHead);
  return ticket;
}

}  // namespace

struct Depot::State {
  struct Held {
    std::string peer;
    Region region;
    std::shared_ptr<const void> hold;
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
  raw->context->OnPeerDown([raw](const auto& peer, const Status&) {
    const std::string gone = peer->peer().ToString();
    (void)raw->TakeIf([&](std::uint64_t, const State::Held& each) { return each.peer == gone; });
  });
  return std::unique_ptr<Depot>(new Depot(std::move(state)));
}

Depot::Depot(std::unique_ptr<State> state) : state_(std::move(state)) {}
Depot::~Depot() { state_->context.reset(); }

const std::string& Depot::name() const { return state_->name; }
Counters& Depot::traffic() { return state_->context->counters(); }

DepotCounters Depot::counters() const {
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
  if (peer.size() != 32) return InvalidArgument("a depot's name has 32 digits");
  // Peers that got a ticket and never came: nothing else would find them.
  const auto late =
      state_->TakeIf([](std::uint64_t, const State::Held& each) { return each.until.expired(); });
  state_->expired.fetch_add(late.size(), std::memory_order_relaxed);
  State::Held held{std::string(peer), {}, std::move(hold), Deadline::After(state_->patience)};
  // Only read: the region is for reading.
  ARC_ASSIGN(held.region, state_->context->Register(
                              {const_cast<std::byte*>(bytes.data()), bytes.size()}, Access::kRead));
  std::string ticket(kMagic);
  const std::string region = held.region.remote().Serialize();
  {
    const std::lock_guard lock(state_->mutex);
    const std::uint64_t number = ++state_->last;
    ticket.append(reinterpret_cast<const char*>(&number), sizeof number);
    state_->held.emplace(number, std::move(held));
  }
  state_->offered.fetch_add(1, std::memory_order_relaxed);
  state_->bytes_offered.fetch_add(bytes.size(), std::memory_order_relaxed);
  return ticket + region + state_->context->address();
}

void Depot::State::OnRelease(const std::shared_ptr<Endpoint>& from,
                             std::span<const std::byte> bytes) {
  std::uint64_t number = 0;
  if (bytes.size() != sizeof number) return;
  std::memcpy(&number, bytes.data(), sizeof number);
  const std::string peer = from->peer().ToString();
  (void)TakeIf([&](std::uint64_t each, const Held& what) {
    return each == number && what.peer == peer;  // nobody lets go of what is another's
  });
}

// ---- who fetches ----

void Depot::Start(const std::shared_ptr<Fetch>& fetch, std::string_view ticket,
                  std::span<std::byte> into, Done done) {
  auto shared = std::make_shared<Done>(std::move(done));
  if (Status begun = state_->Begin(fetch, ticket, into, shared); !begun.ok()) (*shared)(begun);
}

const std::string& Depot::address() const { return state_->address; }

Status Depot::Reach(std::string_view address, Deadline deadline) {
  ARC_ASSIGN(const std::string bytes, FromHex(address));
  return state_->context->Connect(bytes, deadline).status();
}

Status Depot::State::Begin(const std::shared_ptr<Fetch>& fetch, std::string_view bytes,
                           std::span<std::byte> into, const std::shared_ptr<Done>& done) {
  ARC_ASSIGN(const Ticket ticket, Read(bytes));
  if (ticket.region.size_bytes != into.size()) {
    return InvalidArgument("a peer offers " + std::to_string(ticket.region.size_bytes) +
                           " bytes for " + std::to_string(into.size()));
  }
  ARC_ASSIGN(auto endpoint,
             context->Connect(ticket.address, Deadline::AfterSeconds(kConnectSeconds)));
  const std::lock_guard lock(fetch->mutex_);
  if (fetch->cancelled_) return Cancelled("cancelled by the caller");
  const std::uint64_t number = ticket.number;
  fetch->endpoint_ = endpoint;
  fetch->op_ = endpoint->Get(
      into, ticket.region, 0, Deadline::Infinite(),
      [this, done, endpoint, number, n = into.size()](const Status& status) {
        if (status.ok()) {
          fetched.fetch_add(1, std::memory_order_relaxed);
          bytes_fetched.fetch_add(n, std::memory_order_relaxed);
        }
        // Also when it failed: nobody will come again. One that is gone finds out by itself.
        (void)endpoint->Send(kReleaseChannel, std::as_bytes(std::span(&number, 1))).ok();
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
