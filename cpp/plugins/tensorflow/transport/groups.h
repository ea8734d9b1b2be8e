// SPDX-License-Identifier: Apache-2.0
// Groups: which engine runs the collectives of a TensorFlow group, agreed by all its tasks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "arcflow/collective/engine.h"
#include "plugins/tensorflow/transport/card.h"
#include "plugins/tensorflow/transport/identity.h"
#include "tensorflow/core/framework/collective.h"

namespace tensorflow {
class WorkerCacheInterface;
}

namespace arcflow::tf {

/// The card of the server at `task`; std::nullopt when it is none of ours. Blocks.
absl::Status AskForCard(tensorflow::WorkerCacheInterface* workers, const std::string& task,
                        std::optional<Card>* card);

/// One device's membership in a group of TensorFlow. Immutable once it is decided.
struct Member {
  enum class State { kMaking, kOurs, kStock, kFailed };
  State state = State::kMaking;
  absl::Status status;  // kFailed
  tensorflow::CollGroupParams group;
  int index = -1;          // in group.members
  std::vector<int> ranks;  // the engine's rank of each entry of group.members
  std::string token;       // finds it again, FindMember
  std::shared_ptr<collective::Engine> engine;
  collective::Wire wire = collective::Wire::kSame;  // between hosts
  std::vector<std::function<void()>> waiting;
};

/// The membership with that token, which travels in CollectiveParams; null when its server has
/// dropped it. Threads: any.
std::shared_ptr<Member> FindMember(const std::string& token);

/// All groups of one resolver. Threads: any.
class Groups {
 public:
  Groups(std::shared_ptr<const Identity> identity, tensorflow::WorkerCacheInterface* workers,
         std::string task)
      : identity_(std::move(identity)), workers_(workers), task_(std::move(task)) {}
  ~Groups();

  /// The membership of `device`; `*first` when it is new, and the caller has to have it made.
  std::shared_ptr<Member> Find(int group_key, const std::string& device, bool* first);
  /// Calls `then` when the membership is decided: now, or later on the thread that decides.
  void WhenDecided(const std::shared_ptr<Member>& member, std::function<void()> then);
  void Fail(const std::shared_ptr<Member>& member, const absl::Status& status);
  /// Blocks: asks all tasks for their cards, and joins. `group` is complete.
  void Make(const std::shared_ptr<Member>& member, const tensorflow::CollGroupParams& group,
            const std::string& device);
  /// Ends the engines of all groups; those being made fail when they meet.
  void Abort(const absl::Status& status);

 private:
  absl::Status CollectCards(const tensorflow::CollGroupParams& group, Cards* cards);
  absl::Status Join(const std::shared_ptr<Member>& member, const Cards& cards, Plan::Kind how);
  void Decide(const std::shared_ptr<Member>& member, Member::State state);

  const std::shared_ptr<const Identity> identity_;
  tensorflow::WorkerCacheInterface* const workers_;
  const std::string task_;
  std::mutex mutex_;
  absl::Status aborted_;
  std::map<std::pair<int, std::string>, std::shared_ptr<Member>> members_;
};

}  // namespace arcflow::tf
