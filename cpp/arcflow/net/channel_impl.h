// SPDX-License-Identifier: Apache-2.0
// ChannelImpl: the one implementation of Channel. Internal to this layer.
#pragma once

#include <algorithm>
#include <asio/ip/tcp.hpp>
#include <asio/steady_timer.hpp>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "arcflow/net/channel.h"
#include "arcflow/net/handshake.h"
#include "arcflow/net/loop_port.h"
#include "arcflow/net/tls_session.h"

namespace arcflow::net {

/// A connection in one of five states: connecting (client only), handshake, open, draining, closed.
/// Sources: connecting in channel_connect.cc, the rest in channel.cc. Threads: the public functions
/// from any; everything private on the loop thread, but for what `mutex_` guards.
class ChannelImpl final : public Channel,
                          public LoopService,
                          public std::enable_shared_from_this<ChannelImpl> {
 public:
  ChannelImpl(Loop& loop, ChannelOptions options)
      : port_(loop.context()),
        loop_(loop),
        context_(loop.context()),
        options_(std::move(options)),
        decoder_(options_.max_frame_bytes, options_.max_raw_bytes, options_.raw_head_bytes),
        timer_(std::in_place, context_),
        retry_timer_(std::in_place, context_) {}

  void StartClient(std::string host, std::uint16_t port, ChannelCallbacks callbacks,
                   Deadline deadline, bool retry_refused);
  void StartServer(Fd socket, Accepted accepted, std::function<void(const Status&)> refused);

  Status Send(const nlohmann::json& message) override;
  Status SendFrame(SharedFrame frame) override;
  Status SendRaw(std::string head, std::span<const std::byte> bytes,
                 std::shared_ptr<const void> keep) override;
  void Close() override;
  void Abort(Status why) override;
  std::string peer() const override { return peer_; }
  std::string local_host() const override { return local_host_; }
  std::size_t queued_bytes() const override;
  void OnLoopEnd() override { Finish(Cancelled("the event loop has ended")); }

 private:
  enum class State { kConnecting, kHandshake, kTls, kOpen, kDraining, kClosed };

  /// Something to be sent: a frame, or the beginning of one and the rest of it in memory of others.
  struct Outgoing {
    SharedFrame frame;
    std::span<const std::byte> body = {};
    std::shared_ptr<const void> keep = {};

    std::size_t size() const { return frame->size() + body.size(); }
    /// What lies together from `at` on, at most `max` bytes of it.
    std::string_view Piece(std::size_t at, std::size_t max) const {
      if (at < frame->size()) return std::string_view(*frame).substr(at, max);
      const auto rest = body.subspan(at - frame->size());
      return {reinterpret_cast<const char*>(rest.data()), std::min(rest.size(), max)};
    }
  };

  void Resolve();
  void OnResolved(const std::error_code& error,
                  const asio::ip::tcp::resolver::results_type& results);
  void ConnectNext();
  void OnConnect(const std::error_code& error);
  void DropSocket();
  bool IsCurrent(unsigned attempt) const { return socket_ && attempt == attempt_; }
  void RetryOrFinish(const Status& why);
  std::error_code OpenSocket(const asio::ip::tcp::endpoint& endpoint);
  void BeginHandshake(Result<Handshake> handshake);
  void Read();
  void OnReadable(std::error_code error);
  void OnRead(std::span<const std::byte> got, std::size_t placed);
  bool TakePlace(const std::string& head);
  Status Queue(Outgoing outgoing, std::size_t counts);
  void OnHandshakeBytes(std::span<const std::byte> bytes);
  void OnHandshakeDone();
  void BeginTls();
  void OnTlsBytes(std::span<const std::byte> bytes);
  void OnReady();
  bool TakeFrame();
  bool SealNext();
  void OnFrameBytes(std::span<const std::byte> bytes);
  void OnEndOfStream(const std::error_code& error);
  void Flush();
  void OnWritten(const std::error_code& error, std::size_t bytes);
  void Drain();
  void Arm(Deadline deadline, const char* what);
  void Finish(const Status& why);
  std::string target() const { return host_ + ":" + std::to_string(port_number_); }

  LoopPort port_;
  Loop& loop_;  // this and the next only before Finish()
  asio::io_context& context_;
  const ChannelOptions options_;

  mutable std::mutex mutex_;  // guards the next three
  std::deque<Outgoing> outbox_;
  std::size_t queued_bytes_ = 0;  // of frames in outbox_ and in writing_, not of others' memory
  bool sendable_ = true;
  std::atomic<bool> closing_{false};  // Close() or Abort() was called: deliver nothing more

  // Loop thread only from here.
  State state_ = State::kConnecting;
  bool server_ = false;
  bool retry_refused_ = false;
  std::string host_;
  std::uint16_t port_number_ = 0;
  Deadline deadline_ = Deadline::Infinite();
  ChannelCallbacks callbacks_;
  Accepted accepted_;
  std::function<void(const Status&)> refused_;
  std::vector<asio::ip::tcp::endpoint> endpoints_;
  std::size_t next_endpoint_ = 0;
  unsigned attempt_ = 0;
  int refusals_ = 0;  // the peer hung up on our proof
  Status last_failure_;
  std::string peer_;
  std::string local_host_;
  std::optional<asio::ip::tcp::socket> socket_;
  std::optional<asio::ip::tcp::resolver> resolver_;
  std::optional<Handshake> handshake_;
  std::optional<TlsSession> tls_;
  FrameDecoder decoder_;
  std::optional<asio::steady_timer> timer_;
  std::optional<asio::steady_timer> retry_timer_;
  std::size_t read_bytes_ = 0;    // at once, at most
  std::string handshake_output_;  // goes out before any frame
  RawPlace raw_place_;            // of a raw frame that is coming; moves on with it
  std::optional<Outgoing> writing_;
  std::optional<Outgoing> sealing_;  // of which a part is still to be encrypted
  std::size_t sealed_ = 0;           // bytes of it that are
  std::size_t written_ = 0;
  std::size_t writing_counts_ = 0;  // bytes of the queue that writing_ stands for
  bool write_pending_ = false;
  bool drain_requested_ = false;
  bool shut_down_ = false;
};

}  // namespace arcflow::net
