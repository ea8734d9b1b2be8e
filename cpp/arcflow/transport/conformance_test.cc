// SPDX-License-Identifier: Apache-2.0
// The conformance suite and its backends: bytes, order, refusals. conformance_trouble_test.cc has
// deadlines, cancels and deaths.
#include <cstring>
#include <thread>

#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/transport/conformance_cases_testing.h"
#include "arcflow/transport/conformance_testing.h"

namespace arcflow::transport {
namespace {

TEST_P(TransportConformance, PutsAndGetsEverySize) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  constexpr std::size_t kMost = testing_support::UnlessThreadSanitizer(64 * kMiB, 16 * kMiB);
  const RemoteRegion region = peer.MakeRegion(kMost + 64);
  std::vector<std::byte> source(kMost + 64);
  std::vector<std::byte> back(kMost + 64);
  std::uint64_t seed = 1;
  for (const std::size_t n :
       {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{4096}, std::size_t{32768},
        std::size_t{32769}, std::size_t{262145}, 4 * kMiB + 3, kMost}) {
    for (const std::size_t offset : {std::size_t{0}, std::size_t{13}}) {
      ++seed;
      const std::span<std::byte> from(source.data() + (seed % 3), n);
      FillPattern(from, seed);
      const Status put = endpoint->PutAndWait(from, region, offset, Patient());
      ASSERT_TRUE(put.ok()) << n << ": " << put.ToString();
      EXPECT_EQ(peer.Call("check 0 " + std::to_string(offset) + " " + std::to_string(n) + " " +
                          std::to_string(seed)),
                std::to_string(n));
      const std::span<std::byte> into(back.data() + (seed % 5), n);
      const Status get = endpoint->GetAndWait(into, region, offset, Soon());
      ASSERT_TRUE(get.ok()) << n << ": " << get.ToString();
      EXPECT_EQ(PatternEnd(into, seed), n);
    }
  }
}

TEST_P(TransportConformance, NoticeComesAfterItsBytes) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = peer.MakeRegion(8 * kMiB);
  const std::vector<std::size_t> sizes = {1, 1000, 40000, 3 * kMiB};
  for (int round = 0; round < 20; ++round) {
    for (const std::size_t n : sizes) {
      std::vector<std::byte> source(n);
      FillPattern(source, static_cast<std::uint64_t>(round));
      const std::string notice = "0 17 " + std::to_string(n) + " " + std::to_string(round);
      PutOptions options = Patient();
      options.notice = notice;
      options.channel = kVerifyChannel;
      const Status put = endpoint->PutAndWait(source, region, 17, options);
      ASSERT_TRUE(put.ok()) << put.ToString();
    }
  }
  EXPECT_EQ(peer.Call("counts"), "0 in order 80 verified 0 torn");
}

TEST_P(TransportConformance, NoticeWithoutHandlerFailsThePut) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = peer.MakeRegion(kMiB);
  for (const std::size_t n : {std::size_t{10}, kMiB}) {
    std::vector<std::byte> source(n);
    PutOptions options = Patient();
    options.notice = "anybody?";
    options.channel = 77;
    EXPECT_EQ(endpoint->PutAndWait(source, region, 0, options).code(), Code::kFailedPrecondition);
  }
}

TEST_P(TransportConformance, MessagesKeepTheirOrderAndFlushWaitsForThem) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  constexpr std::uint64_t kMessages = 5000;
  for (std::uint64_t i = 0; i < kMessages; ++i) {
    std::vector<std::byte> message(8 + i % 200 * 5);
    std::memcpy(message.data(), &i, sizeof(i));
    const Status sent = endpoint->Send(kCountChannel, message);
    ASSERT_TRUE(sent.ok()) << sent.ToString();
  }
  const Status flushed = endpoint->FlushAndWait(Soon());
  ASSERT_TRUE(flushed.ok()) << flushed.ToString();
  EXPECT_EQ(peer.Call("counts"), "5000 in order 0 verified 0 torn");
  const std::vector<std::byte> large(kMaxMessageBytes + 1);
  EXPECT_EQ(endpoint->Send(kCountChannel, large).code(), Code::kInvalidArgument);
}

TEST_P(TransportConformance, AHandlerCanAnswer) {
  PeerProcess& peer = AddPeer();
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::size_t> answers;
  Here().Handle(kEchoChannel, [&](const auto& from, std::span<const std::byte> bytes) {
    std::lock_guard lock(mutex);
    answers.push_back(bytes.size());
    changed.notify_all();
    // What would wait for this very thread is refused.
    EXPECT_EQ(from->FlushAndWait(Soon()).code(), Code::kFailedPrecondition);
  });
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  for (const std::size_t n : {std::size_t{0}, std::size_t{1}, kMaxMessageBytes}) {
    ASSERT_TRUE(endpoint->Send(kEchoChannel, std::vector<std::byte>(n)).ok());
  }
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return answers.size() == 3; });
  EXPECT_EQ(answers, (std::vector<std::size_t>{0, 1, kMaxMessageBytes}));
}

TEST_P(TransportConformance, ManyOperationsAreOutstanding) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  constexpr std::size_t kEach = 100'001;
  constexpr std::size_t kCount = 200;
  const RemoteRegion region = peer.MakeRegion(kEach * kCount);
  std::vector<std::byte> source(kEach * kCount);
  std::vector<std::byte> back(kEach * kCount);
  FillPattern(source, 5);
  Outcomes puts;
  for (std::size_t i = 0; i < kCount; ++i) {
    const std::size_t n = i % 3 == 0 ? 1000 : kEach;
    endpoint->Put({source.data() + i * kEach, n}, region, i * kEach, Patient(), puts.Next());
  }
  const Status flushed = endpoint->FlushAndWait(Soon());
  EXPECT_TRUE(flushed.ok()) << flushed.ToString();
  EXPECT_EQ(puts.called(), kCount);  // Flush waited for them
  for (const Status& status : puts.Wait()) ASSERT_TRUE(status.ok()) << status.ToString();
  Outcomes gets;
  for (std::size_t i = 0; i < kCount; ++i) {
    const std::size_t n = i % 3 == 0 ? 1000 : kEach;
    endpoint->Get({back.data() + i * kEach, n}, region, i * kEach, Soon(), gets.Next());
  }
  for (const Status& status : gets.Wait()) ASSERT_TRUE(status.ok()) << status.ToString();
  for (std::size_t i = 0; i < kCount; ++i) {
    const std::size_t n = i % 3 == 0 ? 1000 : kEach;
    ASSERT_EQ(std::memcmp(back.data() + i * kEach, source.data() + i * kEach, n), 0) << i;
  }
}

TEST_P(TransportConformance, SeveralPeersAtOnceAndBothWays) {
  constexpr int kPeers = 3;
  for (int i = 0; i < kPeers; ++i) AddPeer();
  std::vector<std::vector<std::byte>> ours(kPeers, std::vector<std::byte>(2 * kMiB));
  std::vector<std::unique_ptr<Region>> written;
  std::vector<std::shared_ptr<Endpoint>> endpoints;
  std::vector<RemoteRegion> regions;
  for (int i = 0; i < kPeers; ++i) {
    endpoints.push_back(Connect(*peers[i]));
    ASSERT_NE(endpoints.back(), nullptr);
    regions.push_back(peers[i]->MakeRegion(4 * kMiB));
    auto region = Here().Register(ours[i], Access::kReadWrite);
    ASSERT_TRUE(region.ok());
    peers[i]->Call("target", region->remote().Serialize());
    written.push_back(std::make_unique<Region>(std::move(*region)));
    peers[i]->Call("hammer", Here().address());  // over the same connection, the other way
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < kPeers; ++i) {
    threads.emplace_back([&, i] {
      std::vector<std::byte> source(3 * kMiB);
      std::vector<std::byte> back(3 * kMiB);
      for (std::uint64_t round = 0; round < testing_support::UnlessThreadSanitizer(10u, 5u);
           ++round) {
        FillPattern(source, round + static_cast<std::uint64_t>(i));
        const Status put = endpoints[i]->PutAndWait(source, regions[i], 5, Patient());
        ASSERT_TRUE(put.ok()) << put.ToString();
        const Status get = endpoints[i]->GetAndWait(back, regions[i], 5, Soon());
        ASSERT_TRUE(get.ok()) << get.ToString();
        ASSERT_EQ(source, back);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (auto& peer : peers) EXPECT_NE(peer->Call("rest"), "0");
  for (int i = 0; i < kPeers; ++i) {
    written[i]->Deregister();
    EXPECT_EQ(PatternEnd(ours[i], 99), ours[i].size());
  }
}

TEST_P(TransportConformance, RefusesWhatAPeerMustNotDo) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion whole = peer.MakeRegion(2 * kMiB, Access::kReadWrite, 3);
  const RemoteRegion readable = peer.MakeRegion(2 * kMiB, Access::kRead, 4);
  const RemoteRegion writable = peer.MakeRegion(2 * kMiB, Access::kWrite, 5);
  for (const std::size_t n : {std::size_t{100}, kMiB}) {  // inline, and by pieces or reference
    std::vector<std::byte> bytes(n);
    // The caller's mistakes are told before anything is sent.
    EXPECT_EQ(endpoint->PutAndWait(bytes, readable, 0, Patient()).code(), Code::kInvalidArgument);
    EXPECT_EQ(endpoint->GetAndWait(bytes, writable, 0, Soon()).code(), Code::kInvalidArgument);
    EXPECT_EQ(endpoint->PutAndWait(bytes, whole, 2 * kMiB - n + 1, Patient()).code(),
              Code::kInvalidArgument);
    RemoteRegion foreign = whole;
    foreign.owner.bytes[0] ^= 1;
    EXPECT_EQ(endpoint->PutAndWait(bytes, foreign, 0, Patient()).code(), Code::kInvalidArgument);
    // A confused peer does not check; the owner does.
    RemoteRegion forged = whole;
    forged.key ^= 1;
    EXPECT_EQ(endpoint->PutAndWait(bytes, forged, 0, Patient()).code(), Code::kNotFound);
    EXPECT_EQ(endpoint->GetAndWait(bytes, forged, 0, Soon()).code(), Code::kNotFound);
    forged = whole;
    forged.size_bytes = 8 * kMiB;
    EXPECT_EQ(endpoint->PutAndWait(bytes, forged, 2 * kMiB - 1, Patient()).code(),
              Code::kOutOfRange);
    EXPECT_EQ(endpoint->GetAndWait(bytes, forged, 3 * kMiB, Soon()).code(), Code::kOutOfRange);
    forged = readable;
    forged.access = Access::kReadWrite;
    EXPECT_EQ(endpoint->PutAndWait(bytes, forged, 0, Patient()).code(), Code::kInvalidArgument);
    forged = writable;
    forged.access = Access::kReadWrite;
    EXPECT_EQ(endpoint->GetAndWait(bytes, forged, 0, Soon()).code(), Code::kInvalidArgument);
  }
  for (int i = 0; i < 3; ++i) {  // nothing was written
    EXPECT_EQ(peer.Call("check " + std::to_string(i) + " 0 2097152 " + std::to_string(i + 3)),
              "2097152");
  }
  std::vector<std::byte> bytes(kMiB);
  EXPECT_TRUE(endpoint->PutAndWait(bytes, whole, 0, Patient()).ok());  // and all still works
  peer.Call("deregister 0");
  EXPECT_EQ(endpoint->PutAndWait(bytes, whole, 0, Patient()).code(), Code::kNotFound);
  EXPECT_EQ(endpoint->GetAndWait(bytes, whole, 0, Soon()).code(), Code::kNotFound);
  EXPECT_TRUE(endpoint->status().ok());
}

TEST_P(TransportConformance, AnotherRunsSecretIsRefused) {
  ContextOptions other = Options();
  other.secret = "another run has another secret!!";
  PeerProcess& peer = AddPeer(other);
  const auto endpoint = Here().Connect(peer.address(), Deadline::AfterSeconds(kPatience));
  ASSERT_FALSE(endpoint.ok());
  EXPECT_EQ(endpoint.status().code(), Code::kUnauthenticated) << endpoint.status().ToString();
}

TEST_P(TransportConformance, CountsWhatItMoves) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = peer.MakeRegion(kMiB);
  std::vector<std::byte> bytes(kMiB);
  ASSERT_TRUE(endpoint->PutAndWait(bytes, region, 0, Patient()).ok());
  ASSERT_TRUE(endpoint->GetAndWait({bytes.data(), 1000}, region, 0, Soon()).ok());
  std::uint64_t sent = 0, received = 0, puts = 0, gets = 0;
  for (const auto& c : Here().counters().by_backend) {
    sent += c.bytes_sent;
    received += c.bytes_received;
    puts += c.puts;
    gets += c.gets;
  }
  EXPECT_EQ(sent, kMiB);
  EXPECT_EQ(received, 1000U);
  EXPECT_EQ(puts, 1U);
  EXPECT_EQ(gets, 1U);
}

INSTANTIATE_TEST_SUITE_P(All, TransportConformance, ::testing::ValuesIn(ConformanceCases()),
                         CaseName);

}  // namespace
}  // namespace arcflow::transport
