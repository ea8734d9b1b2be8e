// SPDX-License-Identifier: Apache-2.0
// What all binding files share: errors become exceptions, and waiting lets other Python threads and
// Ctrl-C through.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "arcflow/base/counter_page.h"
#include "arcflow/base/deadline.h"
#include "arcflow/base/status.h"

namespace arcflow::bindings {

namespace nb = nanobind;

/// How long a node's own agent may take to answer. It lives, or this process is killed with it.
inline constexpr std::chrono::minutes kAgentTimeout{10};

/// How long a signal may wait for a blocking call.
inline constexpr std::chrono::milliseconds kSlice{100};

/// Raises the class of arcflow.errors for the status's code. Needs the GIL.
[[noreturn]] void Raise(const Status& status);

inline void OrThrow(const Status& status) {
  if (!status.ok()) Raise(status);
}

template <typename T>
T ValueOrThrow(Result<T>&& result) {
  if (!result.ok()) Raise(result.status());
  return std::move(result).value();
}

/// Throws the exception of a signal's handler (KeyboardInterrupt), if one came. Needs the GIL.
inline void CheckSignals() {
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

/// Runs `call()` without the GIL. For calls that end by themselves in a short time.
template <typename Call>
auto WithoutGil(Call call) {
  nb::gil_scoped_release nogil;
  return call();
}

/// Calls `call(deadline)` without the GIL and with short deadlines, until `again(result)` is false
/// or `timeout_s` has passed; handles signals in between. For calls that can be repeated after
/// their deadline.
template <typename Call, typename Again>
auto InSlices(double timeout_s, Call call, Again again) {
  const Deadline whole = Deadline::AfterSeconds(timeout_s);
  for (;;) {
    const Deadline slice = Deadline::After(kSlice);
    const bool last = whole.at() <= slice.at();
    auto result = WithoutGil([&] { return call(last ? whole : slice); });
    if (last || !again(result)) return result;
    CheckSignals();
  }
}

/// Runs `call()` in a thread of its own and waits for it without the GIL; handles signals
/// meanwhile. For calls that cannot be repeated. After a signal the thread goes on alone, so `call`
/// must own all that it touches, and no Python object.
template <typename Call>
auto InThread(Call call) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<decltype(call())> result;
  };
  auto shared = std::make_shared<Shared>();
  std::thread([shared, call = std::move(call)]() mutable {
    auto result = call();
    const std::lock_guard lock(shared->mutex);
    shared->result.emplace(std::move(result));
    shared->changed.notify_all();
  }).detach();
  for (;;) {
    const bool done = WithoutGil([&] {
      std::unique_lock lock(shared->mutex);
      return shared->changed.wait_for(lock, kSlice, [&] { return shared->result.has_value(); });
    });
    if (done) return std::move(*shared->result);
    CheckSignals();
  }
}

/// A span of characters over the bytes object, which must live as long.
inline std::string_view View(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

inline nb::bytes ToBytes(std::string_view text) { return nb::bytes(text.data(), text.size()); }

/// The counter page of this node, once there is a NodeLink; null elsewhere. Readers count into it.
std::shared_ptr<CounterPage> NodeCounters();
void SetNodeCounters(std::shared_ptr<CounterPage> counters);

/// The struct behind a capsule of the Arrow PyCapsule interface.
template <typename T>
const T& FromCapsule(nb::handle capsule, const char* name) {
  auto* pointer = static_cast<const T*>(PyCapsule_GetPointer(capsule.ptr(), name));
  if (pointer == nullptr) throw nb::python_error();
  if (pointer->release == nullptr) Raise(InvalidArgument("the Arrow data was released already"));
  return *pointer;
}

void BindControl(nb::module_& module);
void BindFeed(nb::module_& module);
void BindHdfs(nb::module_& module);
void BindNode(nb::module_& module);
void BindSide(nb::module_& module);

}  // namespace arcflow::bindings
