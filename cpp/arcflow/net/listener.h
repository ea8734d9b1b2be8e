// SPDX-License-Identifier: Apache-2.0
// Listener: accepts connections on one address and hands out those that prove the run's secret.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "arcflow/base/status.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/loop.h"

namespace arcflow::net {

struct ListenerOptions {
  std::string host;        // address to bind; a name is resolved. Never all interfaces by default.
  std::uint16_t port = 0;  // 0: any free one
  ChannelOptions channel;  // secret, bounds and the time a stranger gets (handshake_timeout)
  std::size_t max_unauthenticated = 64;  // connections above it are closed at once
};

/// Accepts until closed. Failed handshakes are paid for out of a bucket (failure_gate.h). A
/// stranger costs one descriptor and a few hundred bytes, for at most the handshake's time.
/// Threads: Bind, Close and the getters from any thread; `accepted` runs on the loop thread.
class Listener {
 public:
  /// Called for every connection whose handshake succeeded; returns the callbacks of that channel.
  /// Keep the channel or drop it: it lives until it is closed. No message is delivered before this
  /// returns.
  using Accepted = Channel::Accepted;

  /// Binds and starts to accept. Errors: InvalidArgument for a host that does not resolve or a
  /// short secret, AlreadyExists for a port in use, PermissionDenied, … all with the address in the
  /// message. May block while a name is resolved.
  static Result<std::unique_ptr<Listener>> Bind(Loop& loop, ListenerOptions options,
                                                Accepted accepted);
  /// Closes; channels that were handed out live on.
  ~Listener();

  /// Stops accepting and drops connections still in their handshake. Idempotent; `accepted` may
  /// still be running once.
  void Close();

  std::uint16_t port() const;
  /// Numeric address bound to.
  const std::string& host() const;
  /// Connections refused or dropped before they were authenticated.
  std::uint64_t rejected() const;

 private:
  struct Impl;
  explicit Listener(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace arcflow::net
