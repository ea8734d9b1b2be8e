// SPDX-License-Identifier: Apache-2.0
// Channel: authenticated messages both ways; liars are refused, the dead are noticed, last words
// arrive.
#include "arcflow/net/channel.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <future>

#include "arcflow/net/channel_testing.h"

namespace arcflow::net {
namespace {

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

class RawPlaceTest : public ChannelTest, public ::testing::WithParamInterface<bool> {
 protected:
  static constexpr std::size_t kHead = 3;

  void SetUp() override {
    ListenerOptions options{"127.0.0.1", 0, Options(), 64};
    options.channel.encrypt = GetParam();
    options.channel.max_raw_bytes = std::size_t{4} << 20;
    options.channel.raw_head_bytes = kHead;
    Listen(std::move(options));
  }
  std::shared_ptr<Channel> ConnectLikewise() {
    ChannelOptions options = Options();
    options.encrypt = GetParam();
    return Connect(std::move(options));
  }
  static Status SendRaw(Channel& channel, const std::string& head, std::string_view body,
                        std::shared_ptr<const void> keep) {
    return channel.SendRaw(RawFrameHeader(head.size() + body.size()) + head,
                           std::as_bytes(std::span(body)), std::move(keep));
  }
};

TEST_P(RawPlaceTest, BytesComeFromTheCallersMemoryIntoTheReceiversBetweenMessages) {
  constexpr std::size_t kBytes = 3'000'000;
  std::vector<std::string> places;
  std::vector<std::string> heads;
  places.reserve(4);
  server.on_raw_place = [&](const std::string& head, std::size_t n) {
    heads.push_back(head);
    places.emplace_back(n, ' ');
    return RawPlace{reinterpret_cast<std::byte*>(places.back().data()), nullptr};
  };
  auto sut = ConnectLikewise();
  std::promise<void> released;
  std::string body(kBytes, ' ');
  for (std::size_t i = 0; i < kBytes; ++i) body[i] = static_cast<char>(i * 2654435761u >> 13);
  {
    const std::shared_ptr<const void> keep(body.data(), [&](const void*) { released.set_value(); });
    ASSERT_TRUE(sut->Send({{"op", "a"}}).ok());
    ASSERT_TRUE(SendRaw(*sut, "one", body, keep).ok());
    ASSERT_TRUE(sut->Send({{"op", "b"}}).ok());
    ASSERT_TRUE(SendRaw(*sut, "two", std::string_view(body).substr(0, 1), keep).ok());
    ASSERT_TRUE(SendRaw(*sut, "not", "", keep).ok());  // has no place, and needs none
    ASSERT_TRUE(SendRaw(*sut, "end", std::string_view(body).substr(5), keep).ok());
    ASSERT_TRUE(sut->Send({{"op", "c"}}).ok());
  }
  ASSERT_TRUE(server.WaitMessages(3));
  EXPECT_EQ(server.messages()[2]["op"], "c");
  EXPECT_EQ(heads, (std::vector<std::string>{"one", "two", "end"}));
  EXPECT_TRUE(places[0] == body);
  EXPECT_EQ(places[1], body.substr(0, 1));
  EXPECT_TRUE(places[2] == body.substr(5));
  EXPECT_EQ(released.get_future().wait_for(seconds(20)), std::future_status::ready);
}

TEST_P(RawPlaceTest, MemoryThatIsNotSentIsLetGoWhenTheChannelEnds) {
  server.on_raw_place = [](const std::string&, std::size_t) { return RawPlace{}; };
  auto sut = ConnectLikewise();
  std::promise<void> released;
  const std::string body(std::size_t{2} << 20, 'x');
  ASSERT_TRUE(SendRaw(*sut, "one", body, std::shared_ptr<const void>(body.data(), [&](const void*) {
                released.set_value();
              })).ok());
  EXPECT_EQ(server.WaitClosed().code(), Code::kInvalidArgument);  // there was no place
  EXPECT_FALSE(client.WaitClosed().ok());
  sut.reset();
  EXPECT_EQ(released.get_future().wait_for(seconds(20)), std::future_status::ready);
}

TEST_P(RawPlaceTest, APlaceIsKeptWhileThePeerMayStillFillIt) {
  auto memory = std::make_shared<std::vector<std::byte>>(1 << 20);
  const std::weak_ptr<std::vector<std::byte>> sut = memory;
  std::promise<void> began;
  server.on_raw_place = [&](const std::string&, std::size_t) {
    RawPlace place{memory->data(), std::exchange(memory, nullptr)};
    began.set_value();
    return place;
  };
  auto sender = ConnectLikewise();
  // Announces more than it sends.
  ASSERT_TRUE(sender
                  ->SendFrame(std::make_shared<const std::string>(RawFrameHeader(kHead + 1000) +
                                                                  "one" + std::string(10, 'x')))
                  .ok());
  ASSERT_EQ(began.get_future().wait_for(seconds(20)), std::future_status::ready);
  EXPECT_FALSE(sut.expired());
  WaitAccepted()->Abort(Status::Ok());
  EXPECT_TRUE(server.WaitClosed().ok());
  listener.reset();
  accepted.clear();
  loop.reset();
  EXPECT_TRUE(sut.expired());
}

INSTANTIATE_TEST_SUITE_P(Roads, RawPlaceTest, ::testing::Values(false, true),
                         [](const auto& tls) { return tls.param ? "Tls" : "Plain"; });

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
  ASSERT_TRUE(sut->Send({{"op", "a"}}).ok());
  for (int i = 0; i < 20; ++i) {  // the other side may have closed by now
    const Status sent = sut->Send({{"op", "a"}, {"i", i}});
    ASSERT_TRUE(sent.ok() || sent.code() == Code::kUnavailable) << sent.ToString();
  }
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
  const Status sent = sut->Send({{"op", "evil"}});  // queued, or refused already
  ASSERT_TRUE(sent.ok() || sent.code() == Code::kUnauthenticated ||
              sent.code() == Code::kUnavailable)
      << sent.ToString();
  EXPECT_EQ(client.WaitClosed().code(), Code::kUnauthenticated);
  EXPECT_FALSE(client.ready());
  EXPECT_EQ(accepted_count(), 0u);
  EXPECT_TRUE(WaitRejected(1));
}

TEST_F(ChannelTest, ShortSecretIsACallersMistake) {
  auto sut = Connect(Options("short"));
  EXPECT_EQ(client.WaitClosed().code(), Code::kInvalidArgument);
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

TEST_F(ChannelTest, CloseEndsTheRetriesThoughAMessageWaits) {
  const std::uint16_t port = listener->port();
  listener.reset();
  std::promise<void> gone;
  loop->Post([&] { gone.set_value(); });
  gone.get_future().wait();
  auto sut = Channel::Connect(*client_loop, "127.0.0.1", port, Options(), client.Callbacks(),
                              Deadline::After(std::chrono::hours(1)), /*retry_refused=*/true);
  EXPECT_TRUE(sut->Send({{"op", "last words"}}).ok());
  std::this_thread::sleep_for(milliseconds(250));  // it tries again and again
  sut->Close();
  EXPECT_NE(client.WaitClosed().code(), Code::kUnknown);  // that is: it did not stay open
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

TEST_F(ChannelTest, KilledProcessIsSeenAtOnce) {
  const pid_t child = ::fork();
  if (child == 0) {  // no threads here: a fork has only the one that called it
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::alarm(60);  // ends it also when the test gives up before it kills it
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
