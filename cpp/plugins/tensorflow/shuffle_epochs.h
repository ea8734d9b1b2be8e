// SPDX-License-Identifier: Apache-2.0
// ShuffleEpochs: which epoch the next pass over a shuffled dataset is.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace arcflow::tf {

/// Epochs by dataset. tf.data makes a new kernel of a dataset for every iterator when it optimises
/// graphs, so they cannot count; what names a dataset is a string that Python gave it. Threads:
/// any. Lifetime: of the process.
class ShuffleEpochs {
 public:
  static ShuffleEpochs& Instance() {
    static auto* const instance = new ShuffleEpochs;  // iterators may go after static destruction
    return *instance;
  }
  /// The epoch of a pass that begins now: 0 the first time, then one more each time.
  std::int64_t Take(const std::string& dataset) {
    const std::lock_guard lock(mutex_);
    return next_[dataset]++;
  }
  /// The next pass is that epoch.
  void Set(const std::string& dataset, std::int64_t epoch) {
    const std::lock_guard lock(mutex_);
    next_[dataset] = epoch;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, std::int64_t> next_;  // by mutex_
};

}  // namespace arcflow::tf
