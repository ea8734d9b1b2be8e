// SPDX-License-Identifier: Apache-2.0
// SideLink and NodeSession: both ends of feeding a node that lives on.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "agent_link.h"
#include "arcflow/base/mapping.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/control/node_link.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/remote_link.h"
#include "arcflow/control/side_link.h"
#include "core_bindings.h"

namespace arcflow::bindings {
namespace {

using nlohmann::json;

constexpr double kConnectTimeout_s = 30;

/// What Python gets of a packet: its JSON and the bytes of its first descriptor.
using Heard = std::optional<std::pair<std::string, nb::bytes>>;

Result<std::vector<std::string>> BytesOf(const net::Message& message) {
  std::vector<std::string> out{message.body->dump()};
  if (!message.fds.empty()) {
    ARC_ASSIGN(std::string bytes, ReadAllBytes(message.fds[0], control::kMaxResultBytes));
    out.push_back(std::move(bytes));
  }
  return out;
}

Heard ToPython(const std::optional<net::Message>& message) {
  if (!message) return std::nullopt;
  const auto parts = ValueOrThrow(WithoutGil([&] { return BytesOf(*message); }));
  return std::pair(parts[0], ToBytes(parts.size() > 1 ? parts[1] : std::string()));
}

/// A task's link, and the writer of the stage at hand.
struct TaskLink {
  std::unique_ptr<control::TaskLink> link;
  std::unique_ptr<feed::Writer> writer;
  std::string stage;
};

TaskLink* Connect(const std::string& address, const nb::bytes& secret) {
  const std::string key(View(secret));
  auto link = ValueOrThrow(WithoutGil([&] {
    return control::SideLink::Connect(address, key, Deadline::AfterSeconds(kConnectTimeout_s));
  }));
  return new TaskLink{std::move(link), nullptr, ""};
}

TaskLink* ConnectRemote(const std::string& host, std::uint16_t port, const nb::bytes& secret,
                        bool encrypt) {
  const std::string key(View(secret));
  auto link = ValueOrThrow(WithoutGil([&] {
    return control::RemoteLink::Connect(host, port, control::RemoteChannelOptions(key, encrypt),
                                        Deadline::AfterSeconds(kConnectTimeout_s));
  }));
  return new TaskLink{std::move(link), nullptr, ""};
}

Status SendJson(control::TaskLink& link, const std::string& text, const std::string& document) {
  ARC_ASSIGN(const json packet, ParseObject(text, "packet"));
  if (document.empty()) return link.Send(packet, {});
  ARC_ASSIGN(const Fd memory, control::BytesToMemfd("arcflow-schema", document));
  return link.Send(packet, {memory.get()});
}

Status Begin(TaskLink& self, const std::string& stage, const std::string& schema,
             std::size_t segment_bytes) {
  ARC_ASSIGN(const json object, ParseObject(schema, "schema"));
  ARC_ASSIGN(columnar::Schema parsed, columnar::Schema::FromJson(object));
  if (!self.stage.empty()) self.link->memory().DropFeed(self.stage);
  self.stage = stage;
  self.writer = std::make_unique<feed::Writer>(
      feed::Writer::Options{stage, std::move(parsed), segment_bytes}, *self.link);
  return Status::Ok();
}

control::TaskLink& Open(TaskLink& self) {
  if (!self.link) Raise(FailedPrecondition("this link is closed"));
  return *self.link;
}

bool Write(TaskLink& self, nb::handle batch) {
  if (!self.writer) Raise(FailedPrecondition("write() before begin()"));
  const auto pair = nb::cast<nb::tuple>(batch.attr("__arrow_c_array__")());
  const auto& schema = FromCapsule<ArrowSchema>(pair[0], "arrow_schema");
  const auto& array = FromCapsule<ArrowArray>(pair[1], "arrow_array");
  std::size_t taken = 0;
  const Status status = InSlices(
      Deadline::kForeverSeconds,
      [&](Deadline slice) { return self.writer->Append(schema, array, slice, &taken); },
      [](const Status& each) { return each.code() == Code::kDeadlineExceeded; });
  if (status.code() == Code::kCancelled) return false;
  OrThrow(status);
  return true;
}

/// One of a node's sessions with its agent, as packets.
struct NodeSession {
  Fd socket;
};

NodeSession* OpenNodeSession(int broker_fd, const std::string& what) {
  auto socket = ValueOrThrow(WithoutGil(
      [&] { return control::OpenSession(broker_fd, what, "", Deadline::After(kAgentTimeout)); }));
  return new NodeSession{std::move(socket)};
}

Status SendFromNode(const NodeSession& self, const std::string& text, const std::string* bytes) {
  ARC_ASSIGN(const json packet, ParseObject(text, "packet"));
  const Deadline deadline = Deadline::After(kAgentTimeout);
  if (bytes == nullptr) return net::SendPacket(self.socket.get(), packet, {}, deadline);
  ARC_ASSIGN(const Fd memory, control::BytesToMemfd("arcflow-rows", *bytes));
  return net::SendPacket(self.socket.get(), packet, {memory.get()}, deadline);
}

Result<std::optional<net::Message>> ReceiveInNode(const NodeSession& self, Deadline deadline) {
  auto message = control::ReceiveLastWords(self.socket.get(), deadline);
  if (message.status().code() == Code::kDeadlineExceeded) return std::optional<net::Message>();
  ARC_TRY(message.status());
  if (!*message) return Unavailable("the agent closed the session");
  return std::move(message).value();
}

const auto kNothingYet = [](const Result<std::optional<net::Message>>& each) {
  return each.ok() && !each->has_value();
};

void BindTaskLink(nb::module_& module) {
  nb::class_<TaskLink>(module, "SideLink", "A Spark task's link to an agent that lives on.")
      .def(nb::new_(&Connect), nb::arg("address"), nb::arg("secret"))
      .def_static("remote", &ConnectRemote, nb::arg("host"), nb::arg("port"), nb::arg("secret"),
                  nb::arg("encrypt"), nb::rv_policy::take_ownership,
                  "A link to an agent of another executor, by TCP.")
      .def(
          "send",
          [](TaskLink& self, const std::string& text, const std::string& document) {
            control::TaskLink& link = Open(self);
            OrThrow(WithoutGil([&] { return SendJson(link, text, document); }));
          },
          nb::arg("json"), nb::arg("document") = "")
      .def(
          "receive",
          [](TaskLink& self, double timeout_s) {
            control::TaskLink& link = Open(self);
            return ToPython(ValueOrThrow(InSlices(
                timeout_s, [&](Deadline slice) { return link.Receive(slice); }, kNothingYet)));
          },
          nb::arg("timeout_s"))
      .def(
          "begin",
          [](TaskLink& self, const std::string& stage, const std::string& schema,
             std::size_t segment_bytes) {
            Open(self);
            OrThrow(WithoutGil([&] { return Begin(self, stage, schema, segment_bytes); }));
          },
          nb::arg("stage"), nb::arg("schema_json"), nb::arg("segment_bytes"))
      .def("write", &Write, nb::arg("batch"))
      .def("finish",
           [](TaskLink& self) {
             if (self.writer) OrThrow(WithoutGil([&] { return self.writer->Finish(); }));
           })
      .def("close", [](TaskLink& self) {
        self.writer.reset();
        self.link.reset();
      });
}

}  // namespace

void BindSide(nb::module_& module) {
  BindTaskLink(module);
  nb::class_<NodeSession>(module, "NodeSession", "A session of a node with its agent, as packets.")
      .def(nb::new_(&OpenNodeSession), nb::arg("broker_fd"), nb::arg("what"))
      .def(
          "send",
          [](const NodeSession& self, const std::string& text,
             const std::optional<nb::bytes>& bytes) {
            std::optional<std::string> copy;
            if (bytes) copy.emplace(View(*bytes));
            OrThrow(WithoutGil([&] { return SendFromNode(self, text, copy ? &*copy : nullptr); }));
          },
          nb::arg("json"), nb::arg("bytes") = nb::none())
      .def(
          "receive",
          [](const NodeSession& self, double timeout_s) {
            return ToPython(ValueOrThrow(InSlices(
                timeout_s, [&](Deadline slice) { return ReceiveInNode(self, slice); },
                kNothingYet)));
          },
          nb::arg("timeout_s"));
}

}  // namespace arcflow::bindings
