// SPDX-License-Identifier: Apache-2.0
// Fixture of the tests of channel and listener: two loops, a listener, and peers that speak by
// hand.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <condition_variable>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "arcflow/net/channel.h"
#include "arcflow/net/handshake.h"
#include "arcflow/net/listener.h"

namespace arcflow::net {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

inline const std::string kSecret(32, 's');

/// What one side of a channel saw. Threads: callbacks on the loop, waits in the test.
class Side {
  template <typename F>
  auto Locked(F f) {
    std::lock_guard lock(mutex_);
    return f();
  }

 public:
  ChannelCallbacks Callbacks() {
    return {[this] { Note([&] { ready_ = true; }); },
            [this](json& message) {
              Note([&] { messages_.push_back(std::move(message)); });
              if (on_message) on_message(messages_.back());
            },
            [this](const Status& why) {
              Note([&] {
                ++closed_;
                why_ = why;
              });
            },
            nullptr, on_raw_place};
  }
  bool WaitReady() {
    return Wait([&] { return ready_; });
  }
  bool WaitMessages(std::size_t n) {
    return Wait([&] { return messages_.size() >= n; });
  }
  /// The status that the channel closed with; Unknown if it did not within the test's patience.
  Status WaitClosed() {
    return Wait([&] { return closed_ > 0; }) ? why_ : Status(Code::kUnknown, "still open");
  }
  int closed() {
    return Locked([&] { return closed_; });
  }
  bool ready() {
    return Locked([&] { return ready_; });
  }
  std::vector<json> messages() {
    return Locked([&] { return messages_; });
  }

  std::function<void(const json&)> on_message;
  std::function<RawPlace(const std::string& head, std::size_t n)> on_raw_place;

 private:
  template <typename F>
  void Note(F f) {
    std::lock_guard lock(mutex_);
    f();
    changed_.notify_all();
  }
  template <typename F>
  bool Wait(F f) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, seconds(20), f);
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ready_ = false;
  int closed_ = 0;
  Status why_;
  std::vector<json> messages_;
};

inline ChannelOptions Options(const std::string& secret = kSecret) {
  ChannelOptions options;
  options.secret = secret;
  return options;
}

/// A listener and what it accepted.
class ChannelTest : public ::testing::Test {
 protected:
  void SetUp() override { Listen({"127.0.0.1", 0, Options(), 64}); }
  void TearDown() override {
    listener.reset();
    client_loop.reset();
    loop.reset();  // callbacks use the members below
  }

  static std::unique_ptr<Loop> Start() {
    auto made = Loop::Create();
    EXPECT_TRUE(made.ok() && (*made)->StartThread().ok());
    return std::move(*made);
  }
  void Listen(ListenerOptions options) {
    listener.reset();
    auto bound =
        Listener::Bind(*loop, std::move(options), [this](std::shared_ptr<Channel> channel) {
          std::lock_guard lock(mutex);
          accepted.push_back(std::move(channel));
          changed.notify_all();
          return server.Callbacks();
        });
    ASSERT_TRUE(bound.ok()) << bound.status().ToString();
    listener = std::move(*bound);
  }
  std::shared_ptr<Channel> Connect(ChannelOptions options = Options()) {
    return Channel::Connect(*client_loop, "127.0.0.1", listener->port(), std::move(options),
                            client.Callbacks(), Deadline::After(seconds(20)));
  }
  std::shared_ptr<Channel> WaitAccepted() {
    std::unique_lock lock(mutex);
    if (!changed.wait_for(lock, seconds(20), [&] { return !accepted.empty(); })) return nullptr;
    return accepted.front();
  }
  std::size_t accepted_count() {
    std::lock_guard lock(mutex);
    return accepted.size();
  }
  /// The listener counts on its loop, after the socket is closed.
  bool WaitRejected(std::uint64_t n) {
    const Deadline deadline = Deadline::After(seconds(20));
    while (listener->rejected() < n && !deadline.expired()) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    return listener->rejected() >= n;
  }
  /// A plain TCP connection: somebody who is not us.
  Fd Stranger() {
    Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(listener->port());
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
    return socket;
  }
  /// Everything that comes until the other side closes; "timeout" if it does not.
  static std::string ReadToEnd(const Fd& socket) {
    std::string out;
    for (;;) {
      pollfd p{socket.get(), POLLIN, 0};
      if (::poll(&p, 1, 20'000) != 1) return "timeout";
      char buffer[4096];
      const ssize_t n = ::recv(socket.get(), buffer, sizeof(buffer), 0);
      if (n <= 0) return out;
      out.append(buffer, static_cast<std::size_t>(n));
    }
  }
  /// Does the handshake by hand and returns the socket.
  Fd Proven() {
    Fd socket = Stranger();
    auto handshake = Handshake::Client(kSecret);
    EXPECT_TRUE(handshake.ok());
    while (!handshake->done()) {
      std::vector<std::byte> bytes(handshake->wanted());
      const ssize_t n = ::recv(socket.get(), bytes.data(), bytes.size(), MSG_WAITALL);
      EXPECT_EQ(n, static_cast<ssize_t>(bytes.size()));
      if (n <= 0 || !handshake->Feed(bytes).ok()) break;
      const std::string out = handshake->TakeOutput();
      EXPECT_EQ(::send(socket.get(), out.data(), out.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(out.size()));
    }
    return socket;
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::shared_ptr<Channel>> accepted;
  Side server;
  Side client;
  std::unique_ptr<Loop> loop = Start();
  std::unique_ptr<Loop> client_loop = Start();
  std::unique_ptr<Listener> listener;
};

}  // namespace arcflow::net
