// SPDX-License-Identifier: Apache-2.0
// Signatures in words, for messages about ranks that disagree; operations that cannot be.
#include "arcflow/collective/operation.h"

#include <iterator>
#include <string_view>

namespace arcflow::collective {

std::string Signature::ToString() const {
  constexpr std::string_view kNames[] = {"all-reduce", "broadcast", "all-gather", "reduce-scatter",
                                         "all-to-all"};
  const auto at = static_cast<std::size_t>(kind);
  std::string text(at < std::size(kNames) ? kNames[at] : "unknown collective");
  if (kind == Kind::kAllReduce || kind == Kind::kReduceScatter) {
    text += " ";
    text += NameOf(merge);
    if (divide != 0) text += "+div";
  }
  if (kind == Kind::kBroadcast) text += " from rank " + std::to_string(root);
  text += " of " + std::to_string(count) + " ";
  text += NameOf(element);
  if (wire != Wire::kSame) text += ", " + std::string(NameOf(wire)) + " between hosts";
  if (shape != 0) text += " (shape " + std::to_string(shape % 10000) + ")";
  return text;
}

Status CheckOperation(const Operation& operation, int ranks) {
  const Signature& what = operation.what;
  if (static_cast<std::size_t>(what.kind) >= kKinds || SizeOf(what.element) == 0 ||
      static_cast<std::size_t>(what.merge) >= kMerges ||
      static_cast<std::size_t>(what.wire) >= kWires) {
    return InvalidArgument("unknown collective, element or merge operation");
  }
  const bool merges = what.kind == Kind::kAllReduce || what.kind == Kind::kReduceScatter;
  if (merges && !Reducible(what.element)) {
    return InvalidArgument("elements of type " + std::string(NameOf(what.element)) +
                           " cannot be merged");
  }
  if (what.kind == Kind::kBroadcast && what.root >= static_cast<std::uint32_t>(ranks)) {
    return InvalidArgument("broadcast from rank " + std::to_string(what.root) + " of " +
                           std::to_string(ranks));
  }
  if (operation.result_shared && what.kind != Kind::kAllReduce) {
    return InvalidArgument("only all-reduce has a result that is shared");
  }
  if (operation.pieces.empty()) return Status::Ok();
  if (what.kind != Kind::kAllReduce && what.kind != Kind::kBroadcast) {
    return InvalidArgument("only all-reduce and broadcast take pieces");
  }
  const std::size_t size = SizeOf(what.element);
  std::uint64_t bytes = 0;
  for (const Piece& piece : operation.pieces) {
    if (piece.bytes % size != 0) return InvalidArgument("a piece ends inside an element");
    bytes += piece.bytes;
  }
  if (bytes != what.count * size) return InvalidArgument("pieces do not add up to the count");
  return Status::Ok();
}

}  // namespace arcflow::collective
