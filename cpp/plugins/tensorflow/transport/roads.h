// SPDX-License-Identifier: Apache-2.0
// Roads: whether the tensors of another task can be fetched through the transport.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "plugins/tensorflow/transport/identity.h"

namespace tensorflow {
class WorkerCacheInterface;
}

namespace arcflow::tf {

/// What is known of one task.
struct Road {
  bool open = false;
  std::string peer;     // open: its depot's name
  std::string backend;  // open: how bytes come from there
  std::string why;      // not open: what stands in the way
};

/// The roads to all tasks of a cache of workers. Each is found when it is first wanted: the task's
/// card is asked for, and a connection made; and again after that connection broke, or, where it
/// was the task that did not answer, a while later. Threads: any. Lifetime: shared with the threads
/// that look.
class Roads : public std::enable_shared_from_this<Roads> {
 public:
  Roads(std::shared_ptr<tensorflow::WorkerCacheInterface> workers,
        std::shared_ptr<const Identity> identity)
      : workers_(std::move(workers)), identity_(std::move(identity)) {}

  /// Calls `then` with what is known: inside this call, or on the thread that finds out, which
  /// waits for other processes. `then` may block shortly.
  void WhenKnown(const std::string& task, std::function<void(const Road&)> then);

 private:
  struct Entry {
    bool looking = false;
    bool known = false;
    Road road;
    Deadline again = Deadline::Infinite();  // not open: worth another try then
    std::vector<std::function<void(const Road&)>> waiting;
  };
  bool Holds(const Entry& entry) const;
  void Look(const std::string& task);
  /// `*again`: whether another try may find it open.
  Road Find(const std::string& task, bool* again);

  const std::shared_ptr<tensorflow::WorkerCacheInterface> workers_;
  const std::shared_ptr<const Identity> identity_;
  std::mutex mutex_;
  std::map<std::string, Entry> entries_;
};

}  // namespace arcflow::tf
