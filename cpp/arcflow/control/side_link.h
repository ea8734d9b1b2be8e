// SPDX-License-Identifier: Apache-2.0
// TaskLink, SideLink: a Spark task's connection to the agent of a node that lives on.
#pragma once

#include <sys/un.h>

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/feed/writer.h"
#include "arcflow/net/packet.h"

namespace arcflow::control {

/// The socket address behind an abstract name. InvalidArgument when it is too long.
Status AbstractAddress(const std::string& name, sockaddr_un* address, socklen_t* length);

/// What a Spark task has of an agent: packets both ways, and a source of segments for one writer at
/// a time. docs/formats/control.md, "Side feed". Threads: one at a time.
class TaskLink : public feed::SegmentSource {
 public:
  virtual Status Send(const nlohmann::json& packet, const std::vector<int>& fds) = 0;
  /// The next packet that is no grant; std::nullopt when the deadline passed.
  virtual Result<std::optional<net::Message>> Receive(Deadline deadline) = 0;
};

/// One authenticated packet socket, and a source of segments for one writer at a time.
/// Threads: one at a time. Blocking: Connect, Acquire, Publish and Send (while the agent's queue is
/// full), Receive. Errors of all calls after the agent has gone: Unavailable.
class SideLink final : public TaskLink {
 public:
  /// NotFound when no agent listens there; Unauthenticated when it does not know the secret.
  static Result<std::unique_ptr<SideLink>> Connect(const std::string& address,
                                                   const std::string& secret, Deadline deadline);

  Result<Grant> Acquire(const std::string& feed, std::size_t min_bytes, Deadline deadline) override;
  Status Publish(const std::string& feed, const Grant& grant, std::size_t rows, bool closed,
                 int fd) override;

  Status Send(const nlohmann::json& packet, const std::vector<int>& fds) override;
  Result<std::optional<net::Message>> Receive(Deadline deadline) override;

 private:
  explicit SideLink(Fd socket) : socket_(std::move(socket)) {}

  Fd socket_;
  bool asked_ = false;  // a grant that is not here yet
};

}  // namespace arcflow::control
