// SPDX-License-Identifier: Apache-2.0
// Groups of several hosts in one test: which rank is on which host is the test's to say, and the
// hosts meet over loopback.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arcflow/collective/group_testing.h"
#include "arcflow/collective/hub.h"
#include "arcflow/collective/lobby.h"
#include "arcflow/collective/reduce.h"

namespace arcflow::collective::testing {

inline transport::ContextOptions LoopbackOptions() {
  transport::ContextOptions options;
  options.secret = std::string(32, 's');
  options.backends = {"tcp"};
  options.io_threads = 1;
  return options;
}

/// What a process needs to meet others.
struct Station {
  std::unique_ptr<Hub> hub;
  std::unique_ptr<Lobby> lobby;

  static Station Make(const transport::ContextOptions& options = LoopbackOptions()) {
    auto hub = Hub::Listen(options.secret);
    auto lobby = Lobby::Open(options);
    EXPECT_TRUE(hub.ok()) << hub.status().ToString();
    EXPECT_TRUE(lobby.ok()) << lobby.status().ToString();
    return {*std::move(hub), *std::move(lobby)};
  }
};

/// Engines of ranks on `hosts` (by rank), each a process of its own as far as it knows.
inline std::vector<std::shared_ptr<Engine>> MakeEngines(const std::vector<int>& hosts) {
  const auto ranks = static_cast<int>(hosts.size());
  std::vector<std::shared_ptr<Engine>> engines(hosts.size());
  if (std::all_of(hosts.begin(), hosts.end(), [&](int h) { return h == hosts[0]; })) {
    auto groups = MakeRanks(ranks);
    for (std::size_t r = 0; r < hosts.size(); ++r) engines[r] = std::move(groups[r]);
    return engines;
  }
  std::vector<Station> stations;
  WideMembership all{"g", 0, {}, {}, hosts};
  for (int r = 0; r < ranks; ++r) {
    stations.push_back(Station::Make());
    all.lobbies.push_back(stations.back().lobby->address());
    all.hubs.push_back(stations.back().hub->address());
  }
  OnEachRank(ranks, [&](int r) {
    const auto at = static_cast<std::size_t>(r);
    WideMembership own = all;
    own.rank = r;
    auto joined = stations[at].lobby->Join(*stations[at].hub, own, Deadline::AfterSeconds(60));
    ASSERT_TRUE(joined.ok()) << "rank " << r << ": " << joined.status().ToString();
    engines[at] = *joined;
  });
  return engines;
}

/// What a merge gives: values of each host in order of rank, then the hosts in order of their
/// lowest ranks. `sources`: by rank.
inline void MergeByHost(const std::vector<int>& hosts, Element element, Merge merge,
                        const std::vector<const void*>& sources, void* out, std::size_t count) {
  std::vector<int> order;  // of hosts
  std::map<int, std::vector<const void*>> on_host;
  for (std::size_t r = 0; r < hosts.size(); ++r) {
    if (!on_host.contains(hosts[r])) order.push_back(hosts[r]);
    on_host[hosts[r]].push_back(sources[r]);
  }
  std::vector<std::vector<std::byte>> merged;
  std::vector<const void*> parts;
  for (const int host : order) {
    merged.emplace_back(count * SizeOf(element));
    ReduceInto(element, merge, 0, on_host[host].data(), on_host[host].size(), merged.back().data(),
               count);
    parts.push_back(merged.back().data());
  }
  ReduceInto(element, merge, 0, parts.data(), parts.size(), out, count);
}

}  // namespace arcflow::collective::testing
