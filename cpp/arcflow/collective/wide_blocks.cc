// SPDX-License-Identifier: Apache-2.0
// Chunks and their steps; all-reduce and broadcast between hosts.
#include "arcflow/collective/wide_blocks.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "arcflow/base/round_up.h"
#include "arcflow/collective/reduce.h"
#include "arcflow/collective/wire.h"

namespace arcflow::collective {
namespace {

constexpr std::size_t kLag = 2;                // chunks between two steps
constexpr std::size_t kWholeBytes = 64 << 10;  // up to here one step does it
constexpr std::size_t kLeastShare = 64 << 10;  // of a rank, in a chunk
constexpr std::size_t kLeastPart = 16 << 10;   // of an exchange
constexpr std::size_t kOverlap = 4;            // chunks that an operation should have
constexpr std::size_t kLine = 64;
constexpr std::size_t kWidest = 16;                // bytes of the largest element
constexpr std::size_t kPastCachesBytes = 4 << 20;  // as in blocks.cc
constexpr std::size_t kStride = 16 << 10;          // merged at once: stays in the first cache
static_assert(kWideDepth == 2 * kLag + 1);

}  // namespace

std::size_t WideBlocks::ScratchBytes(const Layout& layout, const HostLink::Sizes& sizes) {
  return (kWideDepth + 2) * sizes.slot_bytes * static_cast<std::size_t>(layout.hosts());
}

WideBlocks::WideBlocks(WideGroup& group, const Operation& operation)
    : group_(group),
      link_(group.link_),
      layout_(group.layout_),
      operation_(operation),
      kind_(operation.what.kind),
      element_bytes_(SizeOf(operation.what.element)),
      part_bytes_(operation.what.count * element_bytes_),
      local_(static_cast<std::size_t>(layout_.local_ranks())),
      place_(static_cast<std::size_t>(layout_.local_rank())),
      span_(link_.sizes().slot_bytes * static_cast<std::size_t>(layout_.hosts())),
      wire_(kind_ == Kind::kAllReduce && operation.what.element == Element::kFloat32
                ? operation.what.wire
                : Wire::kSame) {}

std::size_t WideBlocks::PackBytes(const Layout& layout, const HostLink::Sizes& sizes) {
  return kWideDepth * sizes.slot_bytes * static_cast<std::size_t>(layout.hosts());
}

/// Half of what is packed in either step.
std::byte* WideBlocks::Packed(std::size_t k, int step) const {
  return group_.packed_.get() + k % kWideDepth * span_ + (step == 0 ? 0 : span_ / 2);
}

std::byte* WideBlocks::Stage(std::size_t k) const {
  return group_.scratch_.get() + k % kWideDepth * span_;
}
std::byte* WideBlocks::Spare(int which) const {
  return group_.scratch_.get() + (kWideDepth + static_cast<std::size_t>(which)) * span_;
}

Status WideBlocks::Run() {
  if (part_bytes_ == 0) return Status::Ok();
  const auto ranks = static_cast<std::size_t>(layout_.ranks());
  const bool parted = kind_ == Kind::kReduceScatter || kind_ == Kind::kAllToAll;
  const bool wide = kind_ == Kind::kAllGather || kind_ == Kind::kAllToAll;
  const bool reads =
      kind_ != Kind::kBroadcast || static_cast<int>(operation_.what.root) == layout_.rank();
  group_.tally_.in.fetch_add(reads ? part_bytes_ * (parted ? ranks : 1) : 0,
                             std::memory_order_relaxed);
  group_.tally_.out.fetch_add(part_bytes_ * (wide ? ranks : 1), std::memory_order_relaxed);
  past_caches_ = part_bytes_ >= kPastCachesBytes;
  Cut();
  if (wire_ != Wire::kSame) ARC_TRY(group_.ReservePacked());
  if (chunks_.size() == 1 && chunks_[0].whole) {
    group_.tally_.small.fetch_add(1, std::memory_order_relaxed);
  }
  for (std::size_t i = 0; i < chunks_.size() + 2 * kLag; ++i) {
    if (i < chunks_.size()) ARC_TRY(Start(i));
    if (i >= kLag && i - kLag < chunks_.size()) ARC_TRY(Turn(i - kLag));
    if (i >= 2 * kLag) ARC_TRY(Finish(i - 2 * kLag));
  }
  if (past_caches_) StreamFence();
  for (const Flights& flights : group_.flights_) {
    ARC_TRY(link_.AwaitSent(flights, operation_.deadline));
  }
  return Status::Ok();
}

// ---- chunks ----

void WideBlocks::Cut() {
  if (kind_ != Kind::kAllReduce && kind_ != Kind::kBroadcast) return CutParts();
  if (operation_.pieces.empty()) return CutRange(operation_.in, operation_.out, part_bytes_);
  for (const Piece& piece : operation_.pieces) CutRange(piece.in, piece.out, piece.bytes);
}

void WideBlocks::CutRange(const std::byte* in, std::byte* out, std::size_t bytes) {
  const bool even = layout_.even();
  const std::size_t sharers = even ? local_ : 1;
  const std::size_t wanted =
      RoundUp((bytes + kOverlap * sharers - 1) / (kOverlap * sharers), kLine);
  const std::size_t share = std::min(span_, std::max(kLeastShare, wanted));
  const bool whole = bytes <= kWholeBytes;
  for (std::size_t at = 0; at < bytes;) {
    std::size_t n = std::min(bytes - at, share * sharers);
    Chunk chunk;
    chunk.in = in == nullptr ? nullptr : in + at;  // who only receives has none
    chunk.out = out + at;
    // Shares are of equal length; a rest that cannot be shared is short and goes whole.
    const std::size_t equal = n / (sharers * element_bytes_) * sharers * element_bytes_;
    chunk.whole = whole || equal == 0;
    if (!chunk.whole) n = equal;
    chunk.shared = even && !chunk.whole;
    chunk.bytes = n;
    chunks_.push_back(chunk);
    at += n;
  }
}

/// Parts of ranks are cut alike, so that a message holds the same stretch of several parts.
void WideBlocks::CutParts() {
  const auto most = static_cast<std::size_t>(layout_.most());
  const std::size_t parts = kind_ == Kind::kAllToAll ? most * most : most;  // in one message
  const std::size_t limit = link_.sizes().slot_bytes / parts / kWidest * kWidest;
  const std::size_t wanted = RoundUp((part_bytes_ + kOverlap - 1) / kOverlap, kWidest);
  const std::size_t bytes = std::min(limit, std::max(kLeastPart, wanted));
  for (std::size_t at = 0; at < part_bytes_; at += bytes) {
    Chunk chunk;
    chunk.offset = at;
    chunk.bytes = std::min(bytes, part_bytes_ - at);
    chunks_.push_back(chunk);
  }
}

// ---- steps ----

Status WideBlocks::Start(std::size_t k) {
  for (const int step : {0, 1}) {  // what chunk k - depth sent may lie where k is going to
    ARC_TRY(link_.AwaitSent(FlightsOf(k, step), operation_.deadline));
  }
  Status started;
  switch (kind_) {
    case Kind::kAllReduce:
      started = StartReduce(k);
      break;
    case Kind::kBroadcast:
      started = StartBroadcast(k);
      break;
    case Kind::kAllGather:
      started = StartGather(k);
      break;
    case Kind::kReduceScatter:
      started = StartScatter(k);
      break;
    case Kind::kAllToAll:
      started = StartAllToAll(k);
      break;
  }
  ARC_TRY(started);
  group_.Probe(chunks_[k].whole ? Moment::kPublished : Moment::kFilled);
  return Status::Ok();
}

Status WideBlocks::Turn(std::size_t k) {
  Status turned;
  switch (kind_) {
    case Kind::kAllReduce:
      turned = TurnReduce(k);
      break;
    case Kind::kBroadcast:
      turned = TurnBroadcast(k);
      break;
    case Kind::kAllGather:
      turned = TurnGather(k);
      break;
    case Kind::kReduceScatter:
      turned = TurnScatter(k);
      break;
    case Kind::kAllToAll:
      turned = TurnAllToAll(k);
      break;
  }
  ARC_TRY(turned);
  group_.Probe(Moment::kReduced);
  return Status::Ok();
}

Status WideBlocks::Finish(std::size_t k) {
  if (kind_ == Kind::kAllReduce || kind_ == Kind::kBroadcast) ARC_TRY(Collect(k));
  group_.Probe(Moment::kDrained);
  return Status::Ok();
}

// ---- all-reduce ----

WideBlocks::Share WideBlocks::ShareOf(std::size_t k) const {
  const Chunk& chunk = chunks_[k];
  const bool alone = local_ == 1;
  Share share;
  share.mine = chunk.shared || layout_.leads();
  share.bytes = chunk.shared ? chunk.bytes / local_ : chunk.bytes;
  if (kind_ == Kind::kBroadcast) {
    // The root's host has the chunk in its output; others build theirs there or, in shares, aside.
    const std::size_t at = chunk.shared && on_root_host() ? place_ * share.bytes : 0;
    share.target = chunk.shared && !alone && !on_root_host() ? Stage(k) : chunk.out + at;
    share.source = share.target;
    return share;
  }
  share.target = chunk.shared && !alone ? Stage(k) : chunk.out;
  share.source = alone ? chunk.in : share.target;
  // What goes whole is merged here while it is still being sent.
  if (chunk.whole && share.source == share.target) share.source = Stage(k);
  return share;
}

/// The stretch of a share that `host` merges.
WideBlocks::Part WideBlocks::PieceOf(std::size_t bytes, int host) const {
  const auto hosts = static_cast<std::size_t>(layout_.hosts());
  const std::size_t unit = RoundUp((bytes + hosts - 1) / hosts, kLine);
  const std::size_t offset = std::min(bytes, static_cast<std::size_t>(host) * unit);
  return {offset, std::min(unit, bytes - offset)};
}

Status WideBlocks::StartReduce(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  const Share share = ShareOf(k);
  const Element element = operation_.what.element;
  if (local_ > 1 && chunk.shared) {
    ARC_TRY(Local(Kind::kReduceScatter, chunk.in, Stage(k), share.bytes / element_bytes_, element));
  } else if (local_ > 1) {
    ARC_TRY(Local(Kind::kAllReduce, chunk.in, chunk.out, chunk.bytes / element_bytes_, element));
  }
  if (!share.mine) return Status::Ok();
  if (chunk.whole && share.source == Stage(k)) std::memcpy(Stage(k), share.target, share.bytes);
  return SendPieces(k, share);
}

/// The first half: to each host what it merges.
Status WideBlocks::SendPieces(std::size_t k, const Share& share) {
  const Chunk& chunk = chunks_[k];
  for (int i = 1; i < layout_.hosts(); ++i) {  // each begins with another
    const int host = (layout_.host() + i) % layout_.hosts();
    const Part part = chunk.whole ? Part{0, share.bytes} : PieceOf(share.bytes, host);
    if (!Packs(chunk)) {
      ARC_TRY(Send(host, share.source + part.offset, part.bytes, k, 0));
      continue;
    }
    std::byte* const packed = Packed(k, 0) + part.offset / 2;
    PackWire(wire_, share.source + part.offset, packed, part.bytes / sizeof(float));
    ARC_TRY(Send(host, packed, part.bytes / 2, k, 0));
  }
  return Status::Ok();
}

/// The second: what this host has merged, to all.
Status WideBlocks::SendMerged(std::size_t k, const Share& share) {
  const Chunk& chunk = chunks_[k];
  const Part part = PieceOf(share.bytes, layout_.host());
  std::byte* const merged = share.target + part.offset;
  const std::byte* message = merged;
  std::size_t bytes = part.bytes;
  if (Packs(chunk)) {
    PackWire(wire_, merged, Packed(k, 1), part.bytes / sizeof(float));
    UnpackWire(wire_, Packed(k, 1), merged,
               part.bytes / sizeof(float));  // all have the same values
    message = Packed(k, 1);
    bytes /= 2;
  }
  for (int i = 1; i < layout_.hosts(); ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    ARC_TRY(Send(host, message, bytes, k, 1));
  }
  return Status::Ok();
}

Status WideBlocks::TurnReduce(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  const Share share = ShareOf(k);
  if (!share.mine) return Status::Ok();
  const Part part = chunk.whole ? Part{0, share.bytes} : PieceOf(share.bytes, layout_.host());
  if (part.bytes == 0) return Status::Ok();
  ARC_TRY(
      MergeHosts(share.source + part.offset, share.target + part.offset, part.bytes, Packs(chunk)));
  return chunk.whole ? Status::Ok() : SendMerged(k, share);
}

Status WideBlocks::MergeHosts(const std::byte* own, std::byte* to, std::size_t bytes, bool packed) {
  const auto hosts = static_cast<std::size_t>(layout_.hosts());
  std::array<const std::byte*, kMaxRanks> sources{};
  for (std::size_t h = 0; h < hosts; ++h) {
    const int host = static_cast<int>(h);
    sources[h] = own;
    if (host != layout_.host()) {
      ARC_ASSIGN(sources[h], Await(host, packed ? bytes / 2 : bytes));
    }
  }
  const int divisor = operation_.what.divide != 0 ? layout_.ranks() : 0;
  for (std::size_t at = 0; at < bytes; at += kStride) {
    const std::size_t n = std::min(kStride, bytes - at);
    std::array<const void*, kMaxRanks> here{};
    for (std::size_t h = 0; h < hosts; ++h) {
      here[h] = sources[h] + at;
      if (!packed || static_cast<int>(h) == layout_.host()) continue;
      std::byte* const values = Spare(0) + h * kStride;
      UnpackWire(wire_, sources[h] + at / 2, values, n / sizeof(float));
      here[h] = values;
    }
    ReduceInto(operation_.what.element, operation_.what.merge, divisor, here.data(), hosts, to + at,
               n / element_bytes_);
  }
  for (int h = 0; h < layout_.hosts(); ++h) {
    if (h != layout_.host()) link_.Release(h);
  }
  return Status::Ok();
}

/// The last step of all-reduce and broadcast: pieces of other hosts, then shares of this one.
Status WideBlocks::Collect(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  const Share share = ShareOf(k);
  if (kind_ == Kind::kBroadcast && on_root_host()) return Status::Ok();
  if (share.mine && !chunk.whole) {
    ARC_TRY(link_.AwaitSent(FlightsOf(k, 0), operation_.deadline));  // may be read from there
    for (int i = 1; i < layout_.hosts(); ++i) {
      const int host = (layout_.host() + i) % layout_.hosts();
      const Part part = PieceOf(share.bytes, host);
      if (part.bytes == 0) continue;
      const bool packed = Packs(chunk);
      ARC_ASSIGN(const std::byte* const piece, Await(host, packed ? part.bytes / 2 : part.bytes));
      if (packed) {
        UnpackWire(wire_, piece, share.target + part.offset, part.bytes / sizeof(float));
      } else {
        CopyToCaller(share.target + part.offset, piece, part.bytes);
      }
      link_.Release(host);
    }
  }
  if (local_ == 1) return Status::Ok();
  if (chunk.shared) return LocalBytes(Kind::kAllGather, Stage(k), chunk.out, share.bytes);
  return LocalBytes(Kind::kBroadcast, chunk.out, chunk.out, chunk.bytes);
}

// ---- broadcast ----

Status WideBlocks::StartBroadcast(std::size_t k) {
  if (!on_root_host()) return Status::Ok();
  const Chunk& chunk = chunks_[k];
  const int root = static_cast<int>(operation_.what.root);
  if (local_ > 1) {
    const std::vector<int>& members = layout_.members(layout_.host());
    const auto place = std::find(members.begin(), members.end(), root) - members.begin();
    ARC_TRY(LocalBytes(Kind::kBroadcast, root == layout_.rank() ? chunk.in : nullptr, chunk.out,
                       chunk.bytes, static_cast<int>(place)));
  } else if (chunk.in != chunk.out) {
    std::memcpy(chunk.out, chunk.in, chunk.bytes);
  }
  const Share share = ShareOf(k);
  for (int i = 1; i < layout_.hosts() && share.mine; ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    const Part part = chunk.whole ? Part{0, share.bytes} : PieceOf(share.bytes, host);
    ARC_TRY(Send(host, share.source + part.offset, part.bytes, k, 0));
  }
  return Status::Ok();
}

/// The piece of this host: comes from the root's, goes to the others.
Status WideBlocks::TurnBroadcast(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  const Share share = ShareOf(k);
  const int from = layout_.host_of(static_cast<int>(operation_.what.root));
  const Part part = chunk.whole ? Part{0, share.bytes} : PieceOf(share.bytes, layout_.host());
  if (!share.mine || part.bytes == 0) return Status::Ok();
  std::byte* const piece = share.target + part.offset;
  if (!on_root_host()) {
    ARC_ASSIGN(const std::byte* const came, Await(from, part.bytes));
    std::memcpy(piece, came, part.bytes);
    link_.Release(from);
  }
  for (int i = 1; i < layout_.hosts() && !chunk.whole; ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    if (host != from) ARC_TRY(Send(host, piece, part.bytes, k, 1));
  }
  return Status::Ok();
}

// ---- what the steps are made of ----

Status WideBlocks::Send(int host, const std::byte* bytes, std::size_t n, std::size_t k, int step) {
  if (n == 0) return Status::Ok();
  const Status sent = link_.Send(host, {bytes, n}, &FlightsOf(k, step), operation_.deadline);
  if (sent.code() != Code::kDeadlineExceeded) return sent;
  return DeadlineExceeded("rank " + std::to_string(layout_.partner(host)) +
                          " took nothing until the time limit of a collective");
}

Result<const std::byte*> WideBlocks::Await(int host, std::size_t bytes) {
  auto came = link_.Await(host, bytes, operation_.deadline);
  if (came.ok() || came.status().code() != Code::kDeadlineExceeded) return came;
  return DeadlineExceeded("rank " + std::to_string(layout_.partner(host)) +
                          " sent nothing until the time limit of a collective");
}

Status WideBlocks::Local(Kind kind, const std::byte* in, std::byte* out, std::size_t count,
                         Element element, int root, std::span<const Piece> pieces) {
  Operation operation;
  operation.key = ++group_.local_key_;  // all ranks of the host do the same, one after the other
  operation.what.kind = kind;
  operation.what.element = element;
  operation.what.merge = operation_.what.merge;
  operation.what.root = static_cast<std::uint32_t>(root);
  operation.what.count = count;
  operation.in = in;
  operation.out = out;
  operation.pieces = pieces;
  operation.deadline = operation_.deadline;
  const Status done = group_.local_->Run(std::move(operation));
  if (done.code() != Code::kDeadlineExceeded) return done;
  std::string others;  // ranks have other numbers within a host
  for (const int rank : layout_.members(layout_.host())) {
    if (rank == layout_.rank()) continue;
    others += (others.empty() ? "" : " or ") + std::to_string(rank);
  }
  return DeadlineExceeded("rank " + others + " did not go on until the time limit of a collective");
}

void WideBlocks::CopyToCaller(std::byte* to, const std::byte* from, std::size_t n) const {
  if (past_caches_ && local_ == 1) {
    CopyPastCaches(to, from, n);
  } else {
    std::memcpy(to, from, n);
  }
}

}  // namespace arcflow::collective
