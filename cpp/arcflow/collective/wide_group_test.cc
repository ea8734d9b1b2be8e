// SPDX-License-Identifier: Apache-2.0
// Groups of several hosts, ranks in threads: bytes between hosts, memory made once, disagreement,
// time limits, failure, and memory that is the caller's again. Results: engine_test.cc.
#include "arcflow/collective/wide_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/hex.h"
#include "arcflow/collective/agreement.h"
#include "arcflow/collective/layout.h"
#include "arcflow/collective/wide_testing.h"

namespace arcflow::collective {
namespace {

using namespace testing;  // NOLINT: group_testing.h
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::size_t kMiB = std::size_t{1} << 20;

TEST(LayoutTest, HostsAreNumberedByTheirLowestRank) {
  const auto layout = Layout::Make({7, 3, 7, 3}, 3);
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->hosts(), 2);
  EXPECT_EQ(layout->host(), 1);
  EXPECT_THAT(layout->members(0), ElementsAre(0, 2));
  EXPECT_EQ(layout->local_rank(), 1);
  EXPECT_TRUE(layout->even());
  EXPECT_EQ(layout->partner(0), 2);
  EXPECT_TRUE(layout->connected(3, 2));
  EXPECT_FALSE(layout->connected(3, 1));  // on one host
  EXPECT_TRUE(layout->connected(3, 0));   // all are with rank 0
  EXPECT_FALSE(layout->connected(1, 2));  // not each other's partners
}

TEST(LayoutTest, LeadersExchangeWhenHostsAreUneven) {
  const auto layout = Layout::Make({0, 1, 1, 2}, 2);
  ASSERT_TRUE(layout.ok());
  EXPECT_FALSE(layout->even());
  EXPECT_FALSE(layout->exchanges());
  EXPECT_FALSE(layout->connected(2, 3));
  EXPECT_TRUE(layout->connected(1, 3));
  EXPECT_EQ(layout->most(), 2);
}

TEST(LayoutTest, WhatIsNoGroupOfSeveralHostsIsRefused) {
  EXPECT_EQ(Layout::Make({4, 4}, 0).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Layout::Make({0, 1}, 2).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Layout::Make({}, 0).status().code(), Code::kInvalidArgument);
}

TEST(AgreementTest, TheLastToComeOrdersAndTheMissingAreNamed) {
  Agreement sut(3);
  Signature what;
  what.count = 4;
  Signature other = what;
  other.count = 5;
  EXPECT_FALSE(sut.Arrive(1, 77, what)->has_value());
  EXPECT_EQ(sut.Missing(77), "0, 2");
  EXPECT_EQ(sut.Arrive(1, 77, what).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(sut.Arrive(0, 77, other)->has_value());
  const auto ordered = sut.Arrive(2, 77, what);
  ASSERT_TRUE(ordered.ok() && ordered->has_value());
  EXPECT_EQ((*ordered)->key, 77u);
  EXPECT_EQ((*ordered)->first_rank, 1u);
  EXPECT_EQ((*ordered)->other_rank, 0u);
  EXPECT_EQ(sut.Missing(77), "");
  EXPECT_FALSE(sut.Arrive(1, 77, what)->has_value());  // the key is free again
}

TEST(AgreementTest, OperationsUnderWayAreBounded) {
  Agreement sut(2);
  for (std::uint64_t key = 0; key < kMaxPending; ++key) {
    ASSERT_TRUE(sut.Arrive(0, key, {}).ok());
  }
  EXPECT_EQ(sut.Arrive(0, kMaxPending, {}).status().code(), Code::kResourceExhausted);
  EXPECT_TRUE(sut.Arrive(1, 3, {}).ok());
  EXPECT_TRUE(sut.Arrive(0, kMaxPending, {}).ok());
}

void ReduceOnAll(const std::vector<std::shared_ptr<Engine>>& engines, std::size_t count,
                 int steps = 1) {
  OnEachRank(static_cast<int>(engines.size()), [&](int r) {
    for (int step = 0; step < steps; ++step) {
      const auto in = InputOf<float>(r, count, step);
      std::vector<float> out(count);
      const Status status = engines[static_cast<std::size_t>(r)]->Run(AddFloats(count, in, out));
      ASSERT_TRUE(status.ok()) << status.ToString();
      ASSERT_EQ(out, SumOf(static_cast<int>(engines.size()), count, step));
    }
  });
}

TEST(WideGroupTest, OneRankAHostMovesWhatTheAlgorithmSays) {
  for (const std::size_t ranks : {2, 3, 4}) {
    std::vector<int> hosts;
    for (std::size_t r = 0; r < ranks; ++r) hosts.push_back(static_cast<int>(r));
    const auto engines = MakeEngines(hosts);
    const std::size_t count = ranks * kMiB / 4;
    ReduceOnAll(engines, count);
    for (std::size_t r = 0; r < ranks; ++r) {
      const GroupCounters counters = engines[r]->counters();
      // 2n(p-1)/p, but for the rounding of pieces to whole cache lines.
      EXPECT_NEAR(static_cast<double>(counters.bytes_between_hosts),
                  2.0 * static_cast<double>(count) * 4 * static_cast<double>(ranks - 1) /
                      static_cast<double>(ranks),
                  static_cast<double>(count) * 4 / 500);
      for (std::size_t p = 0; p < ranks; ++p) {
        EXPECT_EQ(counters.pairs[p].sent, engines[p]->counters().pairs[r].received);
        EXPECT_EQ(counters.pairs[p].backend, p == r ? "" : "tcp");
      }
    }
  }
}

TEST(WideGroupTest, TwoRanksOnEachOfTwoHostsMoveNBytesAndNotTwice) {
  const auto engines = MakeEngines({0, 0, 1, 1});
  const std::size_t count = 2 * kMiB;
  ReduceOnAll(engines, count);
  for (const int host : {0, 1}) {
    std::uint64_t left = 0;
    for (const int r : {2 * host, 2 * host + 1}) {
      left += engines[static_cast<std::size_t>(r)]->counters().bytes_between_hosts;
    }
    EXPECT_EQ(left, count * 4);  // n each way
  }
  const GroupCounters counters = engines[0]->counters();
  EXPECT_EQ(counters.pairs[1].backend, "shm");
  EXPECT_EQ(counters.pairs[2].backend, "tcp");
  EXPECT_EQ(counters.pairs[3].backend, "");  // rank 1 speaks to it
  EXPECT_GT(counters.bytes_shared, 0u);
}

TEST(WideGroupTest, StepsUseTheMemoryOfTheFirst) {
  for (const std::vector<int>& hosts : {std::vector<int>{0, 1}, std::vector<int>{0, 0, 1, 1}}) {
    const auto engines = MakeEngines(hosts);
    ReduceOnAll(engines, 300'000);
    const GroupCounters before = engines[0]->counters();
    ReduceOnAll(engines, 300'000, 5);
    ReduceOnAll(engines, 50, 20);
    const GroupCounters after = engines[0]->counters();
    EXPECT_EQ(before.registrations, 1u);
    EXPECT_EQ(after.registrations, before.registrations);
    EXPECT_EQ(after.mappings, before.mappings);
    EXPECT_EQ(after.operations, before.operations + 25);
    EXPECT_EQ(after.small_operations, 20u);
  }
}

TEST(WideGroupTest, TheSameKeyServesEveryStep) {
  const auto engines = MakeEngines({0, 1});
  ReduceOnAll(engines, 10, 1500);
  EXPECT_EQ(engines[1]->counters().operations, 1500u);
}

class WireOfHostsTest : public ::testing::TestWithParam<std::vector<int>> {
 protected:
  /// What each rank got of a sum, `value(r, i)` being its input.
  template <typename Value>
  static std::vector<std::vector<float>> SumPacked(
      const std::vector<std::shared_ptr<Engine>>& engines, Wire wire, std::size_t count, bool mean,
      const Value& value) {
    std::vector<std::vector<float>> outs(engines.size(), std::vector<float>(count));
    OnEachRank(static_cast<int>(engines.size()), [&](int r) {
      std::vector<float> in(count);
      for (std::size_t i = 0; i < count; ++i) in[i] = value(r, i);
      Operation operation = AddFloats(1, in, outs[static_cast<std::size_t>(r)]);
      operation.what.wire = wire;
      operation.what.divide = mean ? 1 : 0;
      const Status status = engines[static_cast<std::size_t>(r)]->Run(std::move(operation));
      EXPECT_TRUE(status.ok()) << status.ToString();
    });
    return outs;
  }
};

TEST_P(WireOfHostsTest, ValuesThatFitAreSummedExactlyForHalfTheBytes) {
  const auto engines = MakeEngines(GetParam());
  const auto value = [](int r, std::size_t i) {
    return static_cast<float>((i + 3) % 11) - static_cast<float>(r);
  };
  const std::size_t count = 400'003;
  SumPacked(engines, Wire::kSame, count, false, value);
  std::vector<std::uint64_t> whole;
  for (const auto& engine : engines) whole.push_back(engine->counters().bytes_between_hosts);
  for (const Wire wire : {Wire::kBFloat16, Wire::kFloat16}) {
    std::vector<std::uint64_t> before;
    for (const auto& engine : engines) before.push_back(engine->counters().bytes_between_hosts);
    const auto outs = SumPacked(engines, wire, count, false, value);
    for (std::size_t r = 0; r < engines.size(); ++r) {
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < count; ++i) {
        float want = 0;
        for (std::size_t p = 0; p < engines.size(); ++p) want += value(static_cast<int>(p), i);
        wrong += outs[r][i] != want;
      }
      EXPECT_EQ(wrong, 0u) << "rank " << r;
      const std::uint64_t bytes = engines[r]->counters().bytes_between_hosts - before[r];
      EXPECT_LE(bytes, whole[r] / 2 + (64 << 10));  // what does not divide goes whole
      EXPECT_EQ(bytes == 0, whole[r] == 0);
    }
  }
}

TEST_P(WireOfHostsTest, RoundedResultsAreTheSameOnAllRanksAndNearTheMean) {
  const auto engines = MakeEngines(GetParam());
  const auto value = [](int r, std::size_t i) {
    return std::sin(static_cast<float>(i)) * static_cast<float>(r + 1);
  };
  const auto exact = SumPacked(engines, Wire::kSame, 100'000, true, value);
  const auto outs = SumPacked(engines, Wire::kBFloat16, 100'000, true, value);
  EXPECT_NE(outs[0], exact[0]);
  float worst = 0;
  for (std::size_t i = 0; i < exact[0].size(); ++i)
    worst = std::max(worst, std::abs(outs[0][i] - exact[0][i]));
  EXPECT_LT(worst, 5.0f / 128);  // values up to 5 with eight bits each
  for (const auto& out : outs) EXPECT_TRUE(out == outs[0]);
}

INSTANTIATE_TEST_SUITE_P(Hosts, WireOfHostsTest,
                         ::testing::Values(std::vector<int>{0, 1}, std::vector<int>{0, 0, 1, 1},
                                           std::vector<int>{0, 1, 1}, std::vector<int>{0, 1, 2}));

TEST(WideGroupTest, RanksThatDisagreeOnTheWireAreTold) {
  const auto engines = MakeEngines({0, 1});
  OnEachRank(2, [&](int r) {
    std::vector<float> values(100, 1.0f);
    std::vector<float> out(100);
    Operation operation = AddFloats(1, values, out);
    operation.what.wire = r == 0 ? Wire::kSame : Wire::kFloat16;
    const Status status = engines[static_cast<std::size_t>(r)]->Run(std::move(operation));
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("float16 between hosts"));
  });
}

TEST(WideGroupTest, RanksThatDisagreeAllGetTheErrorAndTheGroupLivesOn) {
  const auto engines = MakeEngines({0, 0, 1});
  OnEachRank(3, [&](int r) {
    Engine& sut = *engines[static_cast<std::size_t>(r)];
    const auto in = InputOf<float>(r, r == 2 ? 8 : 9);
    std::vector<float> out(in.size());
    const Status status = sut.Run(AddFloats(1, in, out));
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("all-reduce add of 8 float32"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("all-reduce add of 9 float32"));
  });
  ReduceOnAll(engines, 100);
}

TEST(WideGroupTest, MistakesOfOneRankAreFoundBeforeOthersAreTold) {
  const auto engines = MakeEngines({0, 1});
  std::vector<float> values(4);
  Operation operation = AddFloats(1, values, values);
  operation.what.element = Element::kByte;
  EXPECT_EQ(engines[0]->Run(operation).code(), Code::kInvalidArgument);
  EXPECT_TRUE(engines[0]->failure().ok());
  ReduceOnAll(engines, 4);
}

/// Only rank 0 knows who is missing, whoever's time is up.
TEST(WideGroupTest, ARankThatDoesNotComeIsNamedWhenTimeIsUp) {
  for (const int hasty : {0, 1}) {
    const auto engines = MakeEngines({0, 1, 2});
    OnEachRank(2, [&](int r) {
      std::vector<float> own(4);
      Operation operation = AddFloats(9, own, own);
      operation.deadline = Deadline::AfterSeconds(r == hasty ? 0.3 : 30);
      const Status status = engines[static_cast<std::size_t>(r)]->Run(std::move(operation));
      EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
      EXPECT_THAT(std::string(status.message()), HasSubstr("ranks 2 did not come"));
    });
    std::vector<float> values(4);
    EXPECT_EQ(engines[2]->Run(AddFloats(9, values, values)).code(), Code::kDeadlineExceeded);
  }
}

TEST(WideGroupTest, AFailureEndsWhatIsUnderWayEverywhere) {
  const auto engines = MakeEngines({0, 0, 1});
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    engines[2]->Fail(Status(Code::kAborted, "the step was aborted"));
  });
  OnEachRank(2, [&](int r) {  // rank 2 does not come
    std::vector<float> values(100'000);
    const Status status = engines[static_cast<std::size_t>(r)]->Run(AddFloats(1, values, values));
    EXPECT_EQ(status.code(), Code::kAborted);
    EXPECT_EQ(status.message(), "the step was aborted");
  });
  stopper.join();
  std::vector<float> values(4);
  EXPECT_EQ(engines[2]->Run(AddFloats(3, values, values)).code(), Code::kAborted);
}

TEST(WideGroupTest, ARankThatLeavesEndsTheGroup) {
  for (const std::size_t gone : {0, 1, 2}) {
    auto engines = MakeEngines({0, 1, 2});
    engines[gone].reset();
    for (std::size_t r = 0; r < 3; ++r) {
      if (r == gone) continue;
      std::vector<float> values(4);
      const Status status = engines[r]->Run(AddFloats(1, values, values));
      EXPECT_EQ(status.code(), Code::kUnavailable);
      EXPECT_THAT(std::string(status.message()), HasSubstr("rank " + std::to_string(gone)));
    }
  }
}

/// AddressSanitizer is the witness: buffers are freed as soon as `done` was called.
TEST(WideGroupTest, NothingIsTouchedAfterAnOperationHasFailed) {
  for (int round = 0; round < 12; ++round) {
    const auto engines =
        MakeEngines(round % 2 == 0 ? std::vector<int>{0, 1} : std::vector<int>{0, 0, 1, 1});
    const auto ranks = static_cast<int>(engines.size());
    std::thread stopper([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(700 * round));
      engines[static_cast<std::size_t>(round % ranks)]->Fail(Status(Code::kAborted, "enough"));
    });
    OnEachRank(ranks, [&](int r) {
      Status status;
      for (std::uint64_t key = 0; status.ok(); ++key) {
        auto in = std::make_unique<std::vector<float>>(kMiB / 4, 1.0f);
        auto out = std::make_unique<std::vector<float>>(kMiB / 4);
        status = engines[static_cast<std::size_t>(r)]->Run(AddFloats(key, *in, *out));
      }
      EXPECT_EQ(status.code(), Code::kAborted);
    });
    stopper.join();
  }
}

TEST(LobbyTest, RanksOfOneProcessJoinThroughOneLobby) {
  const Station station = Station::Make();
  const std::vector<int> hosts = {0, 0, 1, 1};
  std::vector<std::shared_ptr<Engine>> engines(4);
  OnEachRank(4, [&](int r) {
    const WideMembership m{"g", r, std::vector<std::string>(4, station.lobby->address()),
                           std::vector<std::string>(4, station.hub->address()), hosts};
    auto joined = station.lobby->Join(*station.hub, m, Deadline::AfterSeconds(60));
    ASSERT_TRUE(joined.ok()) << joined.status().ToString();
    engines[static_cast<std::size_t>(r)] = *joined;
  });
  ReduceOnAll(engines, 100'000);
}

/// Has ranks 0 and `other` of a group ask their stations, and returns what they get.
std::vector<Status> JoinTwo(const Station& first, const Station& second,
                            const std::vector<int>& first_hosts,
                            const std::vector<int>& second_hosts, double seconds) {
  std::vector<Status> found(2);
  std::vector<std::shared_ptr<Engine>> engines(2);  // nobody leaves before both have met
  OnEachRank(2, [&](int r) {
    const Station& own = r == 0 ? first : second;
    WideMembership m{"g", r, {}, {}, r == 0 ? first_hosts : second_hosts};
    m.lobbies.assign(m.hosts.size(), second.lobby->address());
    m.lobbies[0] = first.lobby->address();
    m.hubs.assign(m.hosts.size(), own.hub->address());
    const auto at = static_cast<std::size_t>(r);
    auto joined = own.lobby->Join(*own.hub, m, Deadline::AfterSeconds(r == 0 ? seconds : 30));
    found[at] = joined.status();
    if (joined.ok()) engines[at] = *joined;
  });
  return found;
}

TEST(LobbyTest, WhoDoesNotComeIsNamedToAll) {
  const Station a = Station::Make();
  const Station b = Station::Make();
  for (const Status& status : JoinTwo(a, b, {0, 1, 2, 3}, {0, 1, 2, 3}, 2)) {
    EXPECT_EQ(status.code(), Code::kDeadlineExceeded);
    EXPECT_THAT(std::string(status.message()), HasSubstr("ranks 2, 3 did not come"));
  }
}

TEST(LobbyTest, RanksThatSeeTheHostsOtherwiseDoNotMeet) {
  const Station a = Station::Make();
  const Station b = Station::Make();
  const auto found = JoinTwo(a, b, {0, 1}, {0, 1, 1}, 30);
  EXPECT_EQ(found[0].code(), Code::kInvalidArgument);
  EXPECT_EQ(found[1].code(), Code::kInvalidArgument);
}

TEST(LobbyTest, AnotherSecretGetsNothing) {
  transport::ContextOptions other = LoopbackOptions();
  other.secret = std::string(32, 'x');
  const Station a = Station::Make();
  const Station b = Station::Make(other);
  const auto found = JoinTwo(a, b, {0, 1}, {0, 1}, 0.5);
  EXPECT_EQ(found[0].code(), Code::kDeadlineExceeded);
  EXPECT_EQ(found[1].code(), Code::kUnauthenticated);
}

TEST(LobbyTest, NonsenseFromAMemberOfTheRunIsTurnedAway) {
  const Station a = Station::Make();
  const Station b = Station::Make();
  auto stranger = transport::Context::Create(LoopbackOptions());
  ASSERT_TRUE(stranger.ok());
  auto lobby = (*stranger)->Connect(*FromHex(a.lobby->address()), Deadline::AfterSeconds(30));
  ASSERT_TRUE(lobby.ok());
  const std::vector<std::string> nonsense = {
      "",
      "{",
      "[]",
      "7",
      R"({"op":"join"})",
      R"({"op":"join","protocol":9,"group":"g","rank":1,"hosts":[0,1],"contact":["",""]})",
      R"({"op":"join","protocol":1,"group":"g","rank":1,"hosts":[0,1],"contact":["00","00"]})",
      R"({"op":"join","protocol":1,"group":"g","rank":-1,"hosts":"x","contact":[]})",
      R"({"op":"open","group":"g","rank":1,"contacts":[7]})",
      R"({"op":"refused","group":"g","rank":1})"};
  for (const transport::Channel channel : {1, 2, 3}) {
    for (const std::string& text : nonsense) {
      EXPECT_TRUE((*lobby)->Send(channel, std::as_bytes(std::span(text))).ok());
    }
  }
  EXPECT_TRUE((*lobby)->FlushAndWait(Deadline::AfterSeconds(30)).ok());
  for (const Status& status : JoinTwo(a, b, {0, 1}, {0, 1}, 30)) {
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
}

TEST(LobbyTest, ALeaderThatIsGoneIsAnErrorAtOnce) {
  std::string gone;
  {
    const Station station = Station::Make();
    gone = station.lobby->address();
  }
  const Station station = Station::Make();
  const WideMembership m{"g", 1, {gone, station.lobby->address()}, {"a", "b"}, {0, 1}};
  EXPECT_EQ(station.lobby->Join(*station.hub, m, Deadline::AfterSeconds(60)).status().code(),
            Code::kUnavailable);
}

TEST(LobbyTest, MembershipsThatCannotBeAreRefused) {
  const Station station = Station::Make();
  const auto join = [&](const WideMembership& m) {
    return station.lobby->Join(*station.hub, m, Deadline::AfterSeconds(1)).status().code();
  };
  EXPECT_EQ(join({"g", 2, {"a", "b"}, {"a", "b"}, {0, 1}}), Code::kInvalidArgument);
  EXPECT_EQ(join({"g", 0, {"a"}, {"a", "b"}, {0, 1}}), Code::kInvalidArgument);
  EXPECT_EQ(join({"", 0, {"a", "b"}, {"a", "b"}, {0, 1}}), Code::kInvalidArgument);
  EXPECT_EQ(join({"g", 1, {"not an address", "b"}, {"a", "b"}, {0, 1}}), Code::kInvalidArgument);
}

}  // namespace
}  // namespace arcflow::collective
