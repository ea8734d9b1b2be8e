// SPDX-License-Identifier: Apache-2.0
// Hub: where the processes of one host find each other and share a group's memory.
#pragma once

#include <memory>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/group.h"

namespace arcflow::collective {

/// Which group to join: equal on all ranks but for `rank`.
struct Membership {
  std::string group;   // unique among the groups that the run has at one time
  std::string leader;  // Hub::address() of rank 0's process
  int rank = 0;
  int ranks = 0;
};

/// This process's end of the groups' making. It listens on a Unix socket in the abstract namespace,
/// so nothing lies in the file system, and only processes of the same network namespace reach it;
/// each connection is of the same user and has proved the run's secret in both directions before
/// anything else is read. Rank 0 makes the memory and hands its descriptor to the others; the
/// connections stay open, and with a pidfd beside them tell of a death at once.
/// Threads: all from any; one thread of its own accepts. Lifetime: groups outlive the hub.
class Hub {
 public:
  /// Errors: InvalidArgument for a short secret; Unavailable when no socket can be had.
  static Result<std::unique_ptr<Hub>> Listen(const std::string& secret);
  ~Hub();
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  /// Name of the socket, random, without the leading zero byte.
  const std::string& address() const;

  /// Becomes a member, when all other ranks do the same; blocks until then.
  /// Errors: DeadlineExceeded or Unavailable when somebody does not come; Unauthenticated when the
  /// leader knows another secret; InvalidArgument for a membership that cannot be.
  Result<std::shared_ptr<Group>> Join(const Membership& membership, Deadline deadline);

  /// What a test may have called at every step of an operation.
  void SetProbe(void (*probe)(Moment));

 private:
  struct State;
  explicit Hub(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

/// The host as far as sharing memory goes: equal for two processes only when they run on one
/// kernel, in one network namespace, as one user.
std::string HostIdentity();

}  // namespace arcflow::collective
