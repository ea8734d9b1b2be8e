// SPDX-License-Identifier: Apache-2.0
// The blocking form of an engine's operations.
#include "arcflow/collective/engine.h"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

namespace arcflow::collective {

std::optional<SharedResult> Engine::Reserve(std::uint64_t, const Signature&, std::size_t) {
  return std::nullopt;
}

Status Engine::Run(Operation operation) {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Status> answer;
  operation.done = [&](const Status& status) {
    const std::lock_guard lock(mutex);
    answer = status;
    changed.notify_all();
  };
  Submit(std::move(operation));
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return answer.has_value(); });
  return *answer;
}

}  // namespace arcflow::collective
