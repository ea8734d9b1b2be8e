// SPDX-License-Identifier: Apache-2.0
// WideBlocks: moves and merges the data of one operation of a group of several hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "arcflow/base/status.h"
#include "arcflow/collective/wide_group.h"

namespace arcflow::collective {

/// One operation on its way; made and run by the group's worker.
///
/// An operation is cut into chunks, and each goes through three steps; while the first works on
/// chunk k, the second has k-2 and the third k-4, so that several are on the wires.
///
/// All-reduce of a chunk: *start*: ranks of a host reduce-scatter it in shared memory, and each
/// sends of its share the piece of every other host to its partner there. *Turn*: what came for
/// this host's piece is merged, and the result sent to all partners. *Finish*: results of the other
/// pieces come in, and ranks of a host gather the shares. Cost: of n bytes 2n(h-1)/h leave each of
/// h hosts, whatever number of ranks it has. Where hosts have different numbers of ranks, their
/// leaders exchange for all; what is small goes whole from leader to leader, in one step.
/// Broadcast is the second half of that, after the root's host has scattered the chunk. The other
/// collectives have nothing to merge between hosts that would save bytes: leaders exchange what
/// ranks of a host have gathered.
class WideBlocks {
 public:
  /// What a group needs beside its rings, for all operations; PackBytes more once values are packed
  /// for the wire.
  static std::size_t ScratchBytes(const Layout& layout, const HostLink::Sizes& sizes);
  static std::size_t PackBytes(const Layout& layout, const HostLink::Sizes& sizes);

  WideBlocks(WideGroup& group, const Operation& operation);
  Status Run();

 private:
  struct Chunk {
    const std::byte* in = nullptr;
    std::byte* out = nullptr;
    std::size_t offset = 0;  // exchanges: in each part
    std::size_t bytes = 0;   // exchanges: of each part
    bool shared = false;     // each rank of a host has a share
    bool whole = false;      // not cut into pieces
  };
  /// What of a chunk this rank exchanges.
  struct Share {
    const std::byte* source = nullptr;
    std::byte* target = nullptr;
    std::size_t bytes = 0;
    bool mine = false;  // nothing to do between hosts otherwise
  };
  struct Part {
    std::size_t offset = 0;
    std::size_t bytes = 0;
  };

  void Cut();
  void CutRange(const std::byte* in, std::byte* out, std::size_t bytes);
  void CutParts();
  Status Start(std::size_t k);
  Status Turn(std::size_t k);
  Status Finish(std::size_t k);

  // All-reduce and broadcast: wide_blocks.cc.
  Status StartReduce(std::size_t k);
  Status StartBroadcast(std::size_t k);
  Status TurnReduce(std::size_t k);
  Status TurnBroadcast(std::size_t k);
  Status Collect(std::size_t k);
  Share ShareOf(std::size_t k) const;
  Part PieceOf(std::size_t bytes, int host) const;

  // The others: wide_exchange.cc.
  Status StartGather(std::size_t k);
  Status TurnGather(std::size_t k);
  Status StartScatter(std::size_t k);
  Status TurnScatter(std::size_t k);
  Status StartAllToAll(std::size_t k);
  Status TurnAllToAll(std::size_t k);
  /// Message of `bytes` from `host`, for every rank of this host.
  Result<const std::byte*> TakeForAll(int host, std::size_t bytes);
  void ReleaseLed(int host);

  Status Send(int host, const std::byte* bytes, std::size_t n, std::size_t k, int step);
  Result<const std::byte*> Await(int host, std::size_t bytes);
  /// Merges `own` with what has come from all other hosts, in order of host, into `to`; `packed`:
  /// as it goes over the wire.
  Status MergeHosts(const std::byte* own, std::byte* to, std::size_t bytes, bool packed);
  Status SendPieces(std::size_t k, const Share& share);
  Status SendMerged(std::size_t k, const Share& share);
  /// Whether pieces of a chunk go packed: large ones do.
  bool Packs(const Chunk& chunk) const { return wire_ != Wire::kSame && !chunk.whole; }
  Status Local(Kind kind, const std::byte* in, std::byte* out, std::size_t count, Element element,
               int root = 0, std::span<const Piece> pieces = {});
  Status LocalBytes(Kind kind, const std::byte* in, std::byte* out, std::size_t bytes,
                    int root = 0) {
    return Local(kind, in, out, bytes, Element::kByte, root);
  }
  void CopyToCaller(std::byte* to, const std::byte* from, std::size_t n) const;

  std::byte* Stage(std::size_t k) const;             // of chunk k
  std::byte* Spare(int which) const;                 // between two local operations
  std::byte* Packed(std::size_t k, int step) const;  // what of chunk k is sent in a step, packed
  Flights& FlightsOf(std::size_t k, int step) const {
    return group_.flights_[2 * (k % kWideDepth) + static_cast<std::size_t>(step)];
  }
  std::size_t FirstOf(int host) const;  // place of its first rank when ranks go by host
  std::size_t RanksOn(int host) const { return layout_.members(host).size(); }
  std::byte* Row(int rank) const {
    return operation_.out + static_cast<std::size_t>(rank) * part_bytes_;
  }
  bool on_root_host() const {
    return layout_.host_of(static_cast<int>(operation_.what.root)) == layout_.host();
  }

  WideGroup& group_;
  HostLink& link_;
  const Layout& layout_;
  const Operation& operation_;
  const Kind kind_;
  const std::size_t element_bytes_;
  const std::size_t part_bytes_;
  const std::size_t local_;  // ranks on this host
  const std::size_t place_;  // of this rank among them
  const std::size_t span_;   // bytes of one message to each host, together
  const Wire wire_;
  bool past_caches_ = false;
  std::vector<Chunk> chunks_;
};

}  // namespace arcflow::collective
