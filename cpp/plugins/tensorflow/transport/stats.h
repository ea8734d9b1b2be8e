// SPDX-License-Identifier: Apache-2.0
// Stats: what the plug-in has moved, for whom it fell back to TensorFlow, and why.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arcflow/collective/engine.h"
#include "arcflow/transport/depot.h"

namespace arcflow::tf {

/// Counts a collective or a group that TensorFlow's own code runs; the reason is logged the first
/// time. Threads: any.
void CountFallback(const std::string& reason);

/// Has the counters of a group in the stats, also after its end. `name`: for people; `tasks`: by
/// rank.
void WatchGroup(const std::string& name, std::vector<std::string> tasks,
                const std::shared_ptr<collective::Engine>& group);

/// Has the counters of a depot in the stats while it lives.
void WatchDepot(const std::shared_ptr<transport::Depot>& depot);

/// Where an output of ours lies: what an earlier one left, new memory, or memory that all ranks of
/// the host read.
enum class OutputMemory { kRecycled, kNew, kShared };
void CountOutput(OutputMemory memory);

/// A tensor of another task that was fetched, or one of ours that was offered to that task.
enum class Way { kFetched, kOffered };
/// `backend`: how it came; empty for one that was offered. Threads: any.
void CountTensor(const std::string& task, const std::string& backend, Way way, std::size_t bytes);

/// {"groups": [{name, rank, ranks, operations, …, peers}], "collectives": totals,
///  "fallbacks": {reason: count}, "outputs": {recycled, new, shared},
///  "tensors": {offered, bytes_offered, fetched, bytes_fetched, held, expired,
///              tasks: {task: {backend, fetched, bytes_fetched, offered, bytes_offered}}}}
std::string StatsJson();

}  // namespace arcflow::tf
