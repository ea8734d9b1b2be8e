// SPDX-License-Identifier: Apache-2.0
// Engine: the thread that owns a UCX worker and is the only one to call UCX. Internal to the
// backend.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/transport/gate.h"
#include "arcflow/transport/ucx/api.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport::ucx {

/// Names a link at its receiver; told over the authenticated connection only.
using Token = std::array<std::uint8_t, 16>;

/// In front of every active message.
struct MessageHeader {
  Token token{};               // of the receiver's link
  std::uint64_t sequence = 0;  // of frames, from 1; 0 for pieces, which have no order
  FrameHeader frame;
};
static_assert(sizeof(MessageHeader) == 80);

/// An active message that has come. Exactly one of `bytes` and `descriptor` holds its data.
struct Arrival {
  MessageHeader header;
  std::string bytes;
  void* descriptor = nullptr;  // rendezvous: to be received, or released
};

/// What an engine tells a link; all on the engine's thread, outside of UCX.
class Receiver {
 public:
  virtual ~Receiver() = default;
  virtual void OnArrival(Arrival arrival) = 0;
  virtual void OnBroken(const Status& status) = 0;  // its endpoint; once or more
};

/// Threads: Post, Drain and Stop from any; the rest on its own. Gates are held from the start of a
/// UCX operation to its completion, which may come only while UCX is being progressed.
class Engine {
 public:
  struct Peer;  // a UCX endpoint
  using Finished = std::function<void(ucs_status_t)>;

  /// `transports` for UCX_TLS, or empty to leave the environment's choice.
  static Result<std::unique_ptr<Engine>> Start(const std::string& transports,
                                               std::chrono::nanoseconds quiesce_timeout);
  ~Engine();
  /// Closes every endpoint, ends the thread. Idempotent.
  void Stop();

  const std::string& worker_address() const { return address_; }
  bool InThread() const { return std::this_thread::get_id() == thread_.get_id(); }
  /// False once stopped.
  bool Post(std::function<void()> task);
  /// Progresses UCX until nobody is inside the closed gate; after quiesce_timeout cuts off the
  /// peers of those who are.
  void Drain(Gate& gate);

  // On the thread.
  Result<std::shared_ptr<Peer>> Connect(const std::string& worker_address, const Token& own,
                                        std::weak_ptr<Receiver> receiver);
  /// Fails what is under way; nothing arrives for the token any more. Idempotent.
  void Close(const std::shared_ptr<Peer>& peer);
  /// `rendezvous`: the receiver fetches the data. Header and data stay put until `finished`, which
  /// is called outside of UCX. `gate`, entered by the caller, is left at completion.
  void Send(const std::shared_ptr<Peer>& peer, const MessageHeader& header, const void* data,
            std::size_t n, bool rendezvous, Gate* gate, Finished finished);
  void Receive(const std::shared_ptr<Peer>& peer, void* descriptor, void* to, std::size_t n,
               Gate* gate, Finished finished);
  void Release(void* descriptor);
  /// "rc_verbs/mlx5_0:1", as UCX tells.
  std::string Describe(const std::shared_ptr<Peer>& peer) const;

 private:
  /// A UCX operation under way.
  struct Flight {
    Engine* engine = nullptr;
    std::shared_ptr<Peer> peer;
    MessageHeader header;
    Gate* gate = nullptr;
    Finished finished;
    std::list<Flight>::iterator self;
  };

  explicit Engine(const Api& api, std::chrono::nanoseconds quiesce_timeout)
      : api_(api), quiesce_timeout_(quiesce_timeout) {}
  Status Open(const std::string& transports);
  void Run();
  void RunDue();
  bool Progress();
  void Sleep();
  void Wake();
  void DrainHere(Gate& gate);
  void CutOff(Gate& gate);
  void Shut();
  Flight& Begin(const std::shared_ptr<Peer>& peer, Gate* gate, Finished finished);
  void Land(Flight& flight, ucs_status_t status);
  ucs_status_t OnMessage(const void* header, std::size_t header_bytes, void* data, std::size_t n,
                         const ucp_am_recv_param_t& param);
  static ucs_status_t MessageCallback(void* arg, const void* header, std::size_t header_bytes,
                                      void* data, std::size_t n, const ucp_am_recv_param_t* param);
  static void SendCallback(void* request, ucs_status_t status, void* user);
  static void ReceiveCallback(void* request, ucs_status_t status, std::size_t n, void* user);
  static void ErrorCallback(void* user, ucp_ep_h ep, ucs_status_t status);

  const Api& api_;
  const std::chrono::nanoseconds quiesce_timeout_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  std::string address_;
  Fd wake_;
  int worker_fd_ = -1;

  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;
  bool stopping_ = false;

  // The thread's own.
  std::map<Token, std::shared_ptr<Peer>> peers_;
  std::vector<std::shared_ptr<Peer>> closed_;
  std::list<Flight> flights_;
  std::vector<void*> closing_;              // requests of ep_close_nbx
  std::vector<std::function<void()>> due_;  // to be run outside of UCX
  std::thread thread_;
};

}  // namespace arcflow::transport::ucx
