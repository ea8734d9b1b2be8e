// SPDX-License-Identifier: Apache-2.0
// Greeting: how two ends of a fresh stream socket prove the run's secret and say who they are.
// Internal to this layer.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/net/handshake.h"
#include "arcflow/transport/core.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport {

/// Sends all; `pass_fd` (or -1) rides on the first byte of a Unix socket. Blocks until `deadline`.
Status SendBytes(int socket, std::string_view bytes, int pass_fd, Deadline deadline);
/// Receives exactly `n` bytes and what descriptors come along. Unavailable when the peer closes.
Result<std::string> ReceiveBytes(int socket, std::size_t n, std::vector<Fd>* fds,
                                 Deadline deadline);

/// The side that connected: handshake, our hello, the peer's hello. Blocks.
/// Errors: Unauthenticated when the secrets differ; InvalidArgument for another version.
Result<Hello> GreetAsClient(int socket, const std::string& secret, const Hello& mine, int pass_fd,
                            std::vector<Fd>* fds, Deadline deadline);

/// A connection that has proven the secret and said hello; the answer is the backend's.
struct Guest {
  Fd socket;  // non-blocking
  Hello hello;
  std::vector<Fd> fds;
};

/// Accepts on a listening socket. A stranger costs a descriptor and a hundred bytes for at most
/// ContextOptions::handshake_timeout; kMaxPending of them at once.
/// Threads: Close and Tick from any; `accepted` on the reactor's thread. Lifetime: the reactor
/// keeps it until Close().
class Acceptor : public std::enable_shared_from_this<Acceptor> {
 public:
  static constexpr std::size_t kMaxPending = 256;
  using Accepted = std::function<void(Guest)>;

  static Result<std::shared_ptr<Acceptor>> Start(Fd listener, std::shared_ptr<Core> core,
                                                 Reactor& reactor, Accepted accepted);
  void Close();
  /// Drops those who take too long.
  void Tick();

 private:
  struct Pending;
  Acceptor(Fd listener, std::shared_ptr<Core> core, Reactor& reactor, Accepted accepted);
  void OnListener();
  void OnPending(std::uint64_t id);
  /// True when the greeting is whole.
  Result<bool> Advance(Pending* pending);
  void Drop(std::uint64_t id);

  Fd listener_;
  std::shared_ptr<Core> core_;
  Reactor& reactor_;
  Accepted accepted_;
  Reactor::Id watch_ = 0;
  std::uint64_t next_ = 1;
  std::unordered_map<std::uint64_t, std::unique_ptr<Pending>> pending_;
  bool closed_ = false;
};

}  // namespace arcflow::transport
