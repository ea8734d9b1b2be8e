// SPDX-License-Identifier: Apache-2.0
// Signatures in words, for messages about ranks that disagree.
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
  if (shape != 0) text += " (shape " + std::to_string(shape % 10000) + ")";
  return text;
}

}  // namespace arcflow::collective
