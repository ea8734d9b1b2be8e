// SPDX-License-Identifier: Apache-2.0
// All-gather, reduce-scatter and all-to-all between hosts: leaders exchange what ranks of a host
// have gathered.
#include <cstring>
#include <vector>

#include "arcflow/collective/wide_blocks.h"

namespace arcflow::collective {

/// Place of a host's first rank when ranks are lined up host by host.
std::size_t WideBlocks::FirstOf(int host) const {
  std::size_t first = 0;
  for (int h = 0; h < host; ++h) first += RanksOn(h);
  return first;
}

Result<const std::byte*> WideBlocks::TakeForAll(int host, std::size_t bytes) {
  const std::byte* came = nullptr;
  if (layout_.leads()) {
    ARC_ASSIGN(came, Await(host, bytes));
  }
  if (local_ == 1) return came;
  ARC_TRY(LocalBytes(Kind::kBroadcast, came, Spare(0), bytes));
  return static_cast<const std::byte*>(Spare(0));
}

void WideBlocks::ReleaseLed(int host) {
  if (layout_.leads()) link_.Release(host);
}

// ---- all-gather ----

Status WideBlocks::StartGather(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  const std::byte* source = operation_.in + chunk.offset;
  if (local_ > 1) {
    ARC_TRY(LocalBytes(Kind::kAllGather, source, Stage(k), chunk.bytes));
    source = Stage(k);
  }
  for (std::size_t l = 0; l < local_; ++l) {
    std::memcpy(Row(layout_.members(layout_.host())[l]) + chunk.offset, source + l * chunk.bytes,
                chunk.bytes);
  }
  for (int i = 1; i < layout_.hosts() && layout_.leads(); ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    ARC_TRY(Send(host, source, local_ * chunk.bytes, k, 0));
  }
  return Status::Ok();
}

Status WideBlocks::TurnGather(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  for (int i = 1; i < layout_.hosts(); ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    ARC_ASSIGN(const std::byte* const came, TakeForAll(host, RanksOn(host) * chunk.bytes));
    for (std::size_t l = 0; l < RanksOn(host); ++l) {
      CopyToCaller(Row(layout_.members(host)[l]) + chunk.offset, came + l * chunk.bytes,
                   chunk.bytes);
    }
    ReleaseLed(host);
  }
  return Status::Ok();
}

// ---- reduce-scatter ----

Status WideBlocks::StartScatter(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  std::vector<Piece> stretches;  // of each rank's part, host by host
  for (int host = 0; host < layout_.hosts(); ++host) {
    for (const int rank : layout_.members(host)) {
      stretches.push_back(
          {operation_.in + static_cast<std::size_t>(rank) * part_bytes_ + chunk.offset,
           Stage(k) + stretches.size() * chunk.bytes, chunk.bytes});
    }
  }
  if (local_ > 1) {
    const std::size_t count = stretches.size() * chunk.bytes / element_bytes_;
    ARC_TRY(
        Local(Kind::kAllReduce, nullptr, nullptr, count, operation_.what.element, 0, stretches));
  } else {
    for (const Piece& each : stretches) std::memcpy(each.out, each.in, each.bytes);
  }
  for (int i = 1; i < layout_.hosts() && layout_.leads(); ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    ARC_TRY(Send(host, Stage(k) + FirstOf(host) * chunk.bytes, RanksOn(host) * chunk.bytes, k, 0));
  }
  return Status::Ok();
}

Status WideBlocks::TurnScatter(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  std::byte* const own = Stage(k) + FirstOf(layout_.host()) * chunk.bytes;  // sent to nobody
  if (layout_.leads()) ARC_TRY(MergeHosts(own, own, local_ * chunk.bytes, false));
  if (local_ > 1) ARC_TRY(LocalBytes(Kind::kBroadcast, own, own, local_ * chunk.bytes));
  std::memcpy(operation_.out + chunk.offset, own + place_ * chunk.bytes, chunk.bytes);
  return Status::Ok();
}

// ---- all-to-all ----

Status WideBlocks::StartAllToAll(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  const auto ranks = static_cast<std::size_t>(layout_.ranks());
  std::byte* mine = Spare(0);  // stretches of all parts, host by host
  for (int host = 0, at = 0; host < layout_.hosts(); ++host) {
    for (const int rank : layout_.members(host)) {
      std::memcpy(mine + static_cast<std::size_t>(at++) * chunk.bytes,
                  operation_.in + static_cast<std::size_t>(rank) * part_bytes_ + chunk.offset,
                  chunk.bytes);
    }
  }
  const std::byte* all = mine;  // by rank of this host
  if (local_ > 1) {
    ARC_TRY(LocalBytes(Kind::kAllGather, mine, Spare(1), ranks * chunk.bytes));
    all = Spare(1);
  }
  const auto from = [&](std::size_t l, std::size_t place) {
    return all + (l * ranks + place) * chunk.bytes;
  };
  for (std::size_t l = 0; l < local_; ++l) {
    std::memcpy(Row(layout_.members(layout_.host())[l]) + chunk.offset,
                from(l, FirstOf(layout_.host()) + place_), chunk.bytes);
  }
  for (int i = 1; i < layout_.hosts() && layout_.leads(); ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    const std::size_t bytes = RanksOn(host) * chunk.bytes;  // of one rank of ours
    std::byte* const message = Stage(k) + FirstOf(host) * local_ * chunk.bytes;
    for (std::size_t l = 0; l < local_; ++l) {
      std::memcpy(message + l * bytes, from(l, FirstOf(host)), bytes);
    }
    ARC_TRY(Send(host, message, local_ * bytes, k, 0));
  }
  return Status::Ok();
}

Status WideBlocks::TurnAllToAll(std::size_t k) {
  const Chunk& chunk = chunks_[k];
  for (int i = 1; i < layout_.hosts(); ++i) {
    const int host = (layout_.host() + i) % layout_.hosts();
    ARC_ASSIGN(const std::byte* const came, TakeForAll(host, RanksOn(host) * local_ * chunk.bytes));
    for (std::size_t l = 0; l < RanksOn(host); ++l) {
      std::memcpy(Row(layout_.members(host)[l]) + chunk.offset,
                  came + (l * local_ + place_) * chunk.bytes, chunk.bytes);
    }
    ReleaseLed(host);
  }
  return Status::Ok();
}

}  // namespace arcflow::collective
