// SPDX-License-Identifier: Apache-2.0
// The node's side of its control session.
#include "arcflow/control/node_link.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/base/mapping.h"
#include "arcflow/control/fields.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/protocol.h"
#include "arcflow/control/stack_dumper.h"
#include "arcflow/control/text.h"

namespace arcflow::control {

using nlohmann::json;

namespace {

constexpr double kBarrierSlack_s =
    10;  // the coordinator ends a barrier; only if it does not, we do
constexpr double kForever_s = 1e8;
constexpr std::size_t kMaxProgressBytes = 16 * 1024;

double SecondsLeft(Deadline deadline) {
  if (deadline.infinite()) return kForever_s;
  return std::max(0.0,
                  std::chrono::duration<double>(deadline.at() - Deadline::Clock::now()).count());
}

Result<std::vector<std::string>> PayloadsFromMemfd(const Fd& fd) {
  json document;
  ARC_TRY(DocumentFromMemfd(fd, &document));
  if (!document.is_array()) return InvalidArgument("payloads of a barrier are not a list");
  std::vector<std::string> payloads;
  for (const json& entry : document) {
    if (!entry.is_string()) return InvalidArgument("a payload of a barrier is not text");
    ARC_ASSIGN(std::string bytes, Base64Decode(entry.get_ref<const std::string&>()));
    payloads.push_back(std::move(bytes));
  }
  return payloads;
}

}  // namespace

Result<Fd> OpenSession(int broker_fd, const std::string& what, const std::string& feed,
                       Deadline deadline) {
  ARC_ASSIGN(auto pair, net::PacketPair());
  const json packet{{"op", "open"}, {"what", what}, {"feed", feed}};
  ARC_TRY(net::SendPacket(broker_fd, packet, {pair.second.get()}, deadline));
  return std::move(pair.first);
}

struct NodeLink::Impl {
  Fd socket;
  std::string config;
  std::string payload;
  std::shared_ptr<CounterPage> counters;
  Fd stacks;
  std::mutex barrier_mutex;
  std::uint64_t barriers = 0;  // under barrier_mutex
  std::mutex result_mutex;
  bool ended = false;  // under result_mutex

  Status Send(const json& packet, const std::vector<int>& fds) {
    return net::SendPacket(socket.get(), packet, fds, Deadline::After(kPeerSends));
  }
  Status TakeConfig(Deadline deadline);
  Result<std::vector<std::string>> WaitBarrier(std::uint64_t id, const std::string& name,
                                               Deadline deadline);
  Status EndOnce();
};

Status NodeLink::Impl::TakeConfig(Deadline deadline) {
  ARC_ASSIGN(auto message, net::ReceiveMessage(socket.get(), -1, deadline));
  if (!message) return Unavailable("the agent closed the control session");
  if (message->op == "error") {
    std::string text;
    Fields(*message->body, "error").Text("message", &text, kMaxTextBytes);
    return FailedPrecondition(text);
  }
  if (message->op != "config" || message->fds.size() != 3)
    return InvalidArgument("the agent sent no configuration");
  ARC_ASSIGN(config, ReadAllBytes(message->fds[0], kMaxDocumentBytes));
  ARC_ASSIGN(payload, ReadAllBytes(message->fds[1], kMaxResultBytes));
  ARC_ASSIGN(counters, CounterPage::Attach(std::move(message->fds[2])));
  return Status::Ok();
}

Result<std::unique_ptr<NodeLink>> NodeLink::Open(int broker_fd, Deadline deadline) {
  ::fcntl(broker_fd, F_SETFD,
          FD_CLOEXEC);  // none of the user's own child processes shall inherit it
  auto impl = std::make_unique<Impl>();
  ARC_ASSIGN(impl->socket, OpenSession(broker_fd, "control", "", deadline));
  ARC_TRY(impl->Send({{"op", "hello"}, {"pid", ::getpid()}}, {}));
  ARC_TRY(impl->TakeConfig(deadline));
  if (auto stacks = InstallStackDumper(); stacks.ok()) {  // a node works without it
    ARC_TRY(impl->Send({{"op", "stacks"}}, {stacks->get()}));
    impl->stacks = std::move(*stacks);
  }
  return std::unique_ptr<NodeLink>(new NodeLink(std::move(impl)));
}

Result<int> NodeLink::BrokerFdFromEnvironment() {
  const char* text = std::getenv(kNodeFdVariable);
  if (text == nullptr)
    return NotFound(std::string(kNodeFdVariable) + " is not set: this process is no node");
  int fd = -1;
  const char* end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, fd);
  if (parsed.ec != std::errc() || parsed.ptr != end || fd < 0) {
    return InvalidArgument(std::string(kNodeFdVariable) + " is not the number of a descriptor");
  }
  return fd;
}

NodeLink::NodeLink(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NodeLink::~NodeLink() = default;

const std::string& NodeLink::config_json() const { return impl_->config; }
const std::string& NodeLink::payload() const { return impl_->payload; }
std::shared_ptr<CounterPage> NodeLink::counters() const { return impl_->counters; }

Status NodeLink::Log(std::string_view text) {
  return impl_->Send({{"op", "log"}, {"text", CleanText(text, kMaxTextBytes)}}, {});
}

Status NodeLink::Busy(std::string_view reason) {
  return impl_->Send({{"op", "busy"}, {"reason", CleanText(reason, kMaxNameBytes)}}, {});
}

int NodeLink::stacks_fd() const { return impl_->stacks.get(); }

Status NodeLink::PythonStacks() { return impl_->Send({{"op", "python_stacks"}}, {}); }

Status NodeLink::Progress(const std::string& text) {
  json progress = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!progress.is_object()) return InvalidArgument("progress is not a JSON object");
  if (text.size() > kMaxProgressBytes) {
    return InvalidArgument("progress is over " + std::to_string(kMaxProgressBytes) + " bytes");
  }
  return impl_->Send({{"op", "progress"}, {"progress", std::move(progress)}}, {});
}

Result<std::vector<std::string>> NodeLink::Barrier(const std::string& name,
                                                   std::string_view payload, Deadline deadline,
                                                   int ranks) {
  if (name.empty() || name.size() > kMaxNameBytes)
    return InvalidArgument("a barrier's name has 1 to 256 bytes");
  if (payload.size() > kMaxBarrierPayloadBytes) {
    return InvalidArgument("a barrier's payload of " + std::to_string(payload.size()) +
                           " bytes is over " + std::to_string(kMaxBarrierPayloadBytes) +
                           "; pass larger things through files");
  }
  const std::lock_guard lock(impl_->barrier_mutex);
  const std::uint64_t id = ++impl_->barriers;
  ARC_TRY(impl_->Send({{"op", "barrier"},
                       {"id", id},
                       {"name", name},
                       {"payload", Base64Encode(payload)},
                       {"ranks", ranks},
                       {"timeout_s", SecondsLeft(deadline)}},
                      {}));
  const Deadline last = deadline.infinite()
                            ? deadline
                            : Deadline::AfterSeconds(SecondsLeft(deadline) + kBarrierSlack_s);
  return impl_->WaitBarrier(id, name, last);
}

Result<std::vector<std::string>> NodeLink::Impl::WaitBarrier(std::uint64_t id,
                                                             const std::string& name,
                                                             Deadline deadline) {
  for (;;) {
    ARC_ASSIGN(auto message, ReceiveLastWords(socket.get(), deadline));
    if (!message) return Unavailable("the agent is gone");
    std::uint64_t answered = 0;
    std::string code;
    std::string text;
    Fields in(*message->body, "barrier");
    in.Uint64("id", &answered, UINT64_MAX, Need::kRequired)
        .String("code", &code, kMaxNameBytes, Need::kRequired)
        .Text("message", &text, kMaxTextBytes);
    if (message->op != "barrier" || !in.ok() || answered != id)
      continue;  // the end of one given up earlier
    const Code number = CodeFromName(code);
    if (number != Code::kOk) return Status(number, text);
    if (message->fds.size() != 1)
      return InvalidArgument("barrier " + name + " ended without payloads");
    return PayloadsFromMemfd(message->fds[0]);
  }
}

Status NodeLink::Impl::EndOnce() {
  const std::lock_guard lock(result_mutex);
  if (std::exchange(ended, true)) return FailedPrecondition("this node has already told its end");
  return Status::Ok();
}

Status NodeLink::SetResult(std::string_view bytes) {
  if (bytes.size() > kMaxResultBytes)
    return InvalidArgument("the result is over 2 GiB; write it to a file instead");
  ARC_TRY(impl_->EndOnce());
  ARC_ASSIGN(const Fd memfd, BytesToMemfd("arcflow-result", bytes));
  return impl_->Send({{"op", "result"}}, {memfd.get()});
}

Status NodeLink::Failed(const std::string& text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  Failure failure;
  Fields in(object, "failed");
  in.Text("type", &failure.type, kMaxNameBytes)
      .Text("message", &failure.message, kMaxTextBytes)
      .Text("traceback", &failure.traceback, kMaxTextBytes)
      .Bool("peer_loss", &failure.peer_loss, Need::kOptional);
  ARC_TRY(in.status());
  ARC_TRY(impl_->EndOnce());
  return impl_->Send({{"op", "failed"},
                      {"type", failure.type},
                      {"message", failure.message},
                      {"traceback", failure.traceback},
                      {"peer_loss", failure.peer_loss}},
                     {});
}

}  // namespace arcflow::control
