// SPDX-License-Identifier: Apache-2.0
// WatchedGroup: a group together with the connections that tell of its peers' deaths.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/group.h"

namespace arcflow::collective {

/// A process of the group: a socket that it holds open while it lives.
struct Peer {
  int rank = 0;
  pid_t pid = 0;  // 0: not visible from here
  Fd socket;
};

/// Fails its group as soon as a peer's socket hangs up or its process ends. The leader watches all
/// and tells them; the others watch the leader. A pidfd is watched beside the socket, because a
/// forked child may hold the socket open.
/// Threads: one of its own, ended by the destructor.
class WatchedGroup {
 public:
  static Result<std::shared_ptr<Group>> Make(std::shared_ptr<BoardMemory> memory, int rank,
                                             void (*probe)(Moment), std::vector<Peer> peers);
  WatchedGroup(std::shared_ptr<BoardMemory> memory, int rank, void (*probe)(Moment),
               std::vector<Peer> peers, Fd stop);
  ~WatchedGroup();
  WatchedGroup(const WatchedGroup&) = delete;
  WatchedGroup& operator=(const WatchedGroup&) = delete;

 private:
  void Watch();

  Group group_;
  std::vector<Peer> peers_;
  std::vector<Fd> pidfds_;  // by peer; empty ones where the pid is not visible
  Fd stop_;                 // eventfd
  std::thread thread_;
};

}  // namespace arcflow::collective
