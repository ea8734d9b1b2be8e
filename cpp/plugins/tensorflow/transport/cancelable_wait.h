// SPDX-License-Identifier: Apache-2.0
// Something to wait for before a call, while which the call can be cancelled.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "tensorflow/core/distributed_runtime/call_options.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/platform/status.h"

namespace arcflow::tf {

/// Calls `start` with what is to be called once, on any thread, with the value that was waited for;
/// then `then` with it, or `done` with Cancelled(`cancelled`), never both. Until one of them has
/// been called, what the call needs is there; afterwards `options` may be gone.
template <typename Value>
void WaitCancelably(tensorflow::CallOptions* options, const char* cancelled,
                    const std::function<void(std::function<void(const Value&)>)>& start,
                    std::function<void(const Value&)> then, tensorflow::StatusCallback done) {
  const auto taken = std::make_shared<std::atomic<bool>>(false);
  // Not on the thread that cancels: it holds the lock that ClearCancelCallback takes.
  options->SetCancelCallback([options, cancelled, taken, done = std::move(done)] {
    if (taken->exchange(true)) return;
    tensorflow::Env::Default()->SchedClosure([options, cancelled, done] {
      options->ClearCancelCallback();
      done(absl::CancelledError(cancelled));
    });
  });
  start([options, taken, then = std::move(then)](const Value& value) {
    if (taken->exchange(true)) return;  // nothing of the call is there any more
    options->ClearCancelCallback();
    then(value);
  });
}

}  // namespace arcflow::tf
