// SPDX-License-Identifier: Apache-2.0
// Coordinator: the server that knows all agents of a run and decides how the run ends.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"
#include "arcflow/control/protocol.h"

namespace arcflow::control {

struct CoordinatorOptions {
  std::string bind_host = "127.0.0.1";
  std::string advertise_host;  // what agents are told; empty = bind_host
  std::uint16_t port = 0;      // 0 = any
  std::string secret;          // kSecretBytes raw bytes, fresh for every run
  std::string run_id;
  bool encrypt = false;  // TLS 1.3 on every connection; agents must be told the same
  int size = 1;          // ranks 0 … size-1 must join, each once
  CoordinatorTuning tuning;
};

/// Membership, rows of all ranks, barriers, heartbeats, the first failure, and the stop of one run.
///
/// Events, JSON objects with a string `event`, in order:
///   joined {rank, role, host}          rejected {rank, message}       started {cluster}
///   progress {ranks: [{rank, counters, feeds, rss_bytes}…]}           log {rank, line}
///   node {rank, progress}: what a node said                           node_log {rank, lines}
///   failed {failure, others}: the verdict, once                       finished {rank, status}
///   enough {rank, feed}: a node wants no more of a feed    result {rank, data, last}: in pieces,
///   base64, of a node whose task has left it
///   stopped {code, reason}: Stop() was called
///   all_finished {status: ok|failed|stopped, reason, failure?, others?,
///                 ranks: [{rank, status, metrics, rows}…]}: the last event
///
/// Threads: every method from any thread; one loop thread inside. Blocking: NextEvent until its
/// deadline, Close (bounded).
class Coordinator {
 public:
  /// Listens and starts the loop. Errors: InvalidArgument (secret, size, tuning), Unavailable when
  /// the address cannot be bound.
  static Result<std::unique_ptr<Coordinator>> Start(CoordinatorOptions options);
  /// As Close().
  ~Coordinator();
  Coordinator(const Coordinator&) = delete;
  Coordinator& operator=(const Coordinator&) = delete;

  /// What agents connect to.
  HostPort address() const;

  /// The next event as JSON text; std::nullopt when the deadline passed, or after `all_finished`
  /// was handed out. Errors: Cancelled after Close().
  Result<std::optional<std::string>> NextEvent(Deadline deadline);

  /// Whether `all_finished` has been put into the queue.
  bool over() const;

  /// Asks the agent of `rank` for the last lines of its node; they come as an event `node_log`
  /// {rank, lines}, or never when that agent is not there. Does not wait.
  void RequestLog(int rank, int lines);

  /// Tells all agents of a run that lives on something, a JSON object with a string `act`
  /// (docs/formats/control.md, "Side feed"). InvalidArgument for anything else, or when it is too
  /// large. Does not wait.
  Status Tell(const std::string& message);

  /// Ends the run: agents stop their nodes and leave. The first end of a run counts; later calls do
  /// nothing. Not OK codes only (InvalidArgument otherwise). Does not wait: go on with NextEvent
  /// until `all_finished`.
  Status Stop(Code code, const std::string& reason);

  /// Tells agents that are still there to stop (CANCELLED), waits for the word to be sent, ends the
  /// thread. Idempotent.
  void Close();

 private:
  class Impl;
  explicit Coordinator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace arcflow::control
