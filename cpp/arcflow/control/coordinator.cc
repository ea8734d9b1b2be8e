// SPDX-License-Identifier: Apache-2.0
// The coordinator's life: start, address, events, stop; what it decides is in coordinator_state.cc.
#include "arcflow/control/coordinator.h"

#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "arcflow/control/coordinator_internal.h"
#include "arcflow/control/coordinator_state.h"
#include "arcflow/control/event_queue.h"
#include "arcflow/net/listener.h"
#include "arcflow/net/loop.h"

namespace arcflow::control {
namespace {

constexpr std::chrono::seconds kCloseTimeout{2};

Status CheckOptions(const CoordinatorOptions& options) {
  if (options.secret.size() != kSecretBytes) {
    return InvalidArgument("the secret of a run is " + std::to_string(kSecretBytes) +
                           " bytes, not " + std::to_string(options.secret.size()));
  }
  if (options.size < 1 || options.size > kMaxSize) {
    return InvalidArgument("size must be between 1 and " + std::to_string(kMaxSize) + ", not " +
                           std::to_string(options.size));
  }
  if (options.run_id.size() > kMaxNameBytes) return InvalidArgument("the run id is too long");
  return Status::Ok();
}

}  // namespace

class Coordinator::Impl {
 public:
  EventQueue events;
  HostPort address;
  std::unique_ptr<CoordinatorState> state;  // loop thread only, once the loop runs
  std::unique_ptr<net::Loop>
      loop;  // last but one: ends, with its channels, while the state still lives
  std::unique_ptr<net::Listener> listener;
  std::mutex close_mutex;
  bool running = false;
  bool closed = false;

  Status Start(const CoordinatorOptions& options) {
    auto made = net::Loop::Create();
    ARC_TRY(made.status());
    loop = std::move(*made);
    state = std::make_unique<CoordinatorState>(options, *loop, events);
    net::ListenerOptions listen;
    listen.host = options.bind_host;
    listen.port = options.port;
    // All agents of a run may come at once; none of them shall be taken for a crowd of strangers.
    listen.max_unauthenticated += static_cast<std::size_t>(options.size);
    listen.channel = ControlChannelOptions(options.secret, options.encrypt);
    auto bound = net::Listener::Bind(*loop, std::move(listen),
                                     [this](std::shared_ptr<net::Channel> channel) {
                                       return state->OnAccepted(std::move(channel));
                                     });
    ARC_TRY(bound.status());
    listener = std::move(*bound);
    address.host = options.advertise_host.empty() ? listener->host() : options.advertise_host;
    address.port = listener->port();
    loop->Post([this] { state->Begin(); });
    ARC_TRY(loop->StartThread());
    running = true;
    return Status::Ok();
  }

  void Close() {
    const std::lock_guard lock(close_mutex);
    if (std::exchange(closed, true)) return;
    if (listener) listener->Close();
    if (running) {
      loop->Post([this] { state->End(); });
      state->WaitQuiet(Deadline::After(kCloseTimeout));
      loop->Stop();
      loop->Join();
    }
    events.Close();
    listener.reset();
    loop.reset();
  }

  ~Impl() { Close(); }
};

Coordinator::Coordinator(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Coordinator::~Coordinator() = default;

Result<std::unique_ptr<Coordinator>> Coordinator::Start(CoordinatorOptions options) {
  ARC_TRY(CheckOptions(options));
  auto impl = std::make_unique<Impl>();
  ARC_TRY(impl->Start(options));
  return std::unique_ptr<Coordinator>(new Coordinator(std::move(impl)));
}

HostPort Coordinator::address() const { return impl_->address; }

Result<std::optional<std::string>> Coordinator::NextEvent(Deadline deadline) {
  return impl_->events.Next(deadline);
}

bool Coordinator::over() const { return impl_->events.has_last(); }

Status Coordinator::Stop(Code code, const std::string& reason) {
  if (code == Code::kOk)
    return InvalidArgument("a run is stopped with the code of an error, not OK");
  const std::lock_guard lock(impl_->close_mutex);
  if (impl_->closed) return Status::Ok();
  impl_->loop->Post([state = impl_->state.get(), code, reason] { state->Stop(code, reason); });
  return Status::Ok();
}

void Coordinator::RequestLog(int rank, int lines) {
  const std::lock_guard lock(impl_->close_mutex);
  if (impl_->closed) return;
  impl_->loop->Post([state = impl_->state.get(), rank, lines] { state->RequestLog(rank, lines); });
}

Status Coordinator::Tell(const std::string& message) {
  nlohmann::json object = nlohmann::json::parse(message, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("act") || !object["act"].is_string())
    return InvalidArgument("what agents are told is a JSON object with a text `act`");
  object["op"] = "side";
  std::string text = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > kControlFrameBytes / 2)
    return InvalidArgument("what agents are told is over 4 MiB");
  const std::lock_guard lock(impl_->close_mutex);
  if (impl_->closed) return Status::Ok();
  impl_->loop->Post([state = impl_->state.get(), text = std::move(text)] { state->Tell(text); });
  return Status::Ok();
}

void Coordinator::Close() { impl_->Close(); }

}  // namespace arcflow::control
