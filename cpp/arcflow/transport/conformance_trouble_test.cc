// SPDX-License-Identifier: Apache-2.0
// The conformance suite, second part: deadlines, cancels at every point, peers that are stopped,
// killed or replaced.

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/base/stand_still_testing.h"
#include "arcflow/transport/conformance_cases_testing.h"
#include "arcflow/transport/conformance_testing.h"

namespace arcflow::transport {
namespace {

void Pause(int microseconds) {
  std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
}

class TransportTrouble : public TransportConformance {
 protected:
  /// For memory that is given back while the peer lives: a busy machine may keep the peer waiting
  /// for longer than the default, and ucx would cut it off.
  ContextOptions PatientToQuiesce() const {
    ContextOptions options = Options();
    options.quiesce_timeout = std::chrono::seconds(60);
    return options;
  }
};

TEST_P(TransportTrouble, DeadlinePassesWhileThePeerIsStopped) {
  if (!Resets()) return;
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = peer.MakeRegion(16 * kMiB);
  peer.Stop();
  {
    std::vector<std::byte> memory(16 * kMiB);
    PutOptions options;
    options.deadline = Deadline::AfterSeconds(0.3);
    const Code put = endpoint->PutAndWait(memory, region, 0, options).code();
    const Code get = endpoint->GetAndWait(memory, region, 0, Deadline::AfterSeconds(0.3)).code();
    const Code small = endpoint->PutAndWait({memory.data(), 10}, region, 0, options).code();
    EXPECT_EQ(put, Code::kDeadlineExceeded);
    // A backend that can only get its memory back by cutting the peer off says Unavailable then.
    EXPECT_TRUE(get == Code::kDeadlineExceeded || get == Code::kUnavailable);
    EXPECT_TRUE(small == Code::kDeadlineExceeded || small == Code::kUnavailable);
  }
  EXPECT_FALSE(endpoint->FlushAndWait(Deadline::AfterSeconds(0.1)).ok());
  peer.Continue();
  // The connection, or a new one, goes on.
  const auto again = Connect(peer);
  ASSERT_NE(again, nullptr);
  // Pieces of the put that was given up are still under way, on any of the connections: only a
  // flush says that nothing of it can land any more (Endpoint, "a while").
  const Status flushed = again->FlushAndWait(Soon());
  ASSERT_TRUE(flushed.ok()) << flushed.ToString();
  std::vector<std::byte> memory(16 * kMiB);
  FillPattern(memory, 8);
  const Status put = again->PutAndWait(memory, region, 0, Patient());
  EXPECT_TRUE(put.ok()) << put.ToString();
  EXPECT_EQ(peer.Call("check 0 0 16777216 8"), "16777216");
}

TEST_P(TransportTrouble, ADeadlineInThePastEndsAtOnce) {
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = peer.MakeRegion(kMiB);
  peer.Stop();
  std::vector<std::byte> memory(kMiB);
  PutOptions options;
  options.deadline = Deadline::After(std::chrono::nanoseconds(-1));
  EXPECT_EQ(endpoint->PutAndWait(memory, region, 0, options).code(), Code::kDeadlineExceeded);
  peer.Continue();
}

// The proof of the memory rule, with a sanitizer for witness: memory is freed as soon as Cancel()
// returns, whatever point the operation has reached.
TEST_P(TransportTrouble, CancelledOperationsTouchNoMemory) {
  PeerProcess& peer = AddPeer();
  (void)Here(PatientToQuiesce());
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  constexpr std::size_t kBytes = 2 * kMiB + 5;
  // What a cancelled put has sent may land until the next flush: each has a place of its own till
  // then.
  constexpr int kPlaces = 4;
  const RemoteRegion region = peer.MakeRegion(kPlaces * kBytes, Access::kReadWrite, 6);
  const RemoteRegion source = peer.MakeRegion(kBytes, Access::kRead, 7);
  Outcomes outcomes;
  constexpr int kRounds = 120;
  for (int i = 0; i < kRounds; ++i) {
    if (i % (2 * kPlaces) == 0) {
      const Status flushed = endpoint->FlushAndWait(Soon());
      ASSERT_TRUE(flushed.ok()) << flushed.ToString();
    }
    const std::size_t at = i / 2 % kPlaces * kBytes;
    auto memory = std::make_unique<std::vector<std::byte>>(kBytes);
    const OpId op = i % 2 == 0 ? endpoint->Put(*memory, region, at, Patient(), outcomes.Next())
                               : endpoint->Get(*memory, source, 0, Soon(), outcomes.Next());
    Pause(i * 13 % 1500);
    endpoint->Cancel(op);
    if (i % 4 == 1) {  // kept a while: nothing may arrive in it
      std::memset(memory->data(), 0xEE, memory->size());
      Pause(300);
      ASSERT_TRUE(AllBytesAre(*memory, std::byte{0xEE}));
    }
  }
  int cancelled = 0;
  for (const Status& status : outcomes.Wait()) {
    EXPECT_TRUE(status.ok() || status.code() == Code::kCancelled) << status.ToString();
    if (!status.ok()) ++cancelled;
  }
  EXPECT_EQ(outcomes.called(), static_cast<std::size_t>(kRounds));
  EXPECT_GT(cancelled, 0);
  const Status flushed = endpoint->FlushAndWait(Soon());  // what was called off has ended there too
  ASSERT_TRUE(flushed.ok()) << flushed.ToString();
  std::vector<std::byte> memory(kBytes);  // and the connection has survived it
  FillPattern(memory, 9);
  const Status put = endpoint->PutAndWait(memory, region, 0, Patient());
  EXPECT_TRUE(put.ok()) << put.ToString();
  EXPECT_EQ(peer.Call("check 0 0 " + std::to_string(kBytes) + " 9"), std::to_string(kBytes));
}

TEST_P(TransportTrouble, CancelledPutsAreNeverTakenForWhole) {
  PeerProcess& peer = AddPeer();
  (void)Here(PatientToQuiesce());
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  constexpr std::size_t kBytes = 2 * kMiB;
  const RemoteRegion region = peer.MakeRegion(kBytes);
  std::vector<std::byte> memory(kBytes);
  Outcomes outcomes;
  for (int i = 0; i < 120; ++i) {
    const auto seed = static_cast<std::uint64_t>(i);
    FillPattern(memory, seed);
    PutOptions options = Patient();
    const std::string notice = "0 0 " + std::to_string(kBytes) + " " + std::to_string(seed);
    options.notice = notice;
    options.channel = kVerifyChannel;
    const OpId op = endpoint->Put(memory, region, 0, options, outcomes.Next());
    Pause(i * 17 % 1200);
    endpoint->Cancel(op);
    std::memset(memory.data(), 0xEE, memory.size());  // a notice for these bytes would be a lie
    // No overlap with the next: the region is one.
    ASSERT_TRUE(endpoint->FlushAndWait(Soon()).ok());
  }
  outcomes.Wait();
  const std::string counts = peer.Call("counts");
  EXPECT_NE(counts.find(" 0 torn"), std::string::npos) << counts;
}

// The other half of the memory rule: a peer writes and writes; what is deregistered is freed at
// once, or kept and looked at.
TEST_P(TransportTrouble, DeregisteredMemoryIsNeverWritten) {
  PeerProcess& peer = AddPeer();
  (void)Here(PatientToQuiesce());
  (void)Connect(peer);
  peer.Call("hammer", Here().address());
  constexpr std::size_t kBytes = 2 * kMiB + 9;
  for (int i = 0; i < 80; ++i) {
    auto memory = std::make_unique<std::vector<std::byte>>(kBytes);
    auto region = Here().Register(*memory, Access::kReadWrite);
    ASSERT_TRUE(region.ok());
    peer.Call("target", region->remote().Serialize());
    Pause(500 + i * 37 % 2500);
    region->Deregister();
    if (i % 4 == 0) {
      std::memset(memory->data(), 0xEE, memory->size());
      Pause(500);
      ASSERT_TRUE(AllBytesAre(*memory, std::byte{0xEE}));
    }
  }
  EXPECT_NE(peer.Call("rest"), "0");
}

TEST_P(TransportTrouble, DeregisterDoesNotWaitForAStoppedPeer) {
  if (!Resets()) return;
  PeerProcess& peer = AddPeer();
  (void)Connect(peer);
  std::vector<std::byte> memory(2 * kMiB);
  auto region = Here().Register(memory, Access::kReadWrite);
  ASSERT_TRUE(region.ok());
  peer.Call("target", region->remote().Serialize());
  peer.Call("hammer", Here().address());
  Pause(20'000);
  peer.Stop();
  region->Deregister();  // returns; ctest's watchdog says when it does not
  std::memset(memory.data(), 0xEE, memory.size());
  peer.Continue();
  Pause(50'000);
  ASSERT_TRUE(AllBytesAre(memory, std::byte{0xEE}));
  peer.Call("rest");
}

enum class Step { kIdle, kPut, kSmallPut, kGet, kFlush, kIncoming };

class TransportDeath : public TransportConformance {
 protected:
  /// Kills the peer `delay` after `step` has begun; every operation must end with Unavailable by
  /// itself, far before its deadline.
  void Die(Step step, int delay) {
    if (!Resets()) return;
    context.reset();  // of the call before: the peer is forked from a process without threads
    PeerProcess& peer = AddPeer();
    const auto endpoint = Connect(peer);
    ASSERT_NE(endpoint, nullptr);
    std::mutex mutex;
    std::condition_variable changed;
    Status down;
    Here().OnPeerDown([&](const auto& who, const Status& why) {
      std::lock_guard lock(mutex);
      if (who == endpoint) down = why;
      changed.notify_all();
    });
    // Places of their own: operations that are under way together are in no order.
    constexpr std::size_t kBytes = testing_support::UnlessThreadSanitizer(8 * kMiB, 2 * kMiB);
    std::array<std::atomic<bool>, 4> taken{};
    const RemoteRegion region = peer.MakeRegion(taken.size() * kBytes);
    std::vector<std::byte> memory(taken.size() * kBytes);
    std::vector<std::byte> ours(2 * kMiB);
    auto target = Here().Register(ours, Access::kReadWrite);
    ASSERT_TRUE(target.ok());
    if (step == Step::kIncoming) {
      peer.Call("target", target->remote().Serialize());
      peer.Call("hammer", Here().address());
    }
    Outcomes outcomes;
    std::thread killer([&] {
      Pause(delay);
      peer.Kill();
    });
    while (step != Step::kIdle && step != Step::kIncoming && endpoint->status().ok()) {
      for (std::size_t i = 0; i < taken.size(); ++i) {
        if (taken[i].exchange(true)) continue;
        const Done done = [&place = taken[i], told = outcomes.Next()](Status status) {
          place = false;
          told(std::move(status));
        };
        const std::span<std::byte> place(memory.data() + i * kBytes,
                                         step == Step::kSmallPut ? 100 : kBytes);
        if (step == Step::kFlush) {
          endpoint->Flush(Soon(), done);
        } else if (step == Step::kGet) {
          endpoint->Get(place, region, i * kBytes, Soon(), done);
        } else {
          endpoint->Put(place, region, i * kBytes, Patient(), done);
        }
      }
      Pause(step == Step::kSmallPut || step == Step::kFlush ? 100 : 500);
    }
    for (const Status& status : outcomes.Wait()) {
      EXPECT_TRUE(status.ok() || status.code() == Code::kUnavailable) << status.ToString();
    }
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return !down.ok(); });
      EXPECT_EQ(down.code(), Code::kUnavailable) << down.ToString();
    }
    killer.join();
    EXPECT_EQ(endpoint->Send(kCountChannel, {}).code(), Code::kUnavailable);
    EXPECT_EQ(endpoint->PutAndWait(memory, region, 0, Patient()).code(), Code::kUnavailable);
    Here().OnPeerDown({});
    peers.clear();
  }
};

const auto kDelays = testing_support::UnlessThreadSanitizer<std::vector<int>>(
    {0, 700, 3000, 20'000}, {700, 20'000});  // microseconds
TEST_P(TransportDeath, WhileIdle) { Die(Step::kIdle, 2000); }
TEST_P(TransportDeath, DuringPuts) {
  for (const int delay : kDelays) Die(Step::kPut, delay);
}
TEST_P(TransportDeath, DuringSmallPuts) {
  for (const int delay : {0, 5000}) Die(Step::kSmallPut, delay);
}
TEST_P(TransportDeath, DuringGets) {
  for (const int delay : kDelays) Die(Step::kGet, delay);
}
TEST_P(TransportDeath, DuringFlushes) { Die(Step::kFlush, 3000); }
TEST_P(TransportDeath, WhileItWritesHere) {
  for (const int delay : {5000, 20'000}) Die(Step::kIncoming, delay);
}

TEST_P(TransportTrouble, AStoppedPeerCountsAsDeadAfterItsSilence) {
  if (!Resets()) return;
  ContextOptions options = Options();
  PeerProcess& peer = AddPeer(options);
  // Long enough for a peer that a busy machine keeps waiting.
  options.silence_limit = std::chrono::seconds(4);
  (void)Here(options);
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = peer.MakeRegion(8 * kMiB);
  std::vector<std::byte> memory(8 * kMiB);
  // Alive though idle: pings are answered.
  std::this_thread::sleep_for(std::chrono::seconds(6));
  EXPECT_TRUE(endpoint->status().ok()) << endpoint->status().ToString();
  peer.Stop();
  const Status put = endpoint->PutAndWait(memory, region, 0, Patient());
  EXPECT_EQ(put.code(), Code::kUnavailable) << put.ToString();
  peer.Continue();
}

TEST_P(TransportTrouble, AProcessThatStoodStillItselfBlamesNobody) {
  if (!Resets()) return;
  ContextOptions options = Options();
  PeerProcess& peer = AddPeer(options);
  options.silence_limit = std::chrono::seconds(2);
  (void)Here(options);
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  testing_support::StandStill(4);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_TRUE(endpoint->status().ok()) << endpoint->status().ToString();
  const RemoteRegion region = peer.MakeRegion(kMiB);
  const std::vector<std::byte> memory(kMiB);
  EXPECT_EQ(endpoint->PutAndWait(memory, region, 0, Patient()).code(), Code::kOk);
}

TEST_P(TransportTrouble, ANewPeerDoesNotKnowOldKeys) {
  if (!Resets()) return;
  PeerProcess& before = AddPeer();
  PeerProcess& after = AddPeer();
  const auto old_endpoint = Connect(before);
  ASSERT_NE(old_endpoint, nullptr);
  const RemoteRegion old_region = before.MakeRegion(kMiB);
  before.Kill();
  while (old_endpoint->status().ok()) Pause(1000);  // ctest's watchdog says when it is not seen
  const auto endpoint = Connect(after);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = after.MakeRegion(kMiB, Access::kReadWrite, 4);
  for (const std::size_t n : {std::size_t{100}, kMiB}) {
    std::vector<std::byte> memory(n);
    EXPECT_EQ(endpoint->PutAndWait(memory, old_region, 0, Patient()).code(),
              Code::kInvalidArgument);
    RemoteRegion forged = old_region;
    forged.owner = region.owner;
    EXPECT_EQ(endpoint->PutAndWait(memory, forged, 0, Patient()).code(), Code::kNotFound);
  }
  EXPECT_EQ(after.Call("check 0 0 1048576 4"), "1048576");
  // Nobody answers at the old address.
  const auto gone = Here().Connect(before.address(), Deadline::AfterSeconds(5));
  EXPECT_EQ(gone.status().code(), Code::kUnavailable) << gone.status().ToString();
}

TEST_P(TransportTrouble, CloseEndsOperationsHereAndIsSeenThere) {
  if (!Resets()) return;
  PeerProcess& peer = AddPeer();
  const auto endpoint = Connect(peer);
  ASSERT_NE(endpoint, nullptr);
  const RemoteRegion region = peer.MakeRegion(16 * kMiB);
  Outcomes outcomes;
  {
    // Places of their own: operations that are under way together are in no order.
    std::vector<std::byte> memory(16 * kMiB);
    const std::span<std::byte> all(memory);
    for (std::size_t i = 0; i < 4; ++i) {
      endpoint->Put(all.subspan(4 * i * kMiB, 2 * kMiB), region, 4 * i * kMiB, Patient(),
                    outcomes.Next());
      endpoint->Get(all.subspan((4 * i + 2) * kMiB, 2 * kMiB), region, (4 * i + 2) * kMiB, Soon(),
                    outcomes.Next());
    }
    endpoint->Close();  // gives the memory back
  }
  for (const Status& status : outcomes.Wait()) {
    EXPECT_TRUE(status.ok() || status.code() == Code::kCancelled) << status.ToString();
  }
  const auto again = Connect(peer);
  ASSERT_NE(again, nullptr);
  EXPECT_NE(again, endpoint);
  std::vector<std::byte> memory(kMiB);
  EXPECT_TRUE(again->PutAndWait(memory, region, 0, Patient()).ok());
  EXPECT_NE(peer.Call("leave", Here().address()), "0 closed");  // the peer closes what it shares
  const Status after = again->PutAndWait(memory, region, 0, Patient());
  EXPECT_EQ(after.code(), Code::kUnavailable) << after.ToString();
}

TEST_P(TransportTrouble, ContextEndsWithOperationsUnderWay) {
  if (!Resets()) return;
  PeerProcess& peer = AddPeer();
  Outcomes outcomes;
  for (int i = 0; i < 5; ++i) {
    const auto endpoint = Connect(peer);
    ASSERT_NE(endpoint, nullptr);
    // Places of their own: operations that are under way together are in no order.
    const RemoteRegion region = peer.MakeRegion(16 * kMiB);
    std::vector<std::byte> sent(8 * kMiB);
    std::vector<std::byte> fetched(8 * kMiB);
    std::vector<std::byte> ours(kMiB);
    auto own = Here().Register(ours, Access::kReadWrite);
    ASSERT_TRUE(own.ok());
    endpoint->Put(sent, region, 0, Patient(), outcomes.Next());
    endpoint->Get(fetched, region, 8 * kMiB, Soon(), outcomes.Next());
    Pause(i * 300);
    context.reset();  // before its region
  }
  for (const Status& status : outcomes.Wait()) {
    EXPECT_TRUE(status.ok() || status.code() == Code::kCancelled) << status.ToString();
  }
}

INSTANTIATE_TEST_SUITE_P(All, TransportTrouble, ::testing::ValuesIn(ConformanceCases()), CaseName);
INSTANTIATE_TEST_SUITE_P(All, TransportDeath, ::testing::ValuesIn(ConformanceCases()), CaseName);

}  // namespace
}  // namespace arcflow::transport
