// SPDX-License-Identifier: Apache-2.0
// Lobby: where processes of several hosts find each other before they make a group.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/collective/engine.h"
#include "arcflow/collective/hub.h"
#include "arcflow/transport/context.h"

namespace arcflow::collective {

/// Which group over several hosts to join: equal on all ranks but for `rank`. Each list is by rank.
struct WideMembership {
  std::string group;  // unique among the groups that the run has at one time
  int rank = 0;
  std::vector<std::string> lobbies;  // Lobby::address()
  std::vector<std::string> hubs;     // Hub::address()
  std::vector<int> hosts;            // equal for ranks that share memory
};

/// This process's end of the groups' making, over the transport: who connects has proved the run's
/// secret before anything is read. Rank 0 gathers where everybody is and tells all; then each
/// connects with those that it exchanges with.
/// Threads: all from any. Lifetime: groups outlive the lobby; no Join may run when it ends.
class Lobby {
 public:
  /// `options` are those of the groups as well: backends, the address to listen on, the secret.
  /// Errors as of Context::Create.
  static Result<std::unique_ptr<Lobby>> Open(const transport::ContextOptions& options);
  ~Lobby();
  Lobby(const Lobby&) = delete;
  Lobby& operator=(const Lobby&) = delete;

  /// Where others find it; text without spaces.
  const std::string& address() const;

  /// Becomes a member, when all other ranks do the same; blocks until then. `hub`: for the ranks of
  /// this host.
  /// Errors: DeadlineExceeded or Unavailable when somebody does not come; Unauthenticated when rank
  /// 0 knows another secret; InvalidArgument for a membership that cannot be, or is not rank 0's.
  Result<std::shared_ptr<Engine>> Join(Hub& hub, const WideMembership& membership,
                                       Deadline deadline);

  /// What a test may have called at every step of an operation.
  void SetProbe(void (*probe)(Moment));

 private:
  struct State;
  explicit Lobby(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace arcflow::collective
