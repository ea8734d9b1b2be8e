// SPDX-License-Identifier: Apache-2.0
// Tests of ReaderSession against a host that the test controls: order, parking, descriptors, bad
// packets.
#include "arcflow/feed/reader_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/feed/service_testing.h"
#include "arcflow/net/packet.h"

namespace arcflow::feed {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Park = ReaderHost::Park;

/// Answers rows below `rows` from segments of 10 rows, all in one memory under the id `buffer`.
class FakeHost : public ReaderHost {
 public:
  FakeHost() : memory_(std::move(*CreateMemfd("session-test", 4096))) {
    EXPECT_TRUE(SealForReaders(memory_).ok());
  }
  Result<GetAnswer> Get(ReaderId, std::uint64_t row) override {
    if (!failure.ok()) return failure;
    if (ended && row >= rows) return GetAnswer(EndAnswer{rows});
    if (row >= rows) return GetAnswer(Park{.for_rows = true});
    if (full) return GetAnswer(Park{.for_rows = false});
    Segment s;
    s.number = row / 10;
    s.first_row = s.number * 10;
    s.rows = 10;
    s.buffer = buffer;
    s.bytes = 4096;
    s.closed = true;
    return GetAnswer(SegmentAnswer{s, memory_.get(), nullptr});
  }
  Status Release(ReaderId, std::uint64_t segment, std::uint64_t answers) override {
    released.emplace_back(segment, answers);
    return segment < 100 ? Status::Ok() : InvalidArgument("not held");
  }
  Result<KnownSteps> Plan(ReaderId, std::uint64_t, Remainder remainder) override {
    planned.push_back(remainder);
    if (!failure.ok()) return failure;
    return known;
  }
  void AddPass(ReaderId, const PassStats& pass) override { passes.push_back(pass); }

  std::uint64_t rows = 0;
  std::uint64_t buffer = 1;
  bool ended = false;
  bool full = false;
  Status failure;
  KnownSteps known;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> released;
  std::vector<Remainder> planned;
  std::vector<PassStats> passes;

 private:
  Fd memory_;
};

class ReaderSessionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pair = net::PacketPair();
    ASSERT_TRUE(pair.ok());
    client_ = std::move(pair->first);
    sut_ = std::make_unique<ReaderSession>(1, std::move(pair->second), host_);
  }
  /// Sends, lets the session take it in and answer.
  Status Say(const json& packet) {
    EXPECT_TRUE(net::SendPacket(client_.get(), packet, {}, Deadline::AfterSeconds(5)).ok());
    const Status status = sut_->OnReadable();
    sut_->Pump();
    return status;
  }
  json Hear() {
    auto message =
        net::ReceiveMessage(client_.get(), -1, Deadline::After(std::chrono::nanoseconds(0)));
    if (!message.ok()) return nullptr;
    if (!*message) return {{"op", "closed"}};
    json body = *(*message)->body;
    body["fds"] = (*message)->fds.size();
    return body;
  }
  /// The packet is answered with an error of `code` and the session is over.
  void ExpectFatal(const json& packet, const std::string& part) {
    const Status status = Say(packet);
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << packet.dump();
    EXPECT_FALSE(sut_->alive());
    const json error = Hear();
    ASSERT_EQ(error["op"], "error") << packet.dump();
    EXPECT_EQ(error["code"], "INVALID_ARGUMENT");
    EXPECT_THAT(error["message"].get<std::string>(), HasSubstr(part));
    EXPECT_EQ(Hear()["op"], "closed");
  }

  FakeHost host_;
  Fd client_;
  std::unique_ptr<ReaderSession> sut_;
};

TEST_F(ReaderSessionTest, DescriptorComesOnceForEachBuffer) {
  host_.rows = 40;
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 3}}).ok());
  json first = Hear();
  EXPECT_EQ(first["op"], "segment");
  EXPECT_EQ(first["first_row"], 0);
  EXPECT_EQ(first["fds"], 1);
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 10}}).ok());
  EXPECT_EQ(Hear()["fds"], 0);
  host_.buffer = 2;
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 20}}).ok());
  EXPECT_EQ(Hear()["fds"], 1);
}

TEST_F(ReaderSessionTest, ParkedRequestsAreAnsweredInOrderWhenRowsCome) {
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 0}}).ok());
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 10}}).ok());
  EXPECT_EQ(Hear(), nullptr);
  host_.rows = 10;
  sut_->Pump();
  EXPECT_EQ(Hear()["segment"], 0);
  EXPECT_EQ(Hear(), nullptr);
  host_.rows = 20;
  sut_->Pump();
  EXPECT_EQ(Hear()["segment"], 1);
}

TEST_F(ReaderSessionTest, EndComesWithTheRowsOfTheFeed) {
  host_.rows = 10;
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 10}}).ok());
  EXPECT_EQ(Hear(), nullptr);
  host_.ended = true;
  sut_->Pump();
  const json end = Hear();
  EXPECT_EQ(end["op"], "end");
  EXPECT_EQ(end["rows"], 10);
}

TEST_F(ReaderSessionTest, FailureAnswersParkedAndLaterRequestsAndTheSessionGoesOn) {
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 0}}).ok());
  ASSERT_TRUE(Say({{"op", "plan"}, {"step", 0}, {"batch", 4}, {"remainder", 0}}).ok());
  host_.failure = Unavailable("the feeder died");
  sut_->Pump();
  for (int i = 0; i < 2; ++i) {
    const json error = Hear();
    EXPECT_EQ(error["op"], "error");
    EXPECT_EQ(error["code"], "UNAVAILABLE");
    EXPECT_EQ(error["message"], "the feeder died");
  }
  EXPECT_TRUE(sut_->alive());
  host_.failure = Status::Ok();
  host_.rows = 10;
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 0}}).ok());
  EXPECT_EQ(Hear()["op"], "segment");
}

TEST_F(ReaderSessionTest, ThirdUnansweredGetIsRefused) {
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 0}}).ok());
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 1}}).ok());
  ExpectFatal({{"op", "get"}, {"row", 2}}, "unanswered 'get'");
}

TEST_F(ReaderSessionTest, PlanWaitsUntilItIsDecided) {
  host_.known = {2, false};
  ASSERT_TRUE(Say({{"op", "plan"}, {"step", 1}, {"batch", 4}, {"remainder", "drop"}}).ok());
  json plan = Hear();
  EXPECT_EQ(plan["steps"], 2);
  EXPECT_EQ(plan["final"], false);
  ASSERT_TRUE(Say({{"op", "plan"}, {"step", 2}, {"batch", 4}, {"remainder", 1}}).ok());
  EXPECT_EQ(Hear(), nullptr);
  host_.known = {2, true};
  sut_->Pump();
  plan = Hear();
  EXPECT_EQ(plan["steps"], 2);
  EXPECT_EQ(plan["final"], true);
  for (const Remainder r : host_.planned) EXPECT_EQ(r, Remainder::kDrop);
}

TEST_F(ReaderSessionTest, ReleaseAndStatsReachTheHostWithoutAnAnswer) {
  ASSERT_TRUE(Say({{"op", "release"}, {"segment", 7}}).ok());
  ASSERT_TRUE(Say({{"op", "release"}, {"segment", 8}, {"answers", 2}}).ok());
  EXPECT_THAT(host_.released, ElementsAre(std::pair(7ul, FeedLog::kAllTimes), std::pair(8ul, 2ul)));
  ASSERT_TRUE(Say({{"op", "stats"},
                   {"used", 1},
                   {"padded", 2},
                   {"dropped", 3},
                   {"steps", 4},
                   {"wait_ns", 5},
                   {"complete", true}})
                  .ok());
  ASSERT_EQ(host_.passes.size(), 1u);
  EXPECT_EQ(host_.passes[0].dropped, 3u);
  EXPECT_TRUE(host_.passes[0].complete);
  EXPECT_EQ(Hear(), nullptr);
}

TEST_F(ReaderSessionTest, ReleaseSentTogetherWithAGetCountsFirst) {
  host_.rows = 20;
  ASSERT_TRUE(
      net::SendPacket(client_.get(), {{"op", "get"}, {"row", 10}}, {}, Deadline::AfterSeconds(5))
          .ok());
  ASSERT_TRUE(net::SendPacket(client_.get(), {{"op", "release"}, {"segment", 0}}, {},
                              Deadline::AfterSeconds(5))
                  .ok());
  ASSERT_TRUE(sut_->OnReadable().ok());
  EXPECT_EQ(host_.released.size(), 1u);
  EXPECT_EQ(Hear(), nullptr) << "answers come with Pump";
  sut_->Pump();
  EXPECT_EQ(Hear()["segment"], 1);
}

TEST_F(ReaderSessionTest, DestroyedBuffersAreToldWithTheNextSegmentIfTheReaderKnewThem) {
  host_.rows = 40;
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 0}}).ok());
  Hear();
  sut_->Forget(1);
  sut_->Forget(99);
  host_.buffer = 2;
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 10}}).ok());
  EXPECT_THAT(Hear()["drop"].get<std::vector<std::uint64_t>>(), ElementsAre(1));
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 20}}).ok());
  EXPECT_FALSE(Hear().contains("drop"));
}

TEST_F(ReaderSessionTest, PassedRowsLagOneAnswerBehindUnlessTheReaderWaitsForRows) {
  host_.rows = 30;
  EXPECT_EQ(sut_->passed_row(), 0u);
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 0}}).ok());
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 10}}).ok());  // one ahead
  EXPECT_EQ(sut_->passed_row(), 0u);
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 20}}).ok());
  EXPECT_EQ(sut_->passed_row(), 10u);
  host_.full = true;
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 25}}).ok());
  EXPECT_EQ(sut_->passed_row(), 10u) << "it waits for memory, not for rows";
  host_.full = false;
  sut_->Pump();
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 30}}).ok());
  EXPECT_EQ(sut_->passed_row(), 30u) << "nothing is there that it could wait to read";
}

TEST_F(ReaderSessionTest, ReaderThatClosesEndsTheSessionWithoutError) {
  client_.reset();
  EXPECT_TRUE(sut_->OnReadable().ok());
  EXPECT_FALSE(sut_->alive());
}

TEST_F(ReaderSessionTest, PacketsSentBeforeClosingAreStillTaken) {
  ASSERT_TRUE(net::SendPacket(client_.get(), {{"op", "release"}, {"segment", 3}}, {},
                              Deadline::AfterSeconds(5))
                  .ok());
  client_.reset();
  EXPECT_TRUE(sut_->OnReadable().ok());
  EXPECT_EQ(host_.released.size(), 1u);
  EXPECT_FALSE(sut_->alive());
}

TEST_F(ReaderSessionTest, AnswerToAReaderThatIsGoneEndsTheSession) {
  ASSERT_TRUE(Say({{"op", "get"}, {"row", 0}}).ok());
  client_.reset();
  host_.rows = 10;
  sut_->Pump();
  EXPECT_FALSE(sut_->alive());
  sut_->Pump();  // harmless
}

using BadPacket = std::pair<json, const char*>;
class BadReaderPacketTest : public ReaderSessionTest,
                            public ::testing::WithParamInterface<BadPacket> {};

TEST_P(BadReaderPacketTest, EndsTheSessionWithAnErrorThatSaysWhatIsWrong) {
  ExpectFatal(GetParam().first, GetParam().second);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadReaderPacketTest,
    ::testing::Values(
        BadPacket{{{"op", "get"}}, "'row' is missing"},
        BadPacket{{{"op", "get"}, {"row", "0"}}, "not a whole number"},
        BadPacket{{{"op", "get"}, {"row", 1.5}}, "not a whole number"},
        BadPacket{{{"op", "get"}, {"row", -1}}, "negative"},
        BadPacket{{{"op", "get"}, {"row", UINT64_MAX}}, "is over"},
        BadPacket{{{"op", "release"}}, "'segment' is missing"},
        BadPacket{{{"op", "release"}, {"segment", 100}}, "not held"},
        BadPacket{{{"op", "release"}, {"segment", 1}, {"answers", "x"}}, "'answers'"},
        BadPacket{{{"op", "plan"}, {"step", 0}, {"remainder", 0}}, "'batch' is missing"},
        BadPacket{{{"op", "plan"}, {"step", 0}, {"batch", 0}, {"remainder", 0}}, "'batch' is 0"},
        BadPacket{{{"op", "plan"}, {"step", 0}, {"batch", 1}}, "'remainder' is missing"},
        BadPacket{{{"op", "plan"}, {"step", 0}, {"batch", 1}, {"remainder", 4}}, "is over 3"},
        BadPacket{{{"op", "plan"}, {"step", 0}, {"batch", 1}, {"remainder", "half"}}, "'half'"},
        BadPacket{{{"op", "stats"}, {"used", 1}}, "is missing"},
        BadPacket{{{"op", "stats"},
                   {"used", 1},
                   {"padded", 0},
                   {"dropped", 0},
                   {"steps", 0},
                   {"wait_ns", 0},
                   {"complete", 1}},
                  "not true or false"},
        BadPacket{{{"op", "acquire"}, {"feed", "f"}, {"bytes", 1}}, "unknown packet 'acquire'"},
        BadPacket{{{"row", 1}}, "\"op\""}, BadPacket{json::array({1}), "not a JSON object"}));

TEST_F(ReaderSessionTest, DescriptorsFromAReaderAreRefused) {
  const Fd memory = std::move(*CreateMemfd("x", 4096));
  ASSERT_TRUE(net::SendPacket(client_.get(), {{"op", "get"}, {"row", 1}}, {memory.get()},
                              Deadline::AfterSeconds(5))
                  .ok());
  EXPECT_EQ(sut_->OnReadable().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace arcflow::feed
