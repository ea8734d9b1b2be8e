// SPDX-License-Identifier: Apache-2.0
// Coordinator and AgentLink: the driver's and the Spark task's ends of the control layer.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <map>
#include <nlohmann/json.hpp>

#include "arcflow/columnar/arrow_abi.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/control/coordinator.h"
#include "arcflow/control/feeder_link.h"
#include "arcflow/feed/writer.h"
#include "core_bindings.h"

namespace arcflow::bindings {
namespace {

using control::Coordinator;
using control::FeederLink;
using nlohmann::json;

constexpr std::size_t kDefaultSegmentBytes = std::size_t{4} << 20;
constexpr double kCloseTimeoutS = 10;

Result<json> ParseObject(const std::string& text, const char* what) {
  json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return InvalidArgument(std::string(what) + " is not a JSON object");
  return parsed;
}

Result<std::unique_ptr<Coordinator>> StartCoordinator(control::CoordinatorOptions options,
                                                      const std::string& options_json) {
  ARC_ASSIGN(const json object, ParseObject(options_json, "options_json"));
  if (const auto id = object.find("run_id"); id != object.end()) {
    if (!id->is_string()) return InvalidArgument("run_id is not text");
    options.run_id = id->get<std::string>();
  }
  ARC_ASSIGN(options.tuning, control::CoordinatorTuning::FromJson(object));
  return Coordinator::Start(std::move(options));
}

/// The feeder's agent and one writer for each feed of its configuration.
/// Threads: any; writing is serialised.
class AgentLink {
 public:
  static Result<std::unique_ptr<AgentLink>> Launch(const std::string& agent_path,
                                                   const std::string& config_json,
                                                   const std::string& payload) {
    auto link = std::unique_ptr<AgentLink>(new AgentLink());
    ARC_ASSIGN(const json config, ParseObject(config_json, "config_json"));
    ARC_TRY(link->ReadFeeds(config));
    ARC_ASSIGN(link->link_, FeederLink::Launch(agent_path, config_json, payload));
    for (auto& [feed, options] : link->options_) {
      link->writers_.emplace(feed, std::make_unique<feed::Writer>(options, *link->link_));
    }
    return link;
  }

  /// Appends rows from `*taken` on; DeadlineExceeded: call again.
  Status Write(const std::string& feed, const ArrowSchema& schema, const ArrowArray& batch,
               Deadline deadline, std::size_t* taken) {
    const std::lock_guard lock(mutex_);
    ARC_ASSIGN(feed::Writer * writer, Find(feed));
    return writer->Append(schema, batch, deadline, taken);
  }

  Status End(const std::string& feed) {
    const std::lock_guard lock(mutex_);
    ARC_ASSIGN(feed::Writer * writer, Find(feed));
    ARC_TRY(writer->Finish());
    return link_->End(feed);
  }

  FeederLink& link() { return *link_; }

  nb::dict Stats() {
    const FeederLink::Stats stats = link_->stats();
    nb::dict feeds;
    WithoutGil([&] {
      mutex_.lock();
      return true;
    });
    const std::lock_guard lock(mutex_, std::adopt_lock);
    for (const auto& [name, writer] : writers_) {
      nb::dict feed;
      feed["rows"] = writer->rows();
      feed["bytes"] = writer->bytes();
      feed["wait_ns"] = writer->wait_ns();
      feeds[name.c_str()] = feed;
    }
    nb::dict out;
    out["acquires"] = stats.acquires;
    out["acquire_wait_ns"] = stats.acquire_wait_ns;
    out["publishes"] = stats.publishes;
    out["feeds"] = feeds;
    return out;
  }

 private:
  AgentLink() = default;

  Status ReadFeeds(const json& config) {
    const auto bytes = config.find("segment_bytes");
    if (bytes != config.end() && (!bytes->is_number_unsigned() || *bytes == 0)) {
      return InvalidArgument("segment_bytes is not a positive whole number");
    }
    const auto feeds = config.find("feeds");
    if (feeds == config.end()) return Status::Ok();
    if (!feeds->is_object()) return InvalidArgument("feeds is not an object");
    for (const auto& [name, feed] : feeds->items()) {
      if (!feed.is_object() || !feed.contains("schema")) {
        return InvalidArgument("feed " + name + " has no schema");
      }
      auto schema = columnar::Schema::FromJson(feed["schema"]);
      if (!schema.ok()) return schema.status().WithContext("feed " + name);
      options_[name] = {name, std::move(*schema),
                        bytes == config.end() ? kDefaultSegmentBytes : bytes->get<std::size_t>()};
    }
    return Status::Ok();
  }

  Result<feed::Writer*> Find(const std::string& feed) {
    const auto it = writers_.find(feed);
    if (it == writers_.end()) return NotFound("there is no feed '" + feed + "' in this run");
    return it->second.get();
  }

  std::map<std::string, feed::Writer::Options> options_;
  std::mutex mutex_;                  // the writers
  std::unique_ptr<FeederLink> link_;  // outlives the writers
  std::map<std::string, std::unique_ptr<feed::Writer>> writers_;
};

/// The struct behind a capsule of the Arrow PyCapsule interface.
template <typename T>
const T& FromCapsule(nb::handle capsule, const char* name) {
  auto* pointer = static_cast<const T*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (pointer == nullptr) throw nb::python_error();
  if (pointer->release == nullptr) Raise(InvalidArgument("the Arrow data was released already"));
  return *pointer;
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
          "close",
          [](AgentLink& self, double timeout_s) {
            nb::gil_scoped_release nogil;
            self.link().Close(Deadline::AfterSeconds(timeout_s));
          },
          nb::arg("timeout_s") = kCloseTimeoutS)
      .def_prop_ro("pid", [](AgentLink& self) { return self.link().pid(); })
      .def("stats", &AgentLink::Stats);
}

}  // namespace

void BindControl(nb::module_& module) {
  BindCoordinator(module);
  BindAgentLink(module);
}

}  // namespace arcflow::bindings
