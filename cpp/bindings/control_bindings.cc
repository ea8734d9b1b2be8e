// SPDX-License-Identifier: Apache-2.0
// Coordinator and AgentLink: the driver's and the Spark task's ends of the control layer.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <nlohmann/json.hpp>

#include "agent_link.h"
#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/control/coordinator.h"
#include "core_bindings.h"

namespace arcflow::bindings {
namespace {

using control::Coordinator;
using nlohmann::json;

constexpr double kCloseTimeoutS = 10;

Result<std::unique_ptr<Coordinator>> StartCoordinator(control::CoordinatorOptions options,
                                                      const std::string& options_json) {
  ARC_ASSIGN(const json object, ParseObject(options_json, "options_json"));
  if (const auto id = object.find("run_id"); id != object.end()) {
    if (!id->is_string()) return InvalidArgument("run_id is not text");
    options.run_id = id->get<std::string>();
  }
  if (const auto encrypt = object.find("encrypt"); encrypt != object.end()) {
    if (!encrypt->is_boolean()) return InvalidArgument("encrypt is not true or false");
    options.encrypt = encrypt->get<bool>();
  }
  ARC_ASSIGN(options.tuning, control::CoordinatorTuning::FromJson(object));
  return Coordinator::Start(std::move(options));
}

nb::dict StatsOf(AgentLink& link) {
  const AgentLink::Stats stats = WithoutGil([&] { return link.stats(); });
  nb::dict feeds;
  for (const auto& [name, feed] : stats.feeds) {
    nb::dict each;
    each["rows"] = feed.rows;
    each["bytes"] = feed.bytes;
    each["wait_ns"] = feed.wait_ns;
    feeds[name.c_str()] = each;
  }
  nb::dict out;
  out["acquires"] = stats.link.acquires;
  out["acquire_wait_ns"] = stats.link.acquire_wait_ns;
  out["publishes"] = stats.link.publishes;
  out["feeds"] = feeds;
  return out;
}

bool Write(AgentLink& link, const std::string& feed, nb::handle batch) {
  if (!nb::hasattr(batch, "__arrow_c_array__")) {
    throw nb::type_error(
        "write() takes something with __arrow_c_array__, a pyarrow.RecordBatch say");
  }
  const auto pair = nb::cast<nb::tuple>(batch.attr("__arrow_c_array__")());
  const auto& schema = FromCapsule<ArrowSchema>(pair[0], "arrow_schema");
  const auto& array = FromCapsule<ArrowArray>(pair[1], "arrow_array");
  std::size_t taken = 0;
  const Status status = InSlices(
      Deadline::kForeverSeconds,
      [&](Deadline slice) { return link.Write(feed, schema, array, slice, &taken); },
      [](const Status& each) { return each.code() == Code::kDeadlineExceeded; });
  if (status.code() == Code::kCancelled) return false;
  OrThrow(status);
  return true;
}

/// For what is said to a node that may have ended meanwhile: nobody is left to care.
void OrThrowUnlessOver(const Status& status) {
  if (status.code() != Code::kCancelled) OrThrow(status);
}

void BindCoordinator(nb::module_& module) {
  nb::class_<Coordinator>(module, "Coordinator", "The server that all agents of a run join.")
      .def(nb::new_([](const std::string& bind_host, const std::string& advertise_host,
                       std::uint16_t port, const nb::bytes& secret, int size,
                       const std::string& options_json) {
             control::CoordinatorOptions options;
             options.bind_host = bind_host;
             options.advertise_host = advertise_host;
             options.port = port;
             options.secret = View(secret);
             options.size = size;
             return ValueOrThrow(
                 WithoutGil([&] { return StartCoordinator(std::move(options), options_json); }));
           }),
           nb::arg("bind_host"), nb::arg("advertise_host"), nb::arg("port"), nb::arg("secret"),
           nb::arg("size"), nb::arg("options_json") = "{}")
      .def_prop_ro("address",
                   [](const Coordinator& self) {
                     const control::HostPort at = self.address();
                     return at.host + ":" + std::to_string(at.port);
                   })
      .def(
          "next_event",
          [](Coordinator& self, double timeout_s) {
            const auto begin = Deadline::Clock::now();
            return ValueOrThrow(InSlices(
                timeout_s, [&](Deadline slice) { return self.NextEvent(slice); },
                [&](const Result<std::optional<std::string>>& event) {
                  // Nothing, at once: there will be nothing more.
                  const bool waited = Deadline::Clock::now() - begin >= kSlice;
                  return event.ok() && !event->has_value() && (waited || !self.over());
                }));
          },
          nb::arg("timeout_s"))
      .def(
          "stop",
          [](Coordinator& self, const std::string& code, const std::string& reason) {
            OrThrow(WithoutGil([&] { return self.Stop(CodeFromName(code), reason); }));
          },
          nb::arg("code"), nb::arg("reason"))
      .def(
          "request_log",
          [](Coordinator& self, int rank, int lines) {
            WithoutGil([&] {
              self.RequestLog(rank, lines);
              return true;
            });
          },
          nb::arg("rank"), nb::arg("lines"))
      .def(
          "tell",
          [](Coordinator& self, const std::string& json) {
            OrThrow(WithoutGil([&] { return self.Tell(json); }));
          },
          nb::arg("json"))
      .def("close", [](Coordinator& self) {
        nb::gil_scoped_release nogil;
        self.Close();
      });
}

void BindAgentLink(nb::module_& module) {
  nb::class_<AgentLink>(module, "AgentLink", "A Spark task's hold on the agent that it started.")
      .def_static(
          "launch",
          [](const std::string& agent_path, const std::string& config_json,
             const nb::bytes& payload) {
            const std::string bytes(View(payload));
            return ValueOrThrow(
                WithoutGil([&] { return AgentLink::Launch(agent_path, config_json, bytes); }));
          },
          nb::arg("agent_path"), nb::arg("config_json"), nb::arg("payload"))
      .def("write", &Write, nb::arg("feed"), nb::arg("batch"))
      .def(
          "end",
          [](AgentLink& self, const std::string& feed) {
            OrThrowUnlessOver(WithoutGil([&] { return self.End(feed); }));
          },
          nb::arg("feed"))
      .def(
          "abort",
          [](AgentLink& self, const std::string& code, const std::string& message,
             const std::string& traceback) {
            OrThrowUnlessOver(
                WithoutGil([&] { return self.link().Abort(code, message, traceback); }));
          },
          nb::arg("code"), nb::arg("message"), nb::arg("traceback"))
      .def(
          "wait",
          [](AgentLink& self,
             double timeout_s) -> std::optional<std::pair<std::string, nb::bytes>> {
            const auto outcome = ValueOrThrow(InSlices(
                timeout_s, [&](Deadline slice) { return self.link().WaitOutcome(slice); },
                [](const auto& each) { return each.ok() && !each->has_value(); }));
            if (!outcome) return std::nullopt;
            return std::pair(outcome->json, ToBytes(outcome->result));
          },
          nb::arg("timeout_s"))
      .def(
          "detach",
          [](AgentLink& self, double timeout_s) {
            return ValueOrThrow(InSlices(
                timeout_s, [&](Deadline slice) { return self.link().Detach(slice); },
                [](const Result<bool>& each) { return each.ok() && !*each; }));
          },
          nb::arg("timeout_s"))
      .def(
          "follow",
          [](AgentLink& self, double timeout_s) {
            nb::gil_scoped_release nogil;
            return self.link().Follow(Deadline::AfterSeconds(timeout_s));
          },
          nb::arg("timeout_s"))
      .def(
          "close",
          [](AgentLink& self, double timeout_s) {
            nb::gil_scoped_release nogil;
            self.link().Close(Deadline::AfterSeconds(timeout_s));
          },
          nb::arg("timeout_s") = kCloseTimeoutS)
      .def_prop_ro("pid", [](AgentLink& self) { return self.link().pid(); })
      .def("stats", &StatsOf);
}

}  // namespace

void BindControl(nb::module_& module) {
  BindCoordinator(module);
  BindAgentLink(module);
}

}  // namespace arcflow::bindings
