// SPDX-License-Identifier: Apache-2.0
// Stats of this process, under one lock that no data path takes but once an operation.
#include "plugins/tensorflow/transport/stats.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "arcflow/base/log.h"

namespace arcflow::tf {
namespace {

using Json = nlohmann::json;

struct Watched {
  std::string name;
  std::vector<std::string> tasks;
  int rank = 0;
  int ranks = 0;
  std::weak_ptr<collective::Engine> group;
  collective::GroupCounters last;
};

struct Moved {
  std::string backend;
  std::array<std::uint64_t, 2> tensors{};  // by Way
  std::array<std::uint64_t, 2> bytes{};
};

std::mutex g_stats_mutex;
std::map<std::string, Moved> g_tasks;
std::map<std::string, std::uint64_t> g_fallbacks;
std::vector<Watched> g_groups;
std::vector<std::weak_ptr<transport::Depot>> g_depots;
std::array<std::atomic<std::uint64_t>, 3> g_outputs{};  // by OutputMemory

void Add(Json* totals, const Json& row) {
  for (const auto& [name, value] : row.items()) {
    if (!value.is_number_unsigned()) continue;
    (*totals)[name] = totals->value(name, std::uint64_t{0}) + value.get<std::uint64_t>();
  }
}

Json Counted(const collective::GroupCounters& c) {
  return {{"operations", c.operations},       {"small_operations", c.small_operations},
          {"bytes_in", c.bytes_in},           {"bytes_out", c.bytes_out},
          {"bytes_shared", c.bytes_shared},   {"sleeps", c.sleeps},
          {"mappings", c.mappings},           {"busy_ns", c.busy_ns},
          {"registrations", c.registrations}, {"bytes_between_hosts", c.bytes_between_hosts}};
}

Json Tensors() {
  transport::DepotCounters sum;
  for (const auto& each : g_depots) {
    const auto depot = each.lock();
    if (depot == nullptr) continue;
    const transport::DepotCounters c = depot->counters();
    sum.offered += c.offered;
    sum.bytes_offered += c.bytes_offered;
    sum.fetched += c.fetched;
    sum.bytes_fetched += c.bytes_fetched;
    sum.held += c.held;
    sum.expired += c.expired;
  }
  Json tasks = Json::object();
  for (const auto& [task, moved] : g_tasks) {
    tasks[task] = {{"backend", moved.backend},
                   {"fetched", moved.tensors[0]},
                   {"bytes_fetched", moved.bytes[0]},
                   {"offered", moved.tensors[1]},
                   {"bytes_offered", moved.bytes[1]}};
  }
  return {{"offered", sum.offered}, {"bytes_offered", sum.bytes_offered},
          {"fetched", sum.fetched}, {"bytes_fetched", sum.bytes_fetched},
          {"held", sum.held},       {"expired", sum.expired},
          {"tasks", tasks}};
}

Json Peers(const Watched& each) {
  Json peers = Json::array();
  for (std::size_t r = 0; r < each.last.pairs.size(); ++r) {
    if (each.last.pairs[r].backend.empty()) continue;  // itself, or one that others speak to
    peers.push_back({{"task", each.tasks.at(r)},
                     {"backend", each.last.pairs[r].backend},
                     {"sent", each.last.pairs[r].sent},
                     {"received", each.last.pairs[r].received}});
  }
  return peers;
}

std::uint64_t CountOf(OutputMemory memory) {
  return g_outputs[static_cast<std::size_t>(memory)].load(std::memory_order_relaxed);
}

}  // namespace

void CountFallback(const std::string& reason) {
  bool first = false;
  {
    const std::lock_guard lock(g_stats_mutex);
    first = ++g_fallbacks[reason] == 1;
  }
  if (first) Log(LogLevel::kWarning, "arcflow: TensorFlow's own transport is used: " + reason);
}

void WatchGroup(const std::string& name, std::vector<std::string> tasks,
                const std::shared_ptr<collective::Engine>& group) {
  const std::lock_guard lock(g_stats_mutex);
  g_groups.push_back({name, std::move(tasks), group->rank(), group->ranks(), group, {}});
}

void WatchDepot(const std::shared_ptr<transport::Depot>& depot) {
  const std::lock_guard lock(g_stats_mutex);
  g_depots.push_back(depot);
}

void CountTensor(const std::string& task, const std::string& backend, Way way, std::size_t bytes) {
  const auto i = static_cast<std::size_t>(way);
  const std::lock_guard lock(g_stats_mutex);
  Moved& moved = g_tasks[task];
  if (!backend.empty()) moved.backend = backend;
  ++moved.tensors[i];
  moved.bytes[i] += bytes;
}

void CountOutput(OutputMemory memory) {
  g_outputs[static_cast<std::size_t>(memory)].fetch_add(1, std::memory_order_relaxed);
}

std::string StatsJson() {
  const std::lock_guard lock(g_stats_mutex);
  Json groups = Json::array();
  Json totals = Counted({});
  for (Watched& each : g_groups) {
    if (const auto group = each.group.lock()) each.last = group->counters();
    Json row = Counted(each.last);
    Add(&totals, row);
    row["name"] = each.name;
    row["rank"] = each.rank;
    row["ranks"] = each.ranks;
    row["peers"] = Peers(each);
    groups.push_back(std::move(row));
  }
  const Json outputs = {{"recycled", CountOf(OutputMemory::kRecycled)},
                        {"new", CountOf(OutputMemory::kNew)},
                        {"shared", CountOf(OutputMemory::kShared)}};
  const Json all = {{"groups", groups},
                    {"collectives", totals},
                    {"fallbacks", Json(g_fallbacks)},
                    {"outputs", outputs},
                    {"tensors", Tensors()}};
  return all.dump();
}

}  // namespace arcflow::tf
