// SPDX-License-Identifier: Apache-2.0
// SideServer: where the agent of a node that lives on takes rows of any Spark task of its executor.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/feed/service.h"
#include "arcflow/net/handshake.h"
#include "arcflow/net/loop.h"
#include "arcflow/net/packet.h"

namespace arcflow::control {

/// The abstract Unix address of an agent: nothing of it is in any file system.
std::string SideAddress(const std::string& run_id, std::int64_t jvm_pid, int rank);

/// Connections of feeding tasks, their stages, and the node's side sessions.
/// docs/design/side-feed.md has the picture, docs/formats/control.md the packets. Threads: the
/// loop's. Never blocks, but for a short time on a peer whose queue is full. Lifetime: `service`
/// must outlive it.
class SideServer {
 public:
  struct Options {
    std::string run_id;
    std::string secret;
    std::int64_t jvm_pid = 0;
    int rank = 0;
    std::size_t feed_memory_bytes = 0;
  };
  struct Callbacks {
    std::function<void(const nlohmann::json&)> to_coordinator;
    /// The run has a feed more.
    std::function<void(const std::string& name, const feed::FeedOptions& options)> opened;
  };
  static Result<std::unique_ptr<SideServer>> Listen(net::Loop& loop, Options options,
                                                    feed::FeedService& service,
                                                    Callbacks callbacks);
  ~SideServer();

  /// The end of a packet pair whose other end speaks for a task that has proved the secret.
  void AddTask(Fd socket);
  /// A packet of the service for a writer. False: for none of ours.
  bool Route(const nlohmann::json& packet);
  /// `side` and `claim` of the coordinator.
  void OnCoordinator(const nlohmann::json& message);
  /// A `side` session that the node opened.
  void AddSession(Fd socket);
  /// The node has returned: it wants nothing more.
  void OnNodeEnd();
  /// The run is ending: every task and session hears why, or finds its socket closed.
  void Close(const std::string& why);

 private:
  /// A task's connection.
  struct Client {
    Fd socket;
    net::Loop::WatchId watch = 0;
    std::optional<net::Handshake> handshake;  // until it is done
    net::Loop::TimerId patience = 0;          // with the handshake
    bool attached = false;
    bool waits = false;  // for `attached`
    bool infers = false;
    bool sealed = false;
    bool claimed = false;
    std::string job;
    std::int64_t partition = 0;
    std::int64_t attempt = 0;
    std::string target;  // feed, or what inferring stages are named after
    std::string stage;   // being written; "" when there is none
    feed::FeedOptions feed;
    std::chrono::steady_clock::time_point deadline;  // of waiting for a server
  };
  /// A socket of the node.
  struct Session {
    Fd socket;
    net::Loop::WatchId watch = 0;
    std::string awaits;  // a feed that nobody has opened
  };
  /// Rows of an attempt that are complete.
  struct Stage {
    std::string name;
    std::string target;
    std::string job;
    std::int64_t partition = 0;
    std::int64_t attempt = 0;
    bool reserved = false;  // granted, to be published with its job
  };
  struct Target {
    feed::FeedOptions options;
    bool ended = false;
    bool enough = false;
  };

  SideServer(net::Loop& loop, Options options, feed::FeedService& service, Callbacks callbacks);
  Status Bind();
  bool OnConnection();
  int AddClient(Fd socket);
  bool OnClient(int id);
  Status OnHandshake(Client& client);
  Status OnPacket(int id, Client& client, net::Message& message);
  Status OnAttach(int id, Client& client, net::Message& message);
  Status OnRows(Client& client, net::Message& message);
  Status OnSeal(Client& client);
  Status OnClaim(Client& client, const nlohmann::json& body);
  Status OnBlock(Client& client);
  Status OnServe(int id, Client& client);
  void Admit();
  void AdmitOne(Client& client);
  bool MustWait(const Client& client) const;
  void Drop(int id);
  void Send(Client& client, const nlohmann::json& packet, const std::vector<int>& fds = {});
  void Refuse(Client& client, const Status& why);

  Status OpenTarget(const std::string& name, const feed::FeedOptions& options);
  void EndTarget(const std::string& name);
  void OnClaimAnswer(const nlohmann::json& message);
  void Publish(const std::string& job);
  void Over(const std::string& job);
  void SpliceAndForget(const Stage& stage);
  void EndAll();

  bool OnSession(int id);
  void OnNodePacket(int id, Session& session, net::Message& message);
  void Enough(const std::string& feed);
  void TellFeed(Session& session, const std::string& feed);
  void TellEnd(Session& session);
  void DropSession(int id);
  void NextRequest();

  net::Loop& loop_;
  Options options_;
  feed::FeedService& service_;
  Callbacks callbacks_;
  Fd listener_;
  net::Loop::WatchId listen_watch_ = 0;
  net::Loop::TimerId tick_ = 0;
  int next_id_ = 1;
  std::uint64_t next_stage_ = 1;
  std::map<int, Client> clients_;
  std::map<int, Session> sessions_;
  std::map<std::string, Target> targets_;
  std::vector<Stage> stages_;
  std::map<std::string, int> writers_;  // stage to client
  std::optional<int> server_;           // session that serves requests
  struct Request {
    std::string stage;
    int client = 0;
  };
  std::deque<Request> requests_;  // not handed to the node yet
  std::optional<Request> serving_;
  bool ending_ = false;  // no more rows; what was asked is still answered
  bool node_ended_ = false;
  bool closed_ = false;
};

}  // namespace arcflow::control
