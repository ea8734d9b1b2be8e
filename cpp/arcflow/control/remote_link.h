// SPDX-License-Identifier: Apache-2.0
// RemoteLink: a Spark task's connection to the agent of another executor, by TCP.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arcflow/control/side_link.h"
#include "arcflow/net/channel.h"

namespace arcflow::control {

/// The packets of a SideLink over an authenticated channel: what travels in shared memory there
/// goes as chunks here, before the packet that it belongs to. Rows are written into one of three
/// buffers of this process; a closed segment waits for room at the agent and is sent from where it
/// lies, by the loop's thread, while the writer fills the other. What the agent refuses is
/// therefore told by a later call: Acquire, Publish, or Send of what comes after the rows. At the
/// other end: RemoteServer. Threads: as SideLink; it has a loop's thread of its own. Lifetime: the
/// destructor closes the connection.
class RemoteLink final : public TaskLink {
 public:
  /// `options`: secret, encryption. Errors: those of net::Channel::Connect.
  static Result<std::unique_ptr<RemoteLink>> Connect(const std::string& host, std::uint16_t port,
                                                     net::ChannelOptions options,
                                                     Deadline deadline);
  ~RemoteLink() override;

  Result<Grant> Acquire(const std::string& feed, std::size_t min_bytes, Deadline deadline) override;
  /// Takes a closed segment over; never blocks.
  Status Publish(const std::string& feed, const Grant& grant, std::size_t rows, bool closed,
                 int fd) override;
  /// Blocks until the rows of all segments are on their way.
  Status Send(const nlohmann::json& packet, const std::vector<int>& fds) override;
  Result<std::optional<net::Message>> Receive(Deadline deadline) override;

 private:
  struct Shared;  // with the channel's callbacks
  explicit RemoteLink(std::shared_ptr<Shared> shared);
  Result<net::Message> Next(Deadline deadline);

  std::shared_ptr<Shared> shared_;
  std::unique_ptr<net::Loop> loop_;
  std::shared_ptr<net::Channel> channel_;
  std::uint64_t last_buffer_ = 0;
};

/// What both ends make of ChannelOptions: raw frames, and large reads.
net::ChannelOptions RemoteChannelOptions(const std::string& secret, bool encrypt);

}  // namespace arcflow::control
