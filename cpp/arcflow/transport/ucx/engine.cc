// SPDX-License-Identifier: Apache-2.0
// Engine: progress, completions, and getting memory back.
#include "arcflow/transport/ucx/engine.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <utility>

#include "arcflow/base/log.h"
#include "arcflow/transport/reactor.h"

namespace arcflow::transport::ucx {
namespace {

constexpr unsigned kMessageId = 0x41;
constexpr auto kSpin = std::chrono::microseconds(50);  // before it sleeps
constexpr auto kShutTime = std::chrono::seconds(2);
constexpr int kSleepMs = 100;  // some transports of UCX want to be looked at now and then

}  // namespace

struct Engine::Peer {
  Engine* engine = nullptr;
  ucp_ep_h ep = nullptr;
  Token own{};
  std::weak_ptr<Receiver> receiver;
  bool closed = false;
};

Result<std::unique_ptr<Engine>> Engine::Start(const std::string& transports,
                                              std::chrono::nanoseconds quiesce_timeout) {
  ARC_ASSIGN(const Api* api, Api::Load());
  std::unique_ptr<Engine> engine(new Engine(*api, quiesce_timeout));
  ARC_TRY(engine->Open(transports));
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the new thread inherits it
  engine->thread_ = std::thread([e = engine.get()] { e->Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return engine;
}

Status Engine::Open(const std::string& transports) {
  wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return Status::FromErrno(errno, "eventfd");
  ucp_config_t* config = nullptr;
  ARC_TRY(api_.Check(api_.config_read(nullptr, nullptr, &config), "UCX configuration"));
  Status status;
  if (!transports.empty()) {
    status = api_.Check(api_.config_modify(config, "TLS", transports.c_str()), "UCX_TLS");
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  if (status.ok()) {
    // The version of the headers: the library adapts itself to its caller.
    status = api_.Check(api_.init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_),
                        "UCX context");
  }
  api_.config_release(config);
  ARC_TRY(status);
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;  // made here, used on the thread
  ARC_TRY(api_.Check(api_.worker_create(context_, &worker, &worker_), "UCX worker"));
  ARC_TRY(api_.Check(api_.worker_get_efd(worker_, &worker_fd_), "UCX event descriptor"));
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.cb = &Engine::MessageCallback;
  handler.arg = this;
  ARC_TRY(api_.Check(api_.worker_set_am_recv_handler(worker_, &handler), "UCX message handler"));
  ucp_address_t* address = nullptr;
  std::size_t length = 0;
  ARC_TRY(api_.Check(api_.worker_get_address(worker_, &address, &length), "UCX address"));
  address_.assign(reinterpret_cast<const char*>(address), length);
  api_.worker_release_address(worker_, address);
  return Status::Ok();
}

Engine::~Engine() {
  Stop();
  if (worker_ != nullptr) api_.worker_destroy(worker_);
  if (context_ != nullptr) api_.cleanup(context_);
}

void Engine::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  Wake();
  if (thread_.joinable()) thread_.join();
}

bool Engine::Post(std::function<void()> task) {
  bool first = false;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return false;
    first = posted_.empty();
    posted_.push_back(std::move(task));
  }
  if (first && !InThread()) Wake();
  return true;
}

void Engine::Wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof(one));
}

void Engine::Run() {
  Reactor::MarkTransportThread();
  pthread_setname_np(pthread_self(), "arc-ucx");
  auto busy = std::chrono::steady_clock::now();
  for (;;) {
    std::vector<std::function<void()>> tasks;
    bool stop = false;
    {
      std::lock_guard lock(mutex_);
      tasks.swap(posted_);
      stop = stopping_ && tasks.empty();
    }
    for (auto& task : tasks) task();
    const bool moved = Progress();
    RunDue();
    if (stop) break;
    const auto now = std::chrono::steady_clock::now();
    if (moved || !tasks.empty()) {
      busy = now;
    } else if (now - busy > kSpin) {
      Sleep();
    }
  }
  Shut();
}

bool Engine::Progress() {
  bool moved = false;
  for (int i = 0; i < 64 && api_.worker_progress(worker_) != 0; ++i) moved = true;
  for (auto it = closing_.begin(); it != closing_.end();) {
    if (api_.request_check_status(*it) == UCS_INPROGRESS) {
      ++it;
    } else {
      api_.request_free(*it);
      it = closing_.erase(it);
    }
  }
  return moved;
}

void Engine::RunDue() {
  std::vector<std::function<void()>> due;
  due.swap(due_);
  for (auto& task : due) task();
}

void Engine::Sleep() {
  {
    std::lock_guard lock(mutex_);
    if (!posted_.empty() || stopping_ || !due_.empty()) return;
  }
  if (api_.worker_arm(worker_) != UCS_OK) return;  // UCS_ERR_BUSY: there is something to do
  pollfd fds[2] = {{worker_fd_, POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  ::poll(fds, 2, kSleepMs);
  if (fds[1].revents != 0) {
    std::uint64_t count = 0;
    [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof(count));
  }
}

void Engine::Shut() {
  while (!peers_.empty()) Close(peers_.begin()->second);
  const auto until = std::chrono::steady_clock::now() + kShutTime;
  while ((!closing_.empty() || !flights_.empty()) && std::chrono::steady_clock::now() < until) {
    Progress();
    RunDue();
  }
  if (!flights_.empty()) {
    Log(LogLevel::kError, "transport: UCX did not end " + std::to_string(flights_.size()) +
                              " operations of a closed endpoint");
  }
  std::vector<std::function<void()>> left;
  {
    std::lock_guard lock(mutex_);
    left.swap(posted_);
  }
}

Engine::Flight& Engine::Begin(const std::shared_ptr<Peer>& peer, Gate* gate, Finished finished) {
  flights_.emplace_back();
  Flight& flight = flights_.back();
  flight.engine = this;
  flight.peer = peer;
  flight.gate = gate;
  flight.finished = std::move(finished);
  flight.self = std::prev(flights_.end());
  return flight;
}

// May run inside UCX: gives the memory back at once and leaves the rest for later.
void Engine::Land(Flight& flight, ucs_status_t status) {
  if (flight.gate != nullptr) flight.gate->Leave();
  due_.push_back([finished = std::move(flight.finished), status] { finished(status); });
  flights_.erase(flight.self);
}

void Engine::SendCallback(void* request, ucs_status_t status, void* user) {
  auto& flight = *static_cast<Flight*>(user);
  Engine& engine = *flight.engine;
  engine.Land(flight, status);
  engine.api_.request_free(request);
}

void Engine::ReceiveCallback(void* request, ucs_status_t status, std::size_t n, void* user) {
  (void)n;  // the sender's length was compared when the message came
  SendCallback(request, status, user);
}

void Engine::ErrorCallback(void* user, ucp_ep_h ep, ucs_status_t status) {
  (void)ep;
  auto& peer = *static_cast<Peer*>(user);
  Engine& engine = *peer.engine;
  engine.due_.push_back(
      [receiver = peer.receiver, why = Unavailable(std::string("the peer is gone, says UCX: ") +
                                                   engine.api_.status_string(status))] {
        if (const auto link = receiver.lock()) link->OnBroken(why);
      });
}

Result<std::shared_ptr<Engine::Peer>> Engine::Connect(const std::string& worker_address,
                                                      const Token& own,
                                                      std::weak_ptr<Receiver> receiver) {
  auto peer = std::make_shared<Peer>();
  peer->engine = this;
  peer->own = own;
  peer->receiver = std::move(receiver);
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(worker_address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &Engine::ErrorCallback;
  params.err_handler.arg = peer.get();
  ARC_TRY(api_.Check(api_.ep_create(worker_, &params, &peer->ep), "UCX endpoint"));
  peers_[own] = peer;
  return peer;
}

void Engine::Close(const std::shared_ptr<Peer>& peer) {
  if (std::exchange(peer->closed, true)) return;
  peers_.erase(peer->own);
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;  // waiting for a peer is what nobody may do here
  void* request = api_.ep_close_nbx(peer->ep, &params);
  if (UCS_PTR_IS_PTR(request)) closing_.push_back(request);
  closed_.push_back(peer);  // ErrorCallback may still come, with a pointer to it
}

void Engine::Send(const std::shared_ptr<Peer>& peer, const MessageHeader& header, const void* data,
                  std::size_t n, bool rendezvous, Gate* gate, Finished finished) {
  Flight& flight = Begin(peer, gate, std::move(finished));
  if (peer->closed) {
    Land(flight, UCS_ERR_CANCELED);
    return;
  }
  flight.header = header;
  ucp_request_param_t params{};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  params.flags = rendezvous ? UCP_AM_SEND_FLAG_RNDV : UCP_AM_SEND_FLAG_EAGER;
  params.cb.send = &Engine::SendCallback;
  params.user_data = &flight;
  void* request = api_.am_send_nbx(peer->ep, kMessageId, &flight.header, sizeof(flight.header),
                                   data, n, &params);
  if (!UCS_PTR_IS_PTR(request)) Land(flight, UCS_PTR_RAW_STATUS(request));
}

void Engine::Receive(const std::shared_ptr<Peer>& peer, void* descriptor, void* to, std::size_t n,
                     Gate* gate, Finished finished) {
  Flight& flight = Begin(peer, gate, std::move(finished));
  ucp_request_param_t params{};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.cb.recv_am = &Engine::ReceiveCallback;
  params.user_data = &flight;
  void* request = api_.am_recv_data_nbx(worker_, descriptor, to, n, &params);
  if (!UCS_PTR_IS_PTR(request)) Land(flight, UCS_PTR_RAW_STATUS(request));
}

void Engine::Release(void* descriptor) { api_.am_data_release(worker_, descriptor); }

ucs_status_t Engine::MessageCallback(void* arg, const void* header, std::size_t header_bytes,
                                     void* data, std::size_t n, const ucp_am_recv_param_t* param) {
  return static_cast<Engine*>(arg)->OnMessage(header, header_bytes, data, n, *param);
}

// What the message says is checked by the link; here only whose it is.
ucs_status_t Engine::OnMessage(const void* header, std::size_t header_bytes, void* data,
                               std::size_t n, const ucp_am_recv_param_t& param) {
  const bool rendezvous = (param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  const ucs_status_t refused = rendezvous ? UCS_ERR_REJECTED : UCS_OK;
  Arrival arrival;
  if (header_bytes != sizeof(arrival.header)) return refused;
  std::memcpy(&arrival.header, header, sizeof(arrival.header));
  const auto it = peers_.find(arrival.header.token);
  if (it == peers_.end()) return refused;
  const FrameHeader& frame = arrival.header.frame;
  if (rendezvous ? n != frame.payload_bytes : n > kMaxPieceBytes) return refused;
  if (rendezvous) {
    arrival.descriptor = data;
  } else {
    arrival.bytes.assign(static_cast<const char*>(data), n);
  }
  due_.push_back([this, peer = it->second, arrival = std::move(arrival)]() mutable {
    const auto link = peer->closed ? nullptr : peer->receiver.lock();
    if (link != nullptr) {
      link->OnArrival(std::move(arrival));
    } else if (arrival.descriptor != nullptr) {
      Release(arrival.descriptor);
    }
  });
  return rendezvous ? UCS_INPROGRESS : UCS_OK;
}

void Engine::Drain(Gate& gate) {
  if (gate.drained()) return;
  if (InThread()) {
    DrainHere(gate);
    return;
  }
  std::promise<void> drained;
  if (Post([&] {
        DrainHere(gate);
        drained.set_value();
      })) {
    drained.get_future().wait();
  }
}

void Engine::DrainHere(Gate& gate) {
  const auto held = [&] {
    for (const Flight& flight : flights_) {
      if (flight.gate == &gate) return true;
    }
    return false;
  };
  auto cut_at = std::chrono::steady_clock::now() + quiesce_timeout_;
  while (held()) {
    if (!Progress()) std::this_thread::yield();
    if (std::chrono::steady_clock::now() < cut_at) continue;
    CutOff(gate);
    cut_at = std::chrono::steady_clock::time_point::max();
  }
}

void Engine::CutOff(Gate& gate) {
  std::vector<std::shared_ptr<Peer>> stuck;
  for (const Flight& flight : flights_) {
    if (flight.gate == &gate) stuck.push_back(flight.peer);
  }
  for (const auto& peer : stuck) {
    due_.push_back([receiver = peer->receiver] {
      if (const auto link = receiver.lock()) {
        link->OnBroken(
            Unavailable("the peer was cut off: it had memory that was to be given back "
                        "in use and did not react (ContextOptions::quiesce_timeout)"));
      }
    });
    Close(peer);
  }
}

std::string Engine::Describe(const std::shared_ptr<Peer>& peer) const {
  if (peer->closed) return "closed";
  char* text = nullptr;
  std::size_t length = 0;
  FILE* out = ::open_memstream(&text, &length);
  if (out == nullptr) return "";
  api_.ep_print_info(peer->ep, out);
  std::fclose(out);
  std::string found;
  const std::string info(text, length);
  std::free(text);
  // Lines like "lane[0]:  2:rc_verbs/mlx5_0:1.0 md[1] …".
  for (std::size_t at = info.find("lane["); at != std::string::npos;
       at = info.find("lane[", at + 1)) {
    const std::size_t slash = info.find('/', at);
    const std::size_t line = info.find('\n', at);
    if (slash == std::string::npos || slash > line) continue;
    const std::size_t begin = info.find_last_of(": ", slash) + 1;
    const std::string way = info.substr(begin, info.find(' ', slash) - begin);
    if (found.find(way) == std::string::npos) found += (found.empty() ? "" : ", ") + way;
  }
  return found;
}

}  // namespace arcflow::transport::ucx
