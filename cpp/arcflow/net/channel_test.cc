// SPDX-License-Identifier: Apache-2.0
// Channel and listener: authenticated messages both ways; strangers, liars and the dead are
// dropped.
#include "arcflow/net/channel.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <condition_variable>
#include <filesystem>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "arcflow/net/handshake.h"
#include "arcflow/net/listener.h"

namespace arcflow::net {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

const std::string kSecret(32, 's');

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
            }};
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

ChannelOptions Options(const std::string& secret = kSecret) {
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

TEST_F(ChannelTest, MessagesPassBothWaysInOrder) {
  auto sut = Connect();
  auto other = WaitAccepted();
  ASSERT_NE(other, nullptr);
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(sut->Send({{"op", "a"}, {"i", i}}).ok());
    ASSERT_TRUE(other->Send({{"op", "b"}, {"i", i}}).ok());
  }
  ASSERT_TRUE(server.WaitMessages(200) && client.WaitMessages(200));
  for (int i = 0; i < 200; ++i) {
    EXPECT_EQ(server.messages()[i], (json{{"op", "a"}, {"i", i}}));
    EXPECT_EQ(client.messages()[i], (json{{"op", "b"}, {"i", i}}));
  }
  EXPECT_TRUE(client.ready());
}

TEST_F(ChannelTest, LargeMessagesPassWhole) {
  auto sut = Connect();
  const std::string text(kMaxFrameBytes - 100, 'x');
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(sut->Send({{"op", "a"}, {"text", text}}).ok());
  ASSERT_TRUE(server.WaitMessages(5));
  EXPECT_EQ(server.messages()[4]["text"], text);
}

TEST_F(ChannelTest, ThreadsMaySendAtOnce) {
  auto sut = Connect();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) ASSERT_TRUE(sut->Send({{"op", "a"}, {"t", t}, {"i", i}}).ok());
    });
  }
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(server.WaitMessages(400));
  std::vector<int> next(4, 0);
  for (const json& message : server.messages()) EXPECT_EQ(message["i"], next[message["t"]]++);
}

TEST_F(ChannelTest, CloseDeliversWhatWasQueued) {
  auto sut = Connect();
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(sut->Send({{"op", "a"}, {"text", std::string(100'000, 'x')}}).ok());
  }
  sut->Close();
  EXPECT_TRUE(client.WaitClosed().ok());
  EXPECT_EQ(server.WaitClosed().code(), Code::kUnavailable);
  EXPECT_EQ(server.messages().size(), 50u);
  EXPECT_EQ(sut->Send({{"op", "late"}}).code(), Code::kUnavailable);
  sut->Close();
  EXPECT_EQ(client.closed(), 1);
  EXPECT_EQ(server.closed(), 1);
}

// A close with unread bytes makes the kernel send a reset, which may destroy what the peer has yet
// to read.
TEST_F(ChannelTest, LastWordsArriveThoughThePeerKeepsTalking) {
  auto sut = Connect();
  auto other = WaitAccepted();
  std::atomic<bool> stop{false};
  std::thread talker([&] {
    while (!stop && sut->Send({{"op", "beat"}, {"text", std::string(1000, 'x')}}).code() !=
                        Code::kUnavailable) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
  ASSERT_TRUE(server.WaitMessages(20));
  ASSERT_TRUE(other->Send({{"op", "stop"}}).ok());
  other->Close();
  EXPECT_TRUE(client.WaitMessages(1));
  stop = true;
  talker.join();
  EXPECT_TRUE(server.WaitClosed().ok());
}

TEST_F(ChannelTest, NoMessageAfterCloseOnTheLoopThread) {
  auto sut = Connect();
  auto other = WaitAccepted();
  server.on_message = [other](const json&) { other->Close(); };
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(sut->Send({{"op", "a"}, {"i", i}}).ok());
  EXPECT_TRUE(server.WaitClosed().ok());
  EXPECT_EQ(server.messages().size(), 1u);
  server.on_message = nullptr;
}

TEST_F(ChannelTest, AbortClosesWithItsReason) {
  auto sut = Connect();
  ASSERT_NE(WaitAccepted(), nullptr);
  sut->Abort(Internal("because"));
  EXPECT_EQ(client.WaitClosed().message(), "because");
  EXPECT_EQ(server.WaitClosed().code(), Code::kUnavailable);
}

TEST_F(ChannelTest, FullQueueRefusesAndStaysOpen) {
  ChannelOptions options = Options();
  options.max_queued_bytes = 10'000;
  auto sut = Connect(options);
  ASSERT_TRUE(client.WaitReady());
  const json big = {{"op", "a"}, {"text", std::string(20'000, 'x')}};
  EXPECT_EQ(sut->Send(big).code(), Code::kResourceExhausted);
  EXPECT_EQ(sut->queued_bytes(), 0u);
  EXPECT_TRUE(sut->Send({{"op", "small"}}).ok());
  EXPECT_TRUE(server.WaitMessages(1));
}

TEST_F(ChannelTest, WrongSecretIsRefusedOnBothSides) {
  auto sut = Connect(Options(std::string(32, 'x')));
  ASSERT_TRUE(sut->Send({{"op", "evil"}}).ok());
  EXPECT_EQ(client.WaitClosed().code(), Code::kUnauthenticated);
  EXPECT_FALSE(client.ready());
  EXPECT_EQ(accepted_count(), 0u);
  EXPECT_TRUE(WaitRejected(1));
}

TEST_F(ChannelTest, ShortSecretIsACallersMistake) {
  auto sut = Connect(Options("short"));
  EXPECT_EQ(client.WaitClosed().code(), Code::kInvalidArgument);
}

TEST_F(ChannelTest, FramesBeforeTheProofAreNeverParsed) {
  const Fd stranger = Stranger();
  const std::string frame = *EncodeFrame({{"op", "join"}, {"pad", std::string(200, 'x')}});
  ASSERT_GT(::send(stranger.get(), frame.data(), frame.size(), MSG_NOSIGNAL), 0);
  EXPECT_LE(ReadToEnd(stranger).size(), 40u);  // the server's hello at most
  EXPECT_EQ(accepted_count(), 0u);
  EXPECT_TRUE(server.messages().empty());
  EXPECT_TRUE(WaitRejected(1));
}

TEST_F(ChannelTest, StrangerWhoSaysNothingIsDropped) {
  ListenerOptions options{"127.0.0.1", 0, Options(), 64};
  options.channel.handshake_timeout = milliseconds(100);
  Listen(options);
  const Fd stranger = Stranger();
  EXPECT_EQ(ReadToEnd(stranger).size(), 40u);
  EXPECT_TRUE(WaitRejected(1));
}

TEST_F(ChannelTest, SilentStrangersDoNotKeepHonestPeersOut) {
  Listen({"127.0.0.1", 0, Options(), 4});
  std::vector<Fd> strangers;
  for (int i = 0; i < 40; ++i) strangers.push_back(Stranger());
  auto sut = Connect();
  EXPECT_TRUE(client.WaitReady());
  EXPECT_TRUE(WaitRejected(36));
  EXPECT_NE(WaitAccepted(), nullptr);
}

TEST_F(ChannelTest, OversizedFrameClosesTheConnection) {
  const Fd socket = Proven();
  ASSERT_NE(WaitAccepted(), nullptr);
  ASSERT_EQ(::send(socket.get(), "\xff\xff\xff\x7f", 4, MSG_NOSIGNAL), 4);
  EXPECT_EQ(server.WaitClosed().code(), Code::kInvalidArgument);
  EXPECT_EQ(ReadToEnd(socket), "");
  EXPECT_TRUE(server.messages().empty());
}

TEST_F(ChannelTest, FrameThatIsNoObjectClosesTheConnection) {
  const Fd socket = Proven();
  ASSERT_EQ(::send(socket.get(), "\x02\0\0\0[]", 6, MSG_NOSIGNAL), 6);
  EXPECT_EQ(server.WaitClosed().code(), Code::kInvalidArgument);
}

TEST_F(ChannelTest, PeerThatDiesInsideAFrameIsUnavailable) {
  Fd socket = Proven();
  const std::string frame = *EncodeFrame({{"op", "x"}});
  ASSERT_EQ(::send(socket.get(), frame.data(), 6, MSG_NOSIGNAL), 6);
  socket.reset();
  const Status why = server.WaitClosed();
  EXPECT_EQ(why.code(), Code::kUnavailable);
  EXPECT_NE(why.message().find("in the middle"), std::string::npos);
  EXPECT_TRUE(server.messages().empty());
}

TEST_F(ChannelTest, ClientRefusesAServerThatIsNotOurs) {
  const Fd listening(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(at);
  ASSERT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&at), length), 0);
  ASSERT_EQ(::listen(listening.get(), 4), 0);
  ASSERT_EQ(::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&at), &length), 0);
  auto sut = Channel::Connect(*client_loop, "127.0.0.1", ntohs(at.sin_port), Options(),
                              client.Callbacks(), Deadline::After(seconds(20)));
  const Fd peer(::accept(listening.get(), nullptr, nullptr));
  ASSERT_GT(::send(peer.get(), "HTTP/1.1 200 OK\r\n", 17, MSG_NOSIGNAL), 0);
  EXPECT_EQ(client.WaitClosed().code(), Code::kUnauthenticated);
  EXPECT_EQ(ReadToEnd(peer), "");  // not one byte of ours
}

TEST_F(ChannelTest, NobodyListeningIsUnavailable) {
  const std::uint16_t port = listener->port();
  listener.reset();
  std::promise<void> gone;
  loop->Post([&] { gone.set_value(); });
  gone.get_future().wait();
  auto sut = Channel::Connect(*client_loop, "127.0.0.1", port, Options(), client.Callbacks(),
                              Deadline::After(seconds(20)));
  EXPECT_EQ(client.WaitClosed().code(), Code::kUnavailable);
}

TEST_F(ChannelTest, RefusedConnectionIsRetriedUntilSomebodyListens) {
  const std::uint16_t port = listener->port();
  listener.reset();
  std::promise<void> gone;
  loop->Post([&] { gone.set_value(); });
  gone.get_future().wait();
  auto sut = Channel::Connect(*client_loop, "127.0.0.1", port, Options(), client.Callbacks(),
                              Deadline::After(seconds(20)), /*retry_refused=*/true);
  ASSERT_TRUE(sut->Send({{"op", "early"}}).ok());
  std::this_thread::sleep_for(milliseconds(250));
  EXPECT_EQ(client.closed(), 0);
  Listen({"127.0.0.1", port, Options(), 64});
  EXPECT_TRUE(client.WaitReady());
  EXPECT_TRUE(server.WaitMessages(1));
}

TEST_F(ChannelTest, RetryEndsAtTheDeadlineAndSaysWhy) {
  const std::uint16_t port = listener->port();
  listener.reset();
  std::promise<void> gone;
  loop->Post([&] { gone.set_value(); });
  gone.get_future().wait();
  auto sut = Channel::Connect(*client_loop, "127.0.0.1", port, Options(), client.Callbacks(),
                              Deadline::After(milliseconds(300)), /*retry_refused=*/true);
  const Status why = client.WaitClosed();
  EXPECT_EQ(why.code(), Code::kDeadlineExceeded);
  EXPECT_NE(why.message().find("refused"), std::string::npos) << why.ToString();
}

TEST_F(ChannelTest, WrongSecretIsNotRetriedForEver) {
  auto sut =
      Channel::Connect(*client_loop, "127.0.0.1", listener->port(), Options(std::string(32, 'x')),
                       client.Callbacks(), Deadline::After(seconds(60)), /*retry_refused=*/true);
  EXPECT_EQ(client.WaitClosed().code(), Code::kUnauthenticated);
}

TEST_F(ChannelTest, NamesResolve) {
  auto sut = Channel::Connect(*client_loop, "localhost", listener->port(), Options(),
                              client.Callbacks(), Deadline::After(seconds(20)));
  EXPECT_TRUE(client.WaitReady());
}

TEST_F(ChannelTest, EndOfTheLoopClosesChannelsOnce) {
  auto sut = Connect();
  ASSERT_TRUE(client.WaitReady());
  client_loop.reset();
  EXPECT_EQ(client.closed(), 1);
  EXPECT_EQ(client.WaitClosed().code(), Code::kCancelled);
  EXPECT_EQ(sut->Send({{"op", "x"}}).code(), Code::kUnavailable);
  sut->Close();  // a channel may be kept longer than its loop
  EXPECT_EQ(server.WaitClosed().code(), Code::kUnavailable);
}

TEST_F(ChannelTest, CallbacksThatOwnTheChannelDoNotLeakIt) {
  std::weak_ptr<Channel> weak;
  {
    auto holder = std::make_shared<std::shared_ptr<Channel>>();
    auto callbacks = client.Callbacks();
    callbacks.on_ready = [holder, inner = callbacks.on_ready] { inner(); };
    *holder = Channel::Connect(*client_loop, "127.0.0.1", listener->port(), Options(), callbacks,
                               Deadline::After(seconds(20)));
    weak = *holder;
    callbacks = {};
    ASSERT_TRUE(client.WaitReady());
    (*holder)->Close();
    ASSERT_TRUE(client.WaitClosed().ok());
  }
  client_loop.reset();
  EXPECT_TRUE(weak.expired());
}

TEST_F(ChannelTest, SocketsAreNotInheritedByChildren) {
  auto sut = Connect();
  ASSERT_NE(WaitAccepted(), nullptr);
  ASSERT_TRUE(client.WaitReady());
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;
    const auto to = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (to.rfind("socket:", 0) != 0 && to.rfind("anon_inode:", 0) != 0) continue;
    const int fd = std::stoi(entry.path().filename());
    const int flags = ::fcntl(fd, F_GETFD);
    if (flags >= 0) {
      EXPECT_TRUE(flags & FD_CLOEXEC) << to;
    }
  }
}

TEST_F(ChannelTest, PortInUseAndBadAddressAreSaidSo) {
  const auto in_use = Listener::Bind(*loop, {"127.0.0.1", listener->port(), Options(), 64}, {});
  EXPECT_EQ(in_use.status().code(), Code::kAlreadyExists);
  const auto no_host = Listener::Bind(*loop, {"", 0, Options(), 64}, {});
  EXPECT_EQ(no_host.status().code(), Code::kInvalidArgument);
  const auto no_secret = Listener::Bind(*loop, {"127.0.0.1", 0, Options("x"), 64}, {});
  EXPECT_EQ(no_secret.status().code(), Code::kInvalidArgument);
}

TEST_F(ChannelTest, ListenerBindsToItsAddressOnly) { EXPECT_EQ(listener->host(), "127.0.0.1"); }

TEST_F(ChannelTest, ClosedListenerDropsStrangersAndKeepsChannels) {
  auto sut = Connect();
  auto other = WaitAccepted();
  ASSERT_TRUE(client.WaitReady());
  const Fd stranger = Stranger();
  char hello[40];
  ASSERT_EQ(::recv(stranger.get(), hello, sizeof(hello), MSG_WAITALL), 40);
  listener->Close();
  EXPECT_EQ(ReadToEnd(stranger), "");
  ASSERT_TRUE(sut->Send({{"op", "still"}}).ok());
  EXPECT_TRUE(server.WaitMessages(1));
}

TEST_F(ChannelTest, KilledProcessIsSeenAtOnce) {
  const pid_t child = ::fork();
  if (child == 0) {  // no threads here: a fork has only the one that called it
    const Fd socket = Proven();
    const std::string frame = *EncodeFrame({{"op", "hello"}, {"pid", ::getpid()}});
    if (::send(socket.get(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0) ::_exit(1);
    for (;;) ::pause();
  }
  ASSERT_TRUE(server.WaitMessages(1));
  EXPECT_EQ(server.messages()[0]["pid"], child);
  ::kill(child, SIGKILL);
  EXPECT_EQ(server.WaitClosed().code(), Code::kUnavailable);
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace arcflow::net
