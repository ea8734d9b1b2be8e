// SPDX-License-Identifier: Apache-2.0
// Context: a process's end of the transport: its regions, its listeners, its peers.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/transport/counters.h"
#include "arcflow/transport/endpoint.h"
#include "arcflow/transport/region.h"

namespace arcflow::transport {

struct ContextOptions {
  std::string secret;  // the run's, raw bytes, at least net::Handshake::kMinSecretBytes
  /// Backends allowed, best first: any of BackendNames(). Empty: the environment variable
  /// ARC_TRANSPORTS (comma separated), and without it "shm,rdma,tcp". One that is named here or
  /// there, not in the default, and cannot work on this machine makes Create() fail and say why.
  std::vector<std::string> backends;
  /// Address that tcp and the bootstrap of ucx listen on and hand to peers. Numeric, or a name that
  /// resolves. Never all interfaces.
  std::string host = "127.0.0.1";
  /// Ports that these may listen on, inclusive; 0: any free one. Two backends take two.
  int first_port = 0;
  int last_port = 0;
  int tcp_connections = 4;  // to each peer
  bool shm_direct = true;   // false: never process_vm_readv, always the shared segment
  int io_threads = 0;       // 0: by the number of processors
  std::size_t max_queued_bytes = std::size_t{64}
                                 << 20;  // messages that wait for one peer, then ResourceExhausted
  /// A peer that says nothing for so long (it answers pings) is cut off with Unavailable: a host
  /// that is gone without a farewell, or a process that is stopped. A killed process is seen at
  /// once.
  std::chrono::nanoseconds silence_limit = std::chrono::seconds(10);
  std::chrono::nanoseconds handshake_timeout =
      std::chrono::seconds(5);  // for whoever connects, at both ends
  std::chrono::nanoseconds quiesce_timeout = std::chrono::milliseconds(200);  // ucx: see Region
};

/// What this machine and the settings say about one backend.
struct BackendState {
  std::string name;
  Status status;  // OK: listening. Else which device, permission or library is missing.
};

/// A message or a notice. `from` can be answered and kept. The bytes are valid during the call.
/// Runs on a thread of the transport: as Done, it must not block or throw. Messages of one endpoint
/// come one at a time and in order; those of different endpoints, and notices, may come at once.
using MessageHandler =
    std::function<void(const std::shared_ptr<Endpoint>& from, std::span<const std::byte> bytes)>;

/// Everything that one process shares between its peers.
/// Threads: all calls from any thread. Callbacks: on the transport's own threads, which block all
/// signals.
/// Lifetime: Create() starts threads; the destructor closes every endpoint (operations get
/// Cancelled), revokes every region and joins; it must not run on a thread of the transport.
/// After fork() the child must not use it.
class Context {
 public:
  /// Opens every allowed backend that works here. Errors: InvalidArgument (unknown backend, short
  /// secret, host that does not resolve), FailedPrecondition or Unavailable (a named backend cannot
  /// work, or none can; the message says what is missing).
  static Result<std::unique_ptr<Context>> Create(const ContextOptions& options);
  ~Context();

  const NodeId& id() const;
  /// How peers reach this context, for Connect(): hand it over by any road. It holds no secret and
  /// is worthless without the run's. At most kMaxAddressBytes, binary.
  const std::string& address() const;
  static constexpr std::size_t kMaxAddressBytes = 4096;

  /// The live endpoint to the context with that address, made now if there is none (whichever side
  /// made it). Tries the backends both sides have, in this side's order, and takes the first that
  /// works. Blocks. Errors: InvalidArgument (no address, or this context's own), Unavailable (says
  /// for each backend why not), DeadlineExceeded, Unauthenticated (another run's secret).
  /// FailedPrecondition on a thread of the transport.
  Result<std::shared_ptr<Endpoint>> Connect(std::string_view address, Deadline deadline);
  /// The live endpoint to that node, or null. Never blocks.
  std::shared_ptr<Endpoint> Find(const NodeId& node) const;

  /// Lets peers use `bytes`; see Region. Cost: one allocation, no system call (memory is pinned
  /// when a backend needs that, at its first use, and stays so while it is reused). Errors:
  /// InvalidArgument for an empty span.
  Result<Region> Register(std::span<std::byte> bytes, Access access);

  /// Sets the handler of a channel; an empty one removes it, and when that call returns it is not
  /// running any more (unless called inside it). Set handlers before address() is handed out: what
  /// arrives for a channel without one is dropped and counted, and a Put whose notice it was fails.
  void Handle(Channel channel, MessageHandler handler);
  /// Called once for every endpoint that goes down, also when nothing is outstanding, and with
  /// Cancelled for one closed on this side. Same rules as Handle().
  using PeerDown = std::function<void(const std::shared_ptr<Endpoint>&, const Status&)>;
  void OnPeerDown(PeerDown callback);

  /// One entry for each allowed backend, in order.
  std::vector<BackendState> backends() const;
  Counters& counters();
  /// Whether the calling thread belongs to any context's transport.
  static bool OnTransportThread();

 private:
  struct Impl;
  explicit Context(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::transport
