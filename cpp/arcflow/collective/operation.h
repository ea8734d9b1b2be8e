// SPDX-License-Identifier: Apache-2.0
// Operation: one collective call of one rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <type_traits>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/element.h"

namespace arcflow::collective {

enum class Kind : std::uint32_t {
  kAllReduce = 0,      // n elements in and out
  kBroadcast = 1,      // n elements from the root
  kAllGather = 2,      // n in, n·ranks out, in order of rank
  kReduceScatter = 3,  // n·ranks in, n out: part `rank` of the merged input
  kAllToAll = 4,       // n·ranks in and out: part j goes to rank j
};
inline constexpr std::size_t kKinds = 5;

/// What all ranks must agree on. Lies in shared memory: integers only.
struct Signature {
  Kind kind = Kind::kAllReduce;
  Element element = Element::kFloat32;
  Merge merge = Merge::kAdd;
  std::uint32_t divide = 0;  // 1: divide the merged values by the number of ranks
  std::uint32_t root = 0;    // broadcast
  Wire wire = Wire::kSame;   // counts for an all-reduce of float32 only
  std::uint64_t count = 0;   // n, above
  std::uint64_t shape = 0;   // hash of what else must be equal (the dimensions); 0 if nothing

  bool operator==(const Signature&) const = default;
  /// Such as "all-reduce add of 100 float32".
  std::string ToString() const;
};
static_assert(std::is_trivially_copyable_v<Signature> && sizeof(Signature) == 40);

/// A part of what an all-reduce or broadcast works on: a tensor of a packed set.
struct Piece {
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  std::size_t bytes = 0;  // a multiple of the element size
};

struct Operation {
  /// Names the operation among those under way: equal on all ranks. The same key may be used again
  /// when the operation is done.
  std::uint64_t key = 0;
  Signature what;
  /// Dense memory, aligned for its element. `in` and `out` may be the same for all-reduce and
  /// broadcast, else must not overlap. The root alone reads `in` of a broadcast.
  const std::byte* in = nullptr;
  std::byte* out = nullptr;
  /// All-reduce and broadcast only: used instead of in and out when not empty. Their sizes add up
  /// to count elements, and are the same on all ranks. Must live until `done`.
  std::span<const Piece> pieces;
  /// Whether `out`, or that of the pieces, lies in what `Engine::Reserve` gave for this key.
  bool result_shared = false;
  /// When it passes before the operation is done, the whole group fails.
  Deadline deadline = Deadline::Infinite();
  /// Called exactly once, by a thread that may be in another rank's turn: it must not wait for
  /// another operation. Memory is not touched any more when it is called.
  std::function<void(const Status&)> done;
  /// Runs a function on another thread; when set, `done` is handed to it whenever the thread that
  /// works for the group has more to do.
  std::function<void(std::function<void()>)> defer;
};

/// InvalidArgument for an operation that no group of `ranks` ranks can run.
Status CheckOperation(const Operation& operation, int ranks);

}  // namespace arcflow::collective
