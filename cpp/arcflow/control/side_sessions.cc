// SPDX-License-Identifier: Apache-2.0
// SideServer: the node's sessions: feeds it waits for, what it has enough of, requests it serves.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/side_server.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

void SendTo(const Fd& socket, const json& packet, const std::vector<int>& fds = {}) {
  const Status status = net::SendPacket(socket.get(), packet, fds, Deadline::After(kAgentSends));
  if (!status.ok() && status.code() != Code::kUnavailable)
    Log(LogLevel::kWarning, "a packet to the node was lost: " + status.ToString());
}

}  // namespace

/// Starts the stage of an inferring task's next block.
Status SideServer::OnBlock(Client& client) {
  if (!client.infers || !client.stage.empty())
    return InvalidArgument("block before the last ended");
  const auto id = std::find_if(clients_.begin(), clients_.end(),
                               [&](const auto& entry) { return &entry.second == &client; });
  const std::string stage =
      client.target + " (" + client.job + ", block " + std::to_string(next_stage_++) + ")";
  feed::FeedOptions options = client.feed;
  options.cache = feed::Cache::kAuto;
  ARC_TRY(service_.AddFeed(stage, std::move(options)));
  client.stage = stage;
  writers_[stage] = id->first;
  Send(client, {{"op", "block"}, {"stage", stage}});
  return Status::Ok();
}

/// The block is whole: the node may have it.
Status SideServer::OnServe(int id, Client& client) {
  if (!client.infers || client.stage.empty()) return InvalidArgument("serve without a block");
  ARC_TRY(service_.EndFeed(client.stage));
  if (node_ended_ || !server_) {
    Refuse(client, FailedPrecondition("the node has stopped serving requests"));
    return Status::Ok();
  }
  requests_.push_back({client.stage, id});
  NextRequest();
  return Status::Ok();
}

/// One at a time, in the order asked.
void SideServer::NextRequest() {
  if (!server_ || serving_) return;
  const auto session = sessions_.find(*server_);
  if (session == sessions_.end()) return;
  if (requests_.empty()) {
    if (ending_) SendTo(session->second.socket, {{"op", "end"}});
    return;
  }
  serving_ = requests_.front();
  requests_.pop_front();
  SendTo(
      session->second.socket,
      {{"op", "serve"}, {"feed", serving_->stage}, {"rows", service_.Local(serving_->stage).rows}});
}

void SideServer::AddSession(Fd socket) {
  if (closed_) return;
  const int id = next_id_++;
  Session& session = sessions_[id];
  session.socket = std::move(socket);
  auto watch = loop_.WatchReadable(session.socket.get(), [this, id] { return OnSession(id); });
  if (!watch.ok()) {
    sessions_.erase(id);
    return;
  }
  session.watch = *watch;
}

bool SideServer::OnSession(int id) {
  for (;;) {
    const auto found = sessions_.find(id);
    if (found == sessions_.end()) return false;
    net::Message message;
    Status error;
    const Incoming incoming = ReceiveNow(found->second.socket.get(), &message, &error);
    if (incoming == Incoming::kNothing) return true;
    if (incoming == Incoming::kClosed) {
      DropSession(id);
      return false;
    }
    OnNodePacket(id, found->second, message);
  }
}

void SideServer::OnNodePacket(int id, Session& session, net::Message& message) {
  std::string feed;
  Fields in(*message.body, "side session");
  in.String("feed", &feed, 2 * kMaxNameBytes, Need::kOptional);
  if (!in.ok())
    return Log(LogLevel::kWarning, "a node broke the protocol: " + in.status().ToString());
  if (message.op == "await") {
    if (targets_.contains(feed)) return TellFeed(session, feed);
    session.awaits = feed;
    if (ending_) TellEnd(session);
  } else if (message.op == "enough") {
    Enough(feed);
    SendTo(session.socket, {{"op", "enough"}});
  } else if (message.op == "server") {
    if (server_) {
      return SendTo(session.socket, {{"op", "error"},
                                     {"code", CodeName(Code::kFailedPrecondition)},
                                     {"message", "this node serves requests already"}});
    }
    server_ = id;
    Admit();
    NextRequest();
  } else if (message.op == "rows" || message.op == "served") {
    if (server_ != id || !serving_ || serving_->stage != feed) return;
    const auto client = clients_.find(serving_->client);
    const bool there = client != clients_.end() && client->second.stage == feed;
    if (message.op == "rows") {
      if (there && message.fds.size() == 1)
        Send(client->second, {{"op", "rows"}}, {message.fds[0].get()});
      return;
    }
    serving_.reset();
    if (there) {
      client->second.stage.clear();
      Send(client->second, {{"op", "served"}});
    }
    writers_.erase(feed);
    service_.RemoveFeed(feed);
    NextRequest();
  } else {
    Log(LogLevel::kWarning, "a node sent an unknown packet: " + CleanText(message.op, 64));
  }
}

void SideServer::TellFeed(Session& session, const std::string& feed) {
  const Target& target = targets_.at(feed);
  session.awaits.clear();
  auto document = DocumentToMemfd("arcflow-schema", target.options.schema.ToJson());
  if (!document.ok())
    return Log(LogLevel::kError, "cannot tell a schema: " + document.status().ToString());
  SendTo(session.socket, {{"op", "feed"}, {"feed", feed}}, {document->get()});
}

void SideServer::TellEnd(Session& session) {
  SendTo(session.socket,
         {{"op", "error"},
          {"code", CodeName(Code::kFailedPrecondition)},
          {"message", "the run was stopped before anything was fed to '" + session.awaits + "'"}});
  session.awaits.clear();
}

void SideServer::Enough(const std::string& feed) {
  const auto found = targets_.find(feed);
  if (found == targets_.end() || std::exchange(found->second.enough, true)) return;
  EndTarget(feed);
  const Status why = Cancelled("the node has enough");
  for (auto& [id, client] : clients_) {
    if (client.infers || client.target != feed) continue;
    if (!client.stage.empty() && !client.sealed) service_.RefuseFeed(client.stage, why);
  }
  Admit();
  callbacks_.to_coordinator({{"op", "enough"}, {"feed", feed}});
}

void SideServer::OnNodeEnd() {
  if (std::exchange(node_ended_, true) || closed_) return;
  std::vector<std::string> feeds;
  for (const auto& [name, target] : targets_) feeds.push_back(name);
  for (const std::string& feed : feeds) Enough(feed);
  Admit();
}

void SideServer::DropSession(int id) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  if (found->second.watch != 0) loop_.Unwatch(found->second.watch);
  sessions_.erase(found);
  if (server_ != id) return;
  server_.reset();
  if (serving_) requests_.push_front(*std::exchange(serving_, std::nullopt));
  const Status why = FailedPrecondition("the node has stopped serving requests");
  for (const Request& request : std::exchange(requests_, {})) {
    if (const auto client = clients_.find(request.client); client != clients_.end()) {
      client->second.stage.clear();
      Refuse(client->second, why);
    }
    writers_.erase(request.stage);
    service_.RemoveFeed(request.stage);
  }
}

}  // namespace arcflow::control
