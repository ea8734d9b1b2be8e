// SPDX-License-Identifier: Apache-2.0
// Channel: one authenticated TCP connection between hosts that carries JSON messages in both
// directions.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"
#include "arcflow/base/status.h"
#include "arcflow/net/frame.h"
#include "arcflow/net/loop.h"

namespace arcflow::net {

/// A frame that several channels send.
using SharedFrame = std::shared_ptr<const std::string>;

/// Memory for the bytes of a raw frame; `keep` holds it while the channel may write there.
struct RawPlace {
  std::byte* at = nullptr;  // null: there is no place
  std::shared_ptr<void> keep;
};

struct ChannelOptions {
  std::string secret;    // raw bytes, at least Handshake::kMinSecretBytes
  bool encrypt = false;  // TLS 1.3 after the handshake, keyed by it; both ends must want it
  std::size_t max_frame_bytes = kMaxFrameBytes;
  std::size_t max_raw_bytes = 0;   // of raw frames that are accepted; 0: none are
  std::size_t raw_head_bytes = 0;  // of a raw frame, before what on_raw_place finds a place for
  std::size_t read_bytes = std::size_t{16} << 10;  // at once; all channels of a loop share a buffer
  std::size_t max_queued_bytes = std::size_t{16} << 20;  // encoded frames waiting to be sent
  std::chrono::nanoseconds handshake_timeout = std::chrono::seconds(5);
  std::chrono::nanoseconds linger =
      std::chrono::seconds(2);  // how long Close() waits for the queue to drain
  /// Bytes that the peer's host has not acknowledged for so long mean that it is gone.
  std::chrono::milliseconds unacknowledged_timeout = std::chrono::seconds(30);
};

/// All run on the loop thread, one at a time, never inside a call of the channel. Each may be
/// empty.
struct ChannelCallbacks {
  /// The handshake succeeded. Only for a connection that this side opened; a listener hands out
  /// channels that are ready.
  std::function<void()> on_ready;
  /// A message: a JSON object with a string "op". The callback may move out of it.
  std::function<void(nlohmann::json& message)> on_message;
  /// Called exactly once, last. OK after Close(); Unavailable when the peer closed or went away (or
  /// nobody listens), NotFound for a host that does not resolve, DeadlineExceeded for connect or
  /// handshake, Unauthenticated, InvalidArgument for bytes that are no frame, Cancelled when the
  /// loop ends.
  std::function<void(const Status& why)> on_closed;
  /// The body of a raw frame (frame.h), in order with the messages. Never without `max_raw_bytes`.
  std::function<void(std::string& body)> on_raw = {};
  /// Instead of on_raw, with `raw_head_bytes`: a raw frame begins with `head`; says where the `n`
  /// bytes after it belong. They are read straight into that place, without a copy unless the
  /// channel is encrypted, and are all there when the next callback comes. Without a place the
  /// channel closes (InvalidArgument), if it is not closing already.
  std::function<RawPlace(const std::string& head, std::size_t n)> on_raw_place = {};
};

/// One connection. Pending operations keep it alive until on_closed, after which the callbacks are
/// destroyed, so they may own the channel; dropping every pointer does not close it. TCP_NODELAY
/// and keepalive are set.
/// Threads: Send, Close, Abort and queued_bytes from any thread; they never block.
class Channel {
 public:
  /// Starts to connect to `host` (a name or numeric address) and to prove the secret; Send may be
  /// called at once, messages wait for the handshake. Every failure is told through on_closed.
  /// `deadline` bounds connecting and handshake. With `retry_refused` a connection that is refused,
  /// or closed before the peer has proved anything, is tried again until then (a coordinator that
  /// is just being started, or crowded by strangers).
  static std::shared_ptr<Channel> Connect(Loop& loop, const std::string& host, std::uint16_t port,
                                          ChannelOptions options, ChannelCallbacks callbacks,
                                          Deadline deadline, bool retry_refused = false);

  /// Called once when the peer of an accepted socket has proved the secret; returns the channel's
  /// callbacks (on_ready is not used). No frame is parsed before it returns.
  using Accepted = std::function<ChannelCallbacks(std::shared_ptr<Channel> channel)>;
  /// The server's side of an accepted stream socket. `refused` is called once instead when the
  /// handshake fails.
  static std::shared_ptr<Channel> Accept(Loop& loop, Fd socket, ChannelOptions options,
                                         Accepted accepted,
                                         std::function<void(const Status&)> refused);

  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  virtual ~Channel() = default;

  /// Queues a message. Errors: Unavailable when closing or closed, InvalidArgument over the frame
  /// bound, ResourceExhausted when the queue is full (the channel stays open and nothing of the
  /// message was queued).
  virtual Status Send(const nlohmann::json& message) = 0;
  /// The same for a message that goes to many, encoded once by EncodeFrame, or for a raw frame; it
  /// is not copied.
  virtual Status SendFrame(SharedFrame frame) = 0;
  /// A raw frame whose body lies in memory of the caller: `head` is its beginning, encoded with a
  /// header for all of it (RawFrameHeader). `bytes` are sent from where they are, so they must not
  /// change until `keep` is let go, on the loop thread or inside this call; the bound of the queue
  /// does not count them. Errors: as SendFrame.
  virtual Status SendRaw(std::string head, std::span<const std::byte> bytes,
                         std::shared_ptr<const void> keep) = 0;
  /// Sends what is queued, for at most `linger`, then closes; on_closed(OK) follows. No on_message
  /// after it when called on the loop thread. Idempotent.
  virtual void Close() = 0;
  /// Closes at once with `why` (OK allowed), dropping the queue.
  virtual void Abort(Status why) = 0;

  /// "address:port" of the peer, "" until connected. Loop thread only.
  virtual std::string peer() const = 0;
  /// Numeric address of this side of the connection, "" until connected. Loop thread only.
  virtual std::string local_host() const = 0;
  virtual std::size_t queued_bytes() const = 0;

 protected:
  Channel() = default;
};

}  // namespace arcflow::net
