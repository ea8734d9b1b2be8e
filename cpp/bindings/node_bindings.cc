// SPDX-License-Identifier: Apache-2.0
// NodeLink: the node's session with its agent.
#include <nanobind/stl/string.h>

#include <string>

#include "arcflow/control/node_link.h"
#include "arcflow/control/stack_dumper.h"
#include "core_bindings.h"

namespace arcflow::bindings {
namespace {

using control::NodeLink;

std::mutex g_counters_mutex;
std::shared_ptr<CounterPage>& CountersSlot() {
  static auto* slot =
      new std::shared_ptr<CounterPage>();  // leaked: readers may outlive static objects
  return *slot;
}

/// Shared, so that a barrier that a signal interrupted can go on without Python.
struct Node {
  std::shared_ptr<NodeLink> link;
};

Node* Open(int broker_fd) {
  auto link = ValueOrThrow(
      InThread([broker_fd] { return NodeLink::Open(broker_fd, Deadline::After(kAgentTimeout)); }));
  SetNodeCounters(link->counters());
  // The TensorFlow plug-in is a library of its own and finds the page by this name.
  nb::module_::import_("os").attr("environ")["ARCFLOW_COUNTER_FD"] =
      nb::str(std::to_string(link->counters()->fd().get()).c_str());
  return new Node{std::move(link)};
}

nb::list Barrier(const Node& self, const std::string& name, const nb::bytes& payload,
                 double timeout_s, int ranks) {
  const auto payloads = ValueOrThrow(
      InThread([link = self.link, name, bytes = std::string(View(payload)), timeout_s, ranks] {
        return link->Barrier(name, bytes, Deadline::AfterSeconds(timeout_s), ranks);
      }));
  nb::list out;
  for (const std::string& each : payloads) out.append(ToBytes(each));
  return out;
}

nb::dict Counters(const Node& self) {
  const auto page = self.link->counters();
  const CounterPageLayout& c = page->counters();
  nb::dict out;
  out["steps"] = c.steps.load(std::memory_order_relaxed);
  out["rows_used"] = c.rows_used.load(std::memory_order_relaxed);
  out["rows_padded"] = c.rows_padded.load(std::memory_order_relaxed);
  out["bytes_used"] = c.bytes_used.load(std::memory_order_relaxed);
  out["wait_ns"] = c.wait_ns.load(std::memory_order_relaxed);
  out["compute_ns"] = c.compute_ns.load(std::memory_order_relaxed);
  out["epochs"] = c.epochs.load(std::memory_order_relaxed);
  out["batches_copied"] = c.batches_copied.load(std::memory_order_relaxed);
  out["rows_fed"] = c.rows_fed.load(std::memory_order_relaxed);
  out["depth_bytes"] = c.depth_bytes.load(std::memory_order_relaxed);
  out["feeder_wait_ns"] = c.feeder_wait_ns.load(std::memory_order_relaxed);
  out["user_step"] = c.user_step.load(std::memory_order_relaxed);
  out["user_epoch"] = c.user_epoch.load(std::memory_order_relaxed);
  out["user_loss"] = c.user_loss.load(std::memory_order_relaxed);
  out["heartbeat"] = c.heartbeat.load(std::memory_order_relaxed);
  return out;
}

void SetProgress(const Node& self, std::uint64_t step, std::uint64_t epoch, double loss) {
  const auto page = self.link->counters();
  CounterPageLayout& c = page->counters();
  c.user_step.store(step, std::memory_order_relaxed);
  c.user_epoch.store(epoch, std::memory_order_relaxed);
  c.user_loss.store(loss, std::memory_order_relaxed);
  c.heartbeat.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

std::shared_ptr<CounterPage> NodeCounters() {
  const std::lock_guard lock(g_counters_mutex);
  return CountersSlot();
}

void SetNodeCounters(std::shared_ptr<CounterPage> counters) {
  const std::lock_guard lock(g_counters_mutex);
  CountersSlot() = std::move(counters);
}

void BindNode(nb::module_& module) {
  nb::class_<Node>(module, "NodeLink", "A node's session with its agent; one per process.")
      .def(nb::new_(&Open), nb::arg("broker_fd"))
      .def("config",
           [](const Node& self) {
             return nb::make_tuple(self.link->config_json(), ToBytes(self.link->payload()));
           })
      .def(
          "log",
          [](const Node& self, const std::string& text) {
            OrThrow(WithoutGil([&] { return self.link->Log(text); }));
          },
          nb::arg("text"))
      .def(
          "progress",
          [](const Node& self, const std::string& json) {
            OrThrow(WithoutGil([&] { return self.link->Progress(json); }));
          },
          nb::arg("json"))
      .def("barrier", &Barrier, nb::arg("name"), nb::arg("payload"), nb::arg("timeout_s"),
           nb::arg("ranks") = 0)
      .def(
          "result",
          [](const Node& self, const nb::bytes& bytes) {
            OrThrow(WithoutGil([&] { return self.link->SetResult(View(bytes)); }));
          },
          nb::arg("bytes"))
      .def(
          "failed",
          [](const Node& self, const std::string& json) {
            OrThrow(WithoutGil([&] { return self.link->Failed(json); }));
          },
          nb::arg("json"))
      .def(
          "busy",
          [](const Node& self, const std::string& reason) {
            OrThrow(WithoutGil([&] { return self.link->Busy(reason); }));
          },
          nb::arg("reason"))
      .def("alive",
           [](const Node& self) {
             self.link->counters()->counters().heartbeat.fetch_add(1, std::memory_order_relaxed);
           })
      .def("python_stacks",
           [](const Node& self) { OrThrow(WithoutGil([&] { return self.link->PythonStacks(); })); })
      .def_prop_ro("stacks_fd", [](const Node& self) { return self.link->stacks_fd(); })
      .def_prop_ro("stacks_signal", [](const Node&) { return control::PythonStackSignal(); })
      .def("counters", &Counters)
      .def("set_progress", &SetProgress, nb::arg("step"), nb::arg("epoch"), nb::arg("loss"));
}

}  // namespace arcflow::bindings
