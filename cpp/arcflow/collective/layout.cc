// SPDX-License-Identifier: Apache-2.0
// Layout: hosts numbered, ranks placed.
#include "arcflow/collective/layout.h"

#include <algorithm>
#include <map>

namespace arcflow::collective {

Result<Layout> Layout::Make(const std::vector<int>& hosts, int rank) {
  if (rank < 0 || static_cast<std::size_t>(rank) >= hosts.size()) {
    return InvalidArgument("rank " + std::to_string(rank) + " of " + std::to_string(hosts.size()) +
                           " cannot be");
  }
  Layout layout;
  layout.rank_ = rank;
  std::map<int, int> numbers;
  for (std::size_t r = 0; r < hosts.size(); ++r) {
    const int host = numbers.try_emplace(hosts[r], static_cast<int>(numbers.size())).first->second;
    if (static_cast<std::size_t>(host) == layout.members_.size()) layout.members_.emplace_back();
    layout.host_of_.push_back(host);
    layout.members_[static_cast<std::size_t>(host)].push_back(static_cast<int>(r));
  }
  if (layout.hosts() < 2) return InvalidArgument("all ranks are on one host");
  std::size_t least = hosts.size();
  std::size_t most = 0;
  for (const auto& members : layout.members_) {
    least = std::min(least, members.size());
    most = std::max(most, members.size());
  }
  layout.even_ = least == most;
  layout.most_ = static_cast<int>(most);
  layout.local_rank_ = layout.PlaceOf(rank);
  return layout;
}

int Layout::PlaceOf(int rank) const {
  const std::vector<int>& on_host = members(host_of(rank));
  return static_cast<int>(std::find(on_host.begin(), on_host.end(), rank) - on_host.begin());
}

bool Layout::connected(int a, int b) const {
  if (a == b) return false;
  if (a == 0 || b == 0) return true;
  if (host_of(a) == host_of(b)) return false;
  const int place = PlaceOf(a);
  return place == PlaceOf(b) && (even_ || place == 0);
}

}  // namespace arcflow::collective
