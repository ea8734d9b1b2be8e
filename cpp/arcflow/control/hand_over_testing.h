// SPDX-License-Identifier: Apache-2.0
// Agents of a test that hand one another rows by TCP, their feeders, readers and the coordinator.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/control/control_testing.h"
#include "arcflow/control/hand_over.h"
#include "arcflow/feed/exchange.h"
#include "arcflow/net/frame.h"
#include "arcflow/net/packet.h"

namespace arcflow::control::hand_testing {

using feed::Cache;
using nlohmann::json;
using ::testing::HasSubstr;
using testing_support::Eventually;
using testing_support::Secret;

inline constexpr std::size_t kPage = 4096;
inline constexpr std::uint64_t kRowsPerPage = kPage / sizeof(std::uint64_t);
inline constexpr std::uint64_t kRank =
    1'000'000'000;  // value of a row: rank * kRank + its number there

inline columnar::Schema OneColumn() {
  columnar::Schema schema;
  schema.columns.push_back({"x", columnar::DType::kInt64, columnar::Source::kScalar, {}});
  return schema;
}

/// One agent's service and hand-over, and a feeder and a reader that speak packets to it.
/// Everything runs on the loop.
struct Agent {
  std::unique_ptr<feed::FeedService> service;
  std::unique_ptr<HandOver> sut;
  std::vector<json> grants;                      // of the feeder
  std::string failed;                            // "rank CODE message"
  std::map<std::string, std::uint64_t> written;  // rows, by feed
};

struct Wish {
  std::vector<std::uint64_t> rows;  // of each rank
  Cache cache = Cache::kAuto;
  std::size_t pages = 64;  // of memory, each agent
  std::uint64_t segment_rows = kRowsPerPage;
  bool encrypt = false;
  bool exchange = false;
  std::vector<std::string> feeds = {"train"};  // each with these rows
};

class HandOverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string path = ::testing::TempDir() + "/arcflow-hand-test-XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    dir_ = path;
    loop_ = std::move(*net::Loop::Create());
    ASSERT_TRUE(loop_->StartThread().ok());
  }
  void TearDown() override {
    OnLoop([this] {
      ending_ = true;
      for (auto& agent : agents_) agent->sut.reset();
      for (auto& agent : agents_) agent->service.reset();
    });
    loop_->Stop();
    loop_->Join();
    loop_.reset();
    std::filesystem::remove_all(dir_);
  }

  template <typename Call>
  void OnLoop(Call call) {
    testing_support::RunOnLoop(*loop_, call);
  }

  void Start(const Wish& wish) {
    wish_ = wish;
    OnLoop([this] {
      for (std::size_t rank = 0; rank < wish_.rows.size(); ++rank) StartOne(static_cast<int>(rank));
    });
  }
  void StartOne(int rank) {
    agents_.push_back(std::make_unique<Agent>());
    Agent& agent = *agents_.back();
    feed::ServiceOptions options;
    options.rank = rank;
    options.size = static_cast<int>(wish_.rows.size());
    for (const std::string& feed : wish_.feeds)
      options.feeds[feed] = {OneColumn(), wish_.cache, /*balance=*/true, wish_.exchange};
    options.feed_memory_bytes = (rank == small_ ? 2 : wish_.pages) * kPage;
    options.local_dirs = {dir_};
    feed::FeedService::Callbacks callbacks;
    callbacks.send_to_feeder = [&agent](const json& packet) {
      if (!agent.sut->Route(packet)) agent.grants.push_back(packet);
    };
    callbacks.rows_changed = [this](const std::string&) { loop_->Post([this] { TellRows(); }); };
    callbacks.balanced = [&agent](const std::string& name) { agent.sut->OnBalanced(name); };
    callbacks.settled = [&agent](const std::string& name) { agent.sut->OnSettled(name); };
    callbacks.dropped = [&agent](const std::string& name) { agent.sut->OnDropped(name); };
    agent.service = std::make_unique<feed::FeedService>(options, std::move(callbacks));
    HandOver::Options hand;
    hand.run_id = "test";
    hand.channel.secret = Secret();
    hand.channel.encrypt = wish_.encrypt;
    hand.channel.max_raw_bytes = net::kMaxRawBytes;
    hand.rank = rank;
    hand.size = options.size;
    hand.host = "127.0.0.1";
    if (rank == stranger_) hand.channel.secret = std::string(32, 'x');
    HandOver::Callbacks to;
    to.to_coordinator = [this, rank](const json& message) {
      loop_->Post([this, rank, message] { Relay(rank, message); });
    };
    to.host_of = [](int) { return "127.0.0.1"; };
    to.failed = [&agent](int from, const Status& why) {
      agent.failed = std::to_string(from) + " " + why.ToString();
    };
    agent.sut = std::make_unique<HandOver>(*loop_, hand, *agent.service, to);
  }
  /// As the coordinator does.
  void TellRows() {
    if (ending_) return;
    for (const std::string& feed : wish_.feeds) {
      std::vector<feed::RankRows> ranks;
      for (auto& agent : agents_) ranks.push_back(agent->service->Local(feed));
      for (auto& agent : agents_) agent->service->SetRanks(feed, ranks);
    }
  }
  void Relay(int from, const json& message) {
    if (ending_) return;
    if (hold_offers_) {
      held_offers_.emplace_back(from, message);
      return;
    }
    const HandOffer offer = HandOffer::FromJson(message).value();
    for (const int rank : offer.ranks) {
      const HandPlace place{offer.feed, from, offer.port};
      EXPECT_TRUE(agents_[static_cast<std::size_t>(rank)]->sut->OnCoordinator(place.ToJson()).ok());
    }
  }

  /// Writes one segment.
  void Write(Agent& agent, std::uint64_t rank, const std::string& feed, std::uint64_t rows) {
    agent.grants.clear();
    const std::size_t bytes = rows * sizeof(std::uint64_t);
    ASSERT_TRUE(
        agent.service->OnFeederPacket({{"op", "acquire"}, {"feed", feed}, {"bytes", bytes}}, {})
            .ok());
    ASSERT_EQ(agent.grants.size(), 1u);
    const json grant = agent.grants[0];
    ASSERT_EQ(grant["op"], "segment") << grant;
    Fd& memory = memory_[{&agent, grant["buffer"]}];
    if (grant["create"]) memory = std::move(*CreateMemfd("test", grant["bytes"]));
    std::vector<std::uint64_t> values(rows);
    for (std::uint64_t i = 0; i < rows; ++i) values[i] = rank * kRank + agent.written[feed] + i;
    ASSERT_EQ(::pwrite(memory.get(), values.data(), bytes, 0), static_cast<ssize_t>(bytes));
    std::vector<Fd> fds;
    if (grant["create"]) fds.emplace_back(::dup(memory.get()));
    ASSERT_TRUE(agent.service
                    ->OnFeederPacket({{"op", "publish"},
                                      {"feed", feed},
                                      {"buffer", grant["buffer"]},
                                      {"rows", rows},
                                      {"closed", true}},
                                     std::move(fds))
                    .ok());
    agent.written[feed] += rows;
  }
  void Spool() {
    OnLoop([this] {
      for (std::size_t rank = 0; rank < agents_.size(); ++rank) {
        Agent& agent = *agents_[rank];
        for (const std::string& feed : wish_.feeds) {
          while (agent.written[feed] < wish_.rows[rank])
            Write(agent, rank, feed,
                  std::min(wish_.segment_rows, wish_.rows[rank] - agent.written[feed]));
        }
        for (const std::string& feed : wish_.feeds)
          EXPECT_TRUE(agent.service->OnFeederPacket({{"op", "end"}, {"feed", feed}}, {}).ok());
      }
      memory_.clear();
    });
  }

  std::string Failed(std::size_t rank) {
    std::string failed;
    OnLoop([&] { failed = agents_[rank]->failed; });
    return failed;
  }
  json Train(std::size_t rank) {
    json stats;
    OnLoop([&] { stats = agents_[rank]->service->Stats(); });
    json train = stats["feeds"]["train"];
    train["peak"] = stats["peak_buffers_bytes"];
    return train;
  }
  /// A session of a reader of that rank; its end of the socket.
  Fd Open(std::size_t rank, const std::string& feed) {
    auto pair = net::PacketPair();
    OnLoop([&] {
      auto added = agents_[rank]->service->AddReader(feed, std::move(pair->second));
      EXPECT_TRUE(added.ok());
      const int descriptor = *added;
      (void)loop_->WatchReadable(descriptor, [this, rank, descriptor] {
        return agents_[rank]->service && agents_[rank]->service->OnReaderReadable(descriptor);
      });
    });
    return std::move(pair->first);
  }
  /// All values that a reader of that rank sees, after the hand-over.
  std::vector<std::uint64_t> Read(std::size_t rank, const std::string& feed = "train") {
    std::vector<std::uint64_t> values;
    const Fd session = Open(rank, feed);
    const int node = session.get();
    std::map<std::uint64_t, Mapping> mappings;
    const auto patience = [] { return Deadline::AfterSeconds(testing_support::kPatience_s); };
    for (;;) {
      auto message = net::ReceiveMessage(node, -1, patience());
      if (!message.ok() || !*message) {
        ADD_FAILURE() << message.status().ToString();
        return values;
      }
      const json& body = *(*message)->body;
      if (body["op"] == "end") {
        EXPECT_EQ(body["rows"], values.size());
        return values;
      }
      if (body["op"] == "segment") {
        const std::uint64_t buffer = body["buffer"];
        if (!(*message)->fds.empty())
          mappings[buffer] = *Mapping::Map((*message)->fds[0], body["bytes"], false, false);
        EXPECT_EQ(body["first_row"], values.size());
        EXPECT_EQ(body["closed"], true);
        const std::uint64_t rows = body["rows"];
        const std::size_t at = values.size();
        values.resize(at + rows);
        std::memcpy(values.data() + at,
                    mappings.at(buffer).data() + body.value("skip", 0U) * sizeof(std::uint64_t),
                    rows * sizeof(std::uint64_t));
        (void)net::SendPacket(node, {{"op", "release"}, {"segment", body["segment"]}}, {},
                              patience());
      }
      (void)net::SendPacket(node, {{"op", "get"}, {"row", values.size()}}, {}, patience());
    }
  }
  /// What it must see, by the plan.
  std::vector<std::uint64_t> Expected(std::size_t rank) const {
    const feed::Balance plan = feed::PlanBalance(wish_.rows);
    std::vector<std::uint64_t> values;
    for (std::uint64_t i = 0; i < std::min(wish_.rows[rank], plan.targets[rank]); ++i)
      values.push_back(rank * kRank + i);
    for (const feed::Move& move : plan.moves) {
      if (move.to != static_cast<int>(rank)) continue;
      for (std::uint64_t i = 0; i < move.rows; ++i)
        values.push_back(static_cast<std::uint64_t>(move.from) * kRank + move.first_row + i);
    }
    return values;
  }
  /// Spools, and checks each rank's rows and memory.
  void ExpectEven() {
    Spool();
    for (std::size_t rank = 0; rank < agents_.size(); ++rank) {
      EXPECT_EQ(Read(rank), Expected(rank)) << "rank " << rank;
      EXPECT_EQ(Failed(rank), "");
    }
    std::uint64_t given = 0;
    std::uint64_t taken = 0;
    for (std::size_t rank = 0; rank < agents_.size(); ++rank) {
      // The giver hears a little later that everything has arrived.
      EXPECT_TRUE(Eventually([&] { return Settled(rank); })) << Train(rank);
      const json train = Train(rank);
      EXPECT_EQ(train["rows"], Expected(rank).size());
      EXPECT_LE(train["peak"], wish_.pages * kPage);
      given += train["given"].get<std::uint64_t>();
      taken += train["taken"].get<std::uint64_t>();
    }
    EXPECT_EQ(given, taken);
  }
  /// No more segments than the rows need: what was given is forgotten.
  bool Settled(std::size_t rank) {
    const std::uint64_t segments = Train(rank)["segments"];
    const std::uint64_t rows = Expected(rank).size();
    return segments <= rows / wish_.segment_rows + 2 * wish_.rows.size();
  }

  std::string dir_;
  std::unique_ptr<net::Loop> loop_;
  Wish wish_;
  std::vector<std::unique_ptr<Agent>> agents_;
  int stranger_ = -1;  // has another secret
  int small_ = -1;     // has memory for two pages
  bool ending_ = false;
  bool hold_offers_ = false;
  std::vector<std::pair<int, json>> held_offers_;
  std::map<std::pair<Agent*, std::uint64_t>, Fd> memory_;  // of the feeders
};

}  // namespace arcflow::control::hand_testing
