// SPDX-License-Identifier: Apache-2.0
// Tests of rows that agents hand one another by TCP: every row is somewhere once, in an order that
// follows from the plan, within the memory, and what goes wrong is told.
#include "arcflow/control/hand_over.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/control/hand_over_testing.h"
#include "arcflow/net/frame.h"

namespace arcflow::control {
namespace {

using namespace hand_testing;  // NOLINT: hand_over_testing.h

TEST_F(HandOverTest, ARankWithTenTimesTheRowsGivesThemToTheOthers) {
  Start({.rows = {40'000, 4'000, 4'000, 4'000}});
  ExpectEven();
}

TEST_F(HandOverTest, OneGiantPartitionFeedsEightRanks) {
  Start({.rows = {0, 0, 0, 80'003, 0, 0, 0, 0}, .pages = 16});
  ExpectEven();
}

TEST_F(HandOverTest, SeveralGiveToSeveral) {
  Start({.rows = {1'000, 9'000, 10, 7'777, 0, 3}, .segment_rows = 100});
  ExpectEven();
}

TEST_F(HandOverTest, RowsInsideOneSegmentAreHandedOverToo) {
  Start({.rows = {0, 7, 0}});
  ExpectEven();
}

TEST_F(HandOverTest, NoRowsAtAllAreAnEnd) {
  Start({.rows = {0, 0}});
  ExpectEven();
}

TEST_F(HandOverTest, RowsGoFromDiskToDisk) {
  Start({.rows = {20'000, 0}, .cache = Cache::kDisk, .pages = 4});
  ExpectEven();
  EXPECT_GT(Train(1)["spilled_bytes"], 0);
}

TEST_F(HandOverTest, RowsStayInMemoryWhereTheyHaveTo) {
  Start({.rows = {20'000, 0}, .cache = Cache::kMemory});
  ExpectEven();
  EXPECT_EQ(Train(1)["spilled_bytes"], 0);
}

TEST_F(HandOverTest, SegmentsLargerThanAFrameAreWhole) {
  Start({.rows = {600'000, 0}, .pages = 2048, .segment_rows = 300'001});
  ExpectEven();
}

TEST_F(HandOverTest, UnderEncryption) {
  Start({.rows = {20'000, 100, 0}, .encrypt = true});
  ExpectEven();
}

TEST_F(HandOverTest, MemoryThatDoesNotHoldTheRowsIsAnErrorThatNamesIt) {
  small_ = 1;
  Start({.rows = {16 * kRowsPerPage, 0, 0}, .cache = Cache::kMemory, .pages = 17});
  Spool();
  EXPECT_TRUE(Eventually([&] { return !Failed(1).empty(); }));
  EXPECT_THAT(Failed(1), HasSubstr("feed_memory"));
}

TEST_F(HandOverTest, AStrangerGetsNothing) {
  stranger_ = 1;
  Start({.rows = {10'000, 0}});
  Spool();
  EXPECT_TRUE(Eventually([&] { return !Failed(1).empty(); }));
  EXPECT_THAT(Failed(1), HasSubstr("0 UNAUTHENTICATED"));
  EXPECT_EQ(Train(0)["segments"], 10'000 / kRowsPerPage + 1) << "nothing was given away";
}

TEST_F(HandOverTest, ANodeThatWantsNoMoreRowsIsNoFailure) {
  hold_offers_ = true;
  Start({.rows = {10'000, 0}});
  Spool();
  OnLoop([this] {
    agents_[1]->service->RefuseMore();
    hold_offers_ = false;
    for (const auto& [from, message] : std::exchange(held_offers_, {})) Relay(from, message);
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(Failed(0) + Failed(1), "");
  EXPECT_EQ(Train(0)["rows"], 5'000);  // every row counts once, wherever it is just now
  EXPECT_EQ(Train(1)["rows"], 5'000);
}

/// A giver or taker that does as the test says.
class HostileHandOverTest : public HandOverTest {
 protected:
  /// Rank 1 takes from a giver that answers each of its messages so; "" closes.
  void Answer(const std::vector<std::string>& answers) {
    hold_offers_ = true;
    Start({.rows = {1'000, 0}});
    Spool();
    OnLoop([&] {
      net::ListenerOptions options;
      options.host = "127.0.0.1";
      options.channel.secret = Secret();
      auto bound = net::Listener::Bind(*loop_, options, [=](std::shared_ptr<net::Channel> channel) {
        net::ChannelCallbacks callbacks;
        auto next = std::make_shared<std::size_t>(0);
        callbacks.on_message = [=](json& message) {
          if (message["op"] == "hello") return;
          const std::string answer = *next < answers.size() ? answers[(*next)++] : "";
          if (answer.empty()) return channel->Close();
          const bool raw = answer[0] != '{';
          const std::string header = raw ? net::RawFrameHeader(answer.size()) : std::string("");
          const std::string frame =
              raw ? header + answer : net::EncodeFrame(json::parse(answer)).value();
          (void)channel->SendFrame(std::make_shared<const std::string>(frame));
        };
        return callbacks;
      });
      ASSERT_TRUE(bound.ok()) << bound.status().ToString();
      giver_ = std::move(*bound);
      ASSERT_TRUE(
          agents_[1]->sut->OnCoordinator(HandPlace{"train", 0, giver_->port()}.ToJson()).ok());
    });
    EXPECT_TRUE(Eventually([&] { return !Failed(1).empty(); }));
    OnLoop([this] { giver_.reset(); });
  }
  /// What the giver says to a taker that says this.
  std::string Ask(const std::vector<json>& messages) {
    auto heard = std::make_shared<std::promise<std::string>>();
    std::uint16_t port = 0;
    OnLoop([&] { port = HandOffer::FromJson(held_offers_.at(0).second).value().port; });
    net::ChannelOptions options;
    options.secret = Secret();
    options.max_raw_bytes = net::kMaxRawBytes;
    net::ChannelCallbacks callbacks;
    auto last = std::make_shared<std::string>();
    callbacks.on_message = [=](json& message) { *last = message.dump(); };
    callbacks.on_closed = [=](const Status&) { heard->set_value(*last); };
    auto channel = net::Channel::Connect(*loop_, "127.0.0.1", port, options, callbacks,
                                         Deadline::AfterSeconds(testing_support::kPatience_s));
    for (const json& message : messages) EXPECT_TRUE(channel->Send(message).ok());
    return heard->get_future().get();
  }

  std::unique_ptr<net::Listener> giver_;
};

TEST_F(HostileHandOverTest, AGiverThatGoesAwayIsTold) {
  Answer({});
  EXPECT_THAT(Failed(1), HasSubstr("0 UNAVAILABLE"));
}

TEST_F(HostileHandOverTest, AGiversErrorIsTold) {
  Answer({R"({"op": "error", "code": "DATA_LOSS", "message": "the disk is gone"})"});
  EXPECT_THAT(Failed(1), HasSubstr("0 DATA_LOSS: the disk is gone"));
}

TEST_F(HostileHandOverTest, PiecesThatWereNotAskedForAreRefused) {
  Answer({R"({"op": "piece", "row": 500, "rows": 501, "skip": 0, "bytes": 4096})"});
  EXPECT_THAT(Failed(1), HasSubstr("INVALID_ARGUMENT"));
}

TEST_F(HostileHandOverTest, APieceOfAnotherPlaceIsRefused) {
  Answer({R"({"op": "piece", "row": 499, "rows": 1, "skip": 0, "bytes": 4096})"});
  EXPECT_THAT(Failed(1), HasSubstr("INVALID_ARGUMENT"));
}

TEST_F(HostileHandOverTest, BytesOutsideOfTheirPieceAreRefused) {
  Answer({R"({"op": "piece", "row": 500, "rows": 500, "skip": 0, "bytes": 4096})",
          std::string("\xff\x0f\0\0\0\0\0\0ab", 10)});
  EXPECT_THAT(Failed(1), HasSubstr("outside"));
}

TEST_F(HostileHandOverTest, BytesThatNobodyAskedForAreRefused) {
  Answer({std::string("\0\0\0\0\0\0\0\0a", 9)});
  EXPECT_NE(Failed(1), "");
}

TEST_F(HostileHandOverTest, ATakerGetsOnlyWhatIsItsOwn) {
  hold_offers_ = true;
  Start({.rows = {1'000, 0, 1'000}});
  Spool();
  ASSERT_TRUE(Eventually([&] {
    bool offered = false;
    OnLoop([&] { offered = !held_offers_.empty(); });
    return offered;
  }));
  const json hello = HandHello{"test", 1}.ToJson();
  EXPECT_THAT(Ask({{{"op", "take"}}}), HasSubstr("hello"));
  EXPECT_THAT(Ask({HandHello{"other", 1}.ToJson()}), HasSubstr("another run"));
  EXPECT_THAT(Ask({hello, HandTake{"train", 0}.ToJson()}), HasSubstr("does not get row 0"));
  EXPECT_THAT(Ask({hello, HandTake{"other", 0}.ToJson()}), HasSubstr("no feed 'other'"));
  EXPECT_THAT(Ask({hello, {{"op", "send"}}}), HasSubstr("send of nothing"));
  EXPECT_THAT(Ask({hello, {{"op", "got"}, {"bytes", 1}}}), HasSubstr("bytes"));
  EXPECT_THAT(Ask({hello, {{"op", "nonsense"}}}), HasSubstr("unknown message nonsense"));
}

}  // namespace
}  // namespace arcflow::control
