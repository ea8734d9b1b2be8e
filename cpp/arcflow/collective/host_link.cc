// SPDX-License-Identifier: Apache-2.0
// HostLink: rings, credits, and what is on its way.
#include "arcflow/collective/host_link.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "arcflow/collective/board.h"

namespace arcflow::collective {
namespace {

constexpr std::size_t kSlotAlignment = 4096;
constexpr std::size_t kAllHostsBytes = std::size_t{1} << 20;  // one message to each host, together
constexpr std::size_t kLeastSlot = std::size_t{64} << 10;
// Who waits looks up so often, so that a suspicion (WideGroup) becomes a failure in time.
constexpr std::chrono::milliseconds kRingLook{100};

using Words = std::array<std::uint64_t, 2>;  // of a notice: number, length

}  // namespace

HostLink::Sizes HostLink::Sizes::For(int hosts) {
  Sizes sizes;
  const std::size_t share = kAllHostsBytes / static_cast<std::size_t>(std::max(hosts, 1));
  sizes.slot_bytes = std::max(kLeastSlot, share / kSlotAlignment * kSlotAlignment);
  return sizes;
}

HostLink::HostLink(int hosts, int host, const Sizes& sizes,
                   std::function<void(const Status&)> broken, std::function<void()> patrol)
    : host_(host),
      sizes_(sizes),
      broken_(std::move(broken)),
      patrol_(std::move(patrol)),
      memory_(nullptr, &std::free),
      partners_(static_cast<std::size_t>(hosts)) {}

Status HostLink::Open(transport::Context& context) {
  const std::size_t bytes = partners_.size() * RingBytes();
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kSlotAlignment, bytes)));
  if (memory_ == nullptr) {
    return ResourceExhausted("no memory for a group's " + std::to_string(bytes) + " bytes");
  }
  std::memset(memory_.get(), 0, bytes);  // its pages are there from now on
  for (Partner& partner : partners_) {
    partner.arrived.assign(sizes_.slots, 0);
    partner.lengths.assign(sizes_.slots, 0);
  }
  ARC_ASSIGN(region_, context.Register({memory_.get(), bytes}, transport::Access::kWrite));
  context.Handle(kDataChannel,
                 [this](const auto& from, std::span<const std::byte> b) { OnData(from, b); });
  context.Handle(kCreditChannel,
                 [this](const auto& from, std::span<const std::byte> b) { OnCredit(from, b); });
  return Status::Ok();
}

Status HostLink::Attach(int host, std::shared_ptr<transport::Endpoint> to,
                        const transport::RemoteRegion& rings) {
  if (rings.size_bytes != partners_.size() * RingBytes() || !transport::CanWrite(rings.access) ||
      rings.owner != to->peer()) {
    return InvalidArgument("a partner on another host has rings of other sizes");
  }
  const std::lock_guard lock(mutex_);
  Partner& partner = partners_[static_cast<std::size_t>(host)];
  partner.endpoint = std::move(to);
  partner.rings = rings;
  return Status::Ok();
}

std::byte* HostLink::Slot(int host, std::uint64_t message) {
  return memory_.get() + static_cast<std::size_t>(host) * RingBytes() +
         message % sizes_.slots * sizes_.slot_bytes;
}

template <typename Ready>
Status HostLink::Wait(std::unique_lock<std::mutex>* lock, const Ready& ready,
                      const Deadline& deadline) {
  bool slept = false;
  while (!ready()) {
    if (stopped_) return Cancelled("the group has failed");
    if (deadline.expired()) return DeadlineExceeded("the time limit passed");
    if (!std::exchange(slept, true)) ++sleeps_;
    const auto until = std::min(Deadline::Clock::now() + kRingLook, deadline.at());
    if (changed_.wait_until(*lock, until) == std::cv_status::timeout) {
      lock->unlock();
      patrol_();
      lock->lock();
    }
  }
  return Status::Ok();  // also after Stop: who leaves when all is done takes nothing from others
}

Status HostLink::Send(int host, std::span<const std::byte> bytes, Flights* flights,
                      const Deadline& deadline) {
  Partner& partner = partners_[static_cast<std::size_t>(host)];
  Words words{};
  std::uint64_t id = 0;
  {
    std::unique_lock lock(mutex_);
    ARC_TRY(Wait(
        &lock, [&] { return partner.sent - partner.credited < sizes_.slots; }, deadline));
    words = {partner.sent++, bytes.size()};
    partner.bytes_sent += bytes.size();
    id = next_flight_++;
    flights_[id] = {partner.endpoint, 0, flights};
    ++flights->out;
  }
  // Our messages lie in the part of the partner's rings that has our number.
  const std::uint64_t offset =
      static_cast<std::uint64_t>(host_) * RingBytes() + words[0] % sizes_.slots * sizes_.slot_bytes;
  transport::PutOptions options;
  options.channel = kDataChannel;
  options.notice = {reinterpret_cast<const char*>(words.data()), sizeof words};
  const transport::OpId op =
      partner.endpoint->Put(bytes, partner.rings, offset, options,
                            [this, id](const Status& status) { OnSent(id, status); });
  const std::lock_guard lock(mutex_);
  const auto found = flights_.find(id);  // it may have arrived already
  if (found != flights_.end()) found->second.op = op;
  return Status::Ok();
}

Result<const std::byte*> HostLink::Await(int host, std::size_t bytes, const Deadline& deadline) {
  Partner& partner = partners_[static_cast<std::size_t>(host)];
  std::unique_lock lock(mutex_);
  const std::size_t slot = partner.taken % sizes_.slots;
  ARC_TRY(Wait(
      &lock, [&] { return partner.arrived[slot] == partner.taken + 1; }, deadline));
  if (partner.lengths[slot] != bytes) {
    return Internal("a partner on another host sent " + std::to_string(partner.lengths[slot]) +
                    " bytes where " + std::to_string(bytes) + " were due");
  }
  partner.bytes_received += bytes;
  return static_cast<const std::byte*>(Slot(host, partner.taken));
}

void HostLink::Release(int host) {
  Partner& partner = partners_[static_cast<std::size_t>(host)];
  std::uint64_t taken = 0;
  {
    const std::lock_guard lock(mutex_);
    taken = ++partner.taken;
  }
  // A partner that is gone is found by the context.
  (void)partner.endpoint->Send(kCreditChannel, std::as_bytes(std::span(&taken, 1))).ok();
}

Status HostLink::AwaitSent(const Flights& flights, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  return Wait(
      &lock, [&] { return flights.out == 0; }, deadline);
}

void HostLink::Stop() {
  const std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

void HostLink::CancelAll() {
  std::vector<Flight> out;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, flight] : flights_) out.push_back(flight);
  }
  for (const Flight& flight : out) flight.endpoint->Cancel(flight.op);
  std::unique_lock lock(mutex_);  // `done` of each has been called, or is about to be
  changed_.wait(lock, [&] { return flights_.empty(); });
}

HostLink::Bytes HostLink::bytes(int host) const {
  const std::lock_guard lock(mutex_);
  const Partner& partner = partners_[static_cast<std::size_t>(host)];
  if (partner.endpoint == nullptr) return {};
  return {partner.bytes_sent, partner.bytes_received, std::string(partner.endpoint->backend())};
}

std::uint64_t HostLink::sleeps() const {
  const std::lock_guard lock(mutex_);
  return sleeps_;
}

// ---- on threads of the transport ----

HostLink::Partner* HostLink::Find(const transport::NodeId& node) {
  for (Partner& partner : partners_) {
    if (partner.endpoint != nullptr && partner.endpoint->peer() == node) return &partner;
  }
  return nullptr;
}

void HostLink::OnData(const std::shared_ptr<transport::Endpoint>& from,
                      std::span<const std::byte> notice) {
  Words words{};
  bool sound = notice.size() == sizeof words;
  if (sound) std::memcpy(words.data(), notice.data(), sizeof words);
  {
    const std::lock_guard lock(mutex_);
    Partner* const partner = Find(from->peer());
    sound = sound && partner != nullptr && words[0] >= partner->taken &&
            words[0] - partner->taken < sizes_.slots && words[1] <= sizes_.slot_bytes;
    if (sound) {
      partner->arrived[words[0] % sizes_.slots] = words[0] + 1;
      partner->lengths[words[0] % sizes_.slots] = words[1];
      changed_.notify_all();
    }
  }
  if (!sound) broken_(Internal("a partner on another host wrote out of turn"));
}

void HostLink::OnCredit(const std::shared_ptr<transport::Endpoint>& from,
                        std::span<const std::byte> message) {
  std::uint64_t credited = 0;
  bool sound = message.size() == sizeof credited;
  if (sound) std::memcpy(&credited, message.data(), sizeof credited);
  {
    const std::lock_guard lock(mutex_);
    Partner* const partner = Find(from->peer());
    sound =
        sound && partner != nullptr && credited >= partner->credited && credited <= partner->sent;
    if (sound) {
      partner->credited = credited;
      changed_.notify_all();
    }
  }
  if (!sound) broken_(Internal("a partner on another host released what was not sent"));
}

void HostLink::OnSent(std::uint64_t flight, const Status& status) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = flights_.find(flight);
    --found->second.flights->out;
    flights_.erase(found);
    changed_.notify_all();
  }
  // A partner that is gone is told of by the context; what was cancelled by whoever did.
  const bool expected =
      status.ok() || status.code() == Code::kUnavailable || status.code() == Code::kCancelled;
  if (!expected) broken_(status.WithContext("a partner on another host"));
}

}  // namespace arcflow::collective
