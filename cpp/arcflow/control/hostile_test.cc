// SPDX-License-Identifier: Apache-2.0
// Strangers at the port of a real coordinator while a run goes on: they get nothing, cost nothing
// that stays, and the run ends well.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <random>
#include <thread>

#include "arcflow/control/coordinator_testing.h"
#include "arcflow/net/handshake.h"

namespace arcflow::control {
namespace {

using coordinator_testing::CoordinatorTest;
using coordinator_testing::FakeAgent;
using nlohmann::json;
using testing_support::Eventually;
using testing_support::OpenDescriptors;
using testing_support::Secret;

constexpr int kWaitMs = 20'000;
constexpr std::size_t kHelloBytes = 40;
constexpr std::size_t kProofBytes = 64;

/// A socket without manners.
class Stranger {
 public:
  explicit Stranger(const HostPort& address) {
    socket_ = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(address.port);
    ::inet_pton(AF_INET, address.host.c_str(), &to.sin_addr);
    connected_ = ::connect(socket_.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
  }
  bool connected() const { return connected_; }
  void Send(std::string_view bytes) const {
    (void)!::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  /// What comes until `size` bytes are there or the peer closes.
  std::string Read(std::size_t size) const {
    std::string got;
    char buffer[4096];
    while (got.size() < size) {
      pollfd entry{socket_.get(), POLLIN, 0};
      if (::poll(&entry, 1, kWaitMs) != 1) break;
      const ssize_t n =
          ::recv(socket_.get(), buffer, std::min(sizeof buffer, size - got.size()), 0);
      if (n <= 0) break;
      got.append(buffer, static_cast<std::size_t>(n));
    }
    return got;
  }
  bool Closed() const { return Read(1).empty(); }

 private:
  Fd socket_;
  bool connected_ = false;
};

std::size_t ResidentKiB() {
  std::ifstream file("/proc/self/statm");
  std::size_t size = 0;
  std::size_t resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) / 1024;
}

class HostileTest : public CoordinatorTest {
 protected:
  /// A run of two that beats, while strangers do their worst.
  void SetUp() override {
    CoordinatorTest::SetUp();
    agents_ = StartRun(2);
    beating_ = std::thread([this] {
      for (std::uint64_t i = 1; !over_; ++i) {
        for (auto& agent : agents_) {
          agent->Send({{"op", "beat"}, {"feeds", {{"train", {{"rows", i}, {"ended", false}}}}}});
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    });
  }
  /// The run is as it was: a barrier meets, new news come, all end well.
  void TearDown() override {
    over_ = true;
    beating_.join();
    for (auto& agent : agents_) {
      agent->Send(
          {{"op", "barrier"}, {"name", "b"}, {"id", 1}, {"payload", ""}, {"timeout_s", 60}});
    }
    for (auto& agent : agents_) EXPECT_EQ(agent->Next("barrier")["code"], "OK");
    for (auto& agent : agents_) agent->Send({{"op", "done"}});
    for (auto& agent : agents_) {
      EXPECT_EQ(agent->Next("stop")["code"], "OK");
      agent->Send({{"op", "bye"}});
    }
    EXPECT_EQ(NextEvent("all_finished")["status"], "ok");
  }
  HostPort Address() const { return sut_->address(); }

  std::vector<std::unique_ptr<FakeAgent>> agents_;
  std::atomic<bool> over_{false};
  std::thread beating_;
};

TEST_F(HostileTest, GarbageIsClosedWithoutAWord) {
  std::mt19937 random(7);
  for (int i = 0; i < 100; ++i) {
    Stranger stranger(Address());
    std::string bytes(1 + random() % 300, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    stranger.Send(i % 3 == 0 ? "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + std::string(80, 'x') : bytes);
    if (bytes.size() < kProofBytes && i % 3 != 0) continue;  // hangs up half way
    const std::string answer = stranger.Read(1 << 20);
    EXPECT_LE(answer.size(), kHelloBytes);  // the hello that anybody gets, and nothing more
  }
}

TEST_F(HostileTest, AWrongSecretGetsNoProof) {
  for (int i = 0; i < 50; ++i) {
    FakeAgent stranger(*loop_, Address(), std::string(32, 'w'));
    EXPECT_EQ(stranger.Next("closed")["code"], "UNAUTHENTICATED");
  }
}

/// The bytes of a client's half of a good handshake, with the hello that it answers.
std::string GoodProof(const std::string& hello) {
  auto client = net::Handshake::Client(Secret()).value();
  EXPECT_TRUE(client.Feed(std::as_bytes(std::span(hello))).ok());
  return client.TakeOutput();
}

TEST_F(HostileTest, ARecordedHandshakeProvesNothingLater) {
  std::string recorded;
  {
    Stranger honest(Address());
    recorded = GoodProof(honest.Read(kHelloBytes));
    honest.Send(recorded);
    EXPECT_EQ(honest.Read(32).size(), 32u);  // it is a good one: the server proved itself in turn
  }
  for (int i = 0; i < 20; ++i) {
    Stranger replay(Address());
    EXPECT_EQ(replay.Read(kHelloBytes).size(), kHelloBytes);
    replay.Send(recorded);
    EXPECT_TRUE(replay.Closed());
  }
}

TEST_F(HostileTest, AServersOwnProofSentBackProvesNothing) {
  // Two connections at once: what one of them proves is offered to the other.
  Stranger one(Address());
  Stranger two(Address());
  const std::string hello_one = one.Read(kHelloBytes);
  const std::string hello_two = two.Read(kHelloBytes);
  one.Send(GoodProof(hello_one));
  const std::string proof = one.Read(32);
  ASSERT_EQ(proof.size(), 32u);
  two.Send(hello_one.substr(8) + proof);  // their nonce as mine, their proof as mine
  EXPECT_TRUE(two.Closed());
  Stranger three(Address());
  const std::string hello = three.Read(kHelloBytes);
  three.Send(hello.substr(8) + std::string(32, '\0'));
  EXPECT_TRUE(three.Closed());
}

TEST_F(HostileTest, FramesAreBoundedBehindAGoodProof) {
  Stranger insider(Address());
  insider.Send(GoodProof(insider.Read(kHelloBytes)));
  ASSERT_EQ(insider.Read(32).size(), 32u);
  insider.Send(std::string("\xff\xff\xff\xff", 4) + std::string(1000, 'x'));
  EXPECT_TRUE(insider.Closed());
}

TEST_F(HostileTest, SlowLorisHoldsNoMoreThanItsShare) {
  std::vector<std::unique_ptr<Stranger>> loris;
  const std::size_t before = OpenDescriptors();
  for (int i = 0; i < 300; ++i) {
    loris.push_back(std::make_unique<Stranger>(Address()));
    loris.back()->Send("a");  // and never the rest
  }
  // Ours are 300; the server holds at most its bound.
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= before + 300 + 64 + 2 + 4; }));
  auto late = Connect();  // an honest one comes through all the same
  late->Join(7);
  EXPECT_EQ(late->Next("reject")["op"], "reject");
  loris.clear();
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= before + 4; }));
}

TEST_F(HostileTest, TenThousandConnectionsLeaveNothing) {
  for (int i = 0; i < 500; ++i) Stranger warm(Address());  // allocators and tables take their size
  EXPECT_TRUE(Eventually([&] { return true; }));
  const std::size_t descriptors = OpenDescriptors();
  const std::size_t memory = ResidentKiB();
  int connected = 0;
  for (int i = 0; i < 10'000; ++i) {
    Stranger stranger(Address());
    connected += stranger.connected() ? 1 : 0;
    if (i % 4 == 0) stranger.Send("nonsense");
  }
  EXPECT_GT(connected, 9'000);
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() <= descriptors + 4; }))
      << OpenDescriptors() << " of " << descriptors;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep freed memory
  EXPECT_LE(ResidentKiB(), memory + 16 * 1024);
#else
  (void)memory;
#endif
}

class EncryptedTest : public CoordinatorTest {};

TEST_F(EncryptedTest, ARunUnderTlsWorksAndAnUnencryptedAgentIsClosed) {
  CoordinatorOptions options;
  options.secret = Secret();
  options.run_id = "test";
  options.encrypt = true;
  options.tuning = Patient();
  sut_ = Coordinator::Start(options).value();
  FakeAgent plain(*loop_, sut_->address());  // knows the secret, but not that it must encrypt
  plain.Join(0);
  EXPECT_EQ(plain.Next("closed")["op"], "closed");
  FakeAgent agent(*loop_, sut_->address(), Secret(), /*encrypt=*/true);
  agent.Join(0);
  EXPECT_EQ(agent.Next("start")["cluster"].size(), 1u);
  const std::string large(40'000, 'p');
  agent.Send({{"op", "barrier"}, {"name", "b"}, {"id", 1}, {"payload", large}, {"timeout_s", 60}});
  EXPECT_EQ(agent.Next("barrier")["payloads"][0], large);
  agent.Send({{"op", "done"}});
  EXPECT_EQ(agent.Next("stop")["code"], "OK");
  agent.Send({{"op", "bye"}});
  EXPECT_EQ(NextEvent("all_finished")["status"], "ok");
}

}  // namespace
}  // namespace arcflow::control
