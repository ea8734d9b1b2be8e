// SPDX-License-Identifier: Apache-2.0
// Tests of SideServer with real sockets: who gets in, which attempts' rows count, and what is left
// when a task goes away.
#include "arcflow/control/side_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/control/control_testing.h"
#include "arcflow/control/packets.h"
#include "arcflow/control/remote_link.h"
#include "arcflow/control/remote_server.h"
#include "arcflow/control/side_link.h"

namespace arcflow::control {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using testing_support::Eventually;
using testing_support::Patience;
using testing_support::Secret;

constexpr std::size_t kPage = 4096;

columnar::Schema OneColumn(const std::string& name = "x") {
  columnar::Schema schema;
  schema.columns.push_back({name, columnar::DType::kInt64, columnar::Source::kScalar, {}});
  return schema;
}

/// How a task reaches the agent.
enum class Road { kSocket, kTcp, kTls };

class SideServerTest : public ::testing::TestWithParam<Road> {
 protected:
  void SetUp() override {
    loop_ = std::move(*net::Loop::Create());
    ASSERT_TRUE(loop_->StartThread().ok());
    OnLoop([this] {
      feed::ServiceOptions options;
      options.feed_memory_bytes = 4096 * kPage;
      options.local_dirs = {::testing::TempDir()};
      service_ = std::make_unique<feed::FeedService>(
          options, feed::FeedService::Callbacks{
                       [this](const json& packet) { server_->Route(packet); }, nullptr});
      SideServer::Options side;
      side.run_id = "test";
      side.secret = Secret();
      side.jvm_pid = ::getpid();
      side.feed_memory_bytes = options.feed_memory_bytes;
      auto server = SideServer::Listen(*loop_, side, *service_,
                                       {[this](const json& m) { Hear(m); },
                                        [](const std::string&, const feed::FeedOptions&) {}});
      ASSERT_TRUE(server.ok()) << server.status().ToString();
      server_ = std::move(*server);
      RemoteServer::Options remote;
      remote.channel = RemoteChannelOptions(Secret(), GetParam() == Road::kTls);
      remote.host = "127.0.0.1";
      remote.look_ahead_bytes = options.feed_memory_bytes / 4;
      auto listening = RemoteServer::Listen(*loop_, remote, *server_);
      ASSERT_TRUE(listening.ok()) << listening.status().ToString();
      remote_ = std::move(*listening);
    });
  }
  void TearDown() override {
    OnLoop([this] {
      remote_.reset();
      server_.reset();
      service_.reset();
    });
    loop_->Stop();
    loop_->Join();
  }

  template <typename Call>
  void OnLoop(Call call) {
    testing_support::RunOnLoop(*loop_, call);
  }
  void Hear(const json& message) {
    const std::lock_guard lock(mutex_);
    heard_.push_back(message);
  }
  std::vector<json> Heard() {
    const std::lock_guard lock(mutex_);
    return heard_;
  }
  Result<std::unique_ptr<TaskLink>> TryConnect(const std::string& secret) {
    if (GetParam() == Road::kSocket) {
      ARC_ASSIGN(std::unique_ptr<TaskLink> link,
                 SideLink::Connect(SideAddress("test", ::getpid(), 0), secret, Patience()));
      return link;
    }
    const bool encrypt = GetParam() == Road::kTls;
    ARC_ASSIGN(std::unique_ptr<TaskLink> link,
               RemoteLink::Connect("127.0.0.1", remote_->port(),
                                   RemoteChannelOptions(secret, encrypt), Patience()));
    return link;
  }
  std::unique_ptr<TaskLink> Connect() {
    auto link = TryConnect(Secret());
    EXPECT_TRUE(link.ok()) << link.status().ToString();
    return link.ok() ? std::move(*link) : nullptr;
  }
  json Answer(TaskLink& link) {
    auto message = link.Receive(Patience());
    if (!message.ok() || !*message) return {{"op", "closed"}};
    return *(*message)->body;
  }
  json Attach(TaskLink& link, int partition, int attempt, const columnar::Schema& schema,
              const std::string& cache = "none") {
    const Fd document = std::move(*DocumentToMemfd("schema", schema.ToJson()));
    EXPECT_TRUE(link.Send({{"op", "attach"},
                           {"kind", "feed"},
                           {"feed", "train"},
                           {"job", "job"},
                           {"partition", partition},
                           {"attempt", attempt},
                           {"cache", cache}},
                          {document.get()})
                    .ok());
    return Answer(link);
  }
  /// An attempt that has sealed `rows` rows (one page at most).
  std::unique_ptr<TaskLink> Sealed(int partition, int attempt, std::size_t rows) {
    auto link = Connect();
    const json attached = Attach(*link, partition, attempt, OneColumn());
    EXPECT_EQ(attached["op"], "attached") << attached;
    const std::string stage = attached["stage"];
    auto grant = link->Acquire(stage, kPage, Patience());
    EXPECT_TRUE(grant.ok()) << grant.status().ToString();
    Fd memory;
    EXPECT_TRUE(link->memory().Create(stage, grant->buffer, grant->size_bytes, &memory).ok());
    EXPECT_TRUE(link->Publish(stage, *grant, rows, true, memory.get()).ok());
    EXPECT_TRUE(link->Send({{"op", "seal"}}, {}).ok());
    EXPECT_EQ(Answer(*link)["rows"], rows);
    return link;
  }
  /// Fills a page. The first error.
  static Status Fill(TaskLink& link, const std::string& stage) {
    ARC_ASSIGN(const auto grant, link.Acquire(stage, kPage, Patience()));
    Fd memory;
    ARC_TRY(link.memory().Create(stage, grant.buffer, grant.size_bytes, &memory).status());
    return link.Publish(stage, grant, 1, true, memory.get());
  }
  void Decide(int partition, int attempt, bool granted, bool whole = false) {
    OnLoop([&] {
      server_->OnCoordinator({{"op", "claim"},
                              {"job", "job"},
                              {"partition", partition},
                              {"attempt", attempt},
                              {"granted", granted},
                              {"whole", whole}});
    });
  }
  void Tell(const json& message) {
    OnLoop([&] { server_->OnCoordinator(message); });
  }
  std::uint64_t Rows() {
    std::uint64_t rows = 0;
    OnLoop([&] { rows = service_->Local("train").rows; });
    return rows;
  }
  /// Reads all rows of "train", which count from 1; how many they are.
  std::uint64_t Read() {
    auto pair = net::PacketPair();
    const int node = pair->first.get();
    OnLoop([&] {
      const int fd = *service_->AddReader("train", std::move(pair->second));
      (void)!loop_
          ->WatchReadable(
              fd, [this, fd] { return service_ != nullptr && service_->OnReaderReadable(fd); })
          .ok();
    });
    std::uint64_t row = 0;
    for (;;) {
      const auto message = net::ReceiveMessage(node, -1, Patience());
      if (!message.ok() || !*message) return 0;
      const json& body = *(*message)->body;
      if (body["op"] == "segment") {
        const auto mapping = Mapping::Map((*message)->fds.at(0), body["bytes"], false, false);
        for (std::uint64_t i = 0; i < body["rows"].get<std::uint64_t>(); ++i) {
          std::uint64_t value = 0;
          std::memcpy(&value, mapping->data() + 8 * i, sizeof(value));
          if (value != ++row) {
            ADD_FAILURE() << value << " instead of " << row;
            return 0;
          }
        }
      }
      if (row > 0 && row == Rows()) return row;
      (void)net::SendPacket(node, {{"op", "get"}, {"row", row}}, {}, Patience());
    }
  }
  std::uint64_t Bytes() {
    std::uint64_t bytes = 0;
    OnLoop([&] { bytes = service_->Stats()["buffers_bytes"]; });
    return bytes;
  }

  std::unique_ptr<net::Loop> loop_;
  std::unique_ptr<feed::FeedService> service_;
  std::unique_ptr<SideServer> server_;
  std::unique_ptr<RemoteServer> remote_;
  std::mutex mutex_;
  std::vector<json> heard_;
};

TEST_P(SideServerTest, WhoDoesNotKnowTheSecretIsNotHeard) {
  EXPECT_EQ(TryConnect(std::string(32, 'x')).status().code(), Code::kUnauthenticated);
  EXPECT_EQ(
      SideLink::Connect(SideAddress("other", ::getpid(), 0), Secret(), Patience()).status().code(),
      Code::kNotFound);
}

TEST_P(SideServerTest, RowsCountWhenTheClaimIsGranted) {
  auto link = Sealed(0, 1, 10);
  EXPECT_EQ(Rows(), 0u);
  ASSERT_TRUE(link->Send({{"op", "claim"}, {"ranks", {0}}}, {}).ok());
  ASSERT_TRUE(Eventually([&] { return !Heard().empty(); }));
  EXPECT_EQ(Heard()[0]["partition"], 0);
  Decide(0, 1, true);
  EXPECT_EQ(Answer(*link)["granted"], true);
  EXPECT_EQ(Rows(), 10u);
}

TEST_P(SideServerTest, ATaskThatDiesAfterSealingStillCountsAndBeforeItDoesNot) {
  Sealed(0, 1, 10).reset();
  Decide(0, 1, true);
  EXPECT_EQ(Rows(), 10u);
  auto link = Connect();
  const std::string stage = Attach(*link, 1, 2, OneColumn())["stage"];
  ASSERT_TRUE(Fill(*link, stage).ok());
  EXPECT_TRUE(Eventually([&] { return Bytes() == 2 * kPage; }));
  link.reset();
  EXPECT_TRUE(Eventually([&] { return Bytes() == kPage; }));
  EXPECT_EQ(Rows(), 10u);
}

TEST_P(SideServerTest, OfTwoAttemptsOneCounts) {
  auto first = Sealed(0, 1, 10);
  auto second = Sealed(0, 2, 10);
  Decide(0, 2, true);
  Decide(0, 1, false);
  EXPECT_EQ(Answer(*second)["granted"], true);
  EXPECT_EQ(Answer(*first)["granted"], false);
  EXPECT_EQ(Rows(), 10u);
  EXPECT_EQ(Bytes(), kPage);
}

TEST_P(SideServerTest, AWholeJobIsPublishedInOrderOrNotAtAll) {
  auto second = Sealed(1, 1, 20);
  auto first = Sealed(0, 2, 10);
  Decide(1, 1, true, true);
  Decide(0, 2, true, true);
  EXPECT_EQ(Rows(), 0u);
  Tell({{"op", "side"}, {"act", "publish"}, {"job", "job"}});
  EXPECT_EQ(Rows(), 30u);
  auto late = Sealed(2, 3, 5);
  Decide(2, 3, true, true);
  Tell({{"op", "side"}, {"act", "over"}, {"job", "job"}});
  Tell({{"op", "side"}, {"act", "publish"}, {"job", "job"}});
  EXPECT_EQ(Rows(), 30u);
  EXPECT_EQ(Bytes(), 2 * kPage);
}

TEST_P(SideServerTest, AnotherSchemaIsRefused) {
  auto first = Connect();
  EXPECT_EQ(Attach(*first, 0, 1, OneColumn())["op"], "attached");
  auto second = Connect();
  const json refused = Attach(*second, 1, 2, OneColumn("y"));
  EXPECT_EQ(refused["code"], "INVALID_ARGUMENT");
  EXPECT_THAT(refused["message"].get<std::string>(), HasSubstr("another schema"));
}

TEST_P(SideServerTest, AnEndedRunTakesNobody) {
  Tell({{"op", "side"}, {"act", "end_all"}});
  auto link = Connect();
  EXPECT_EQ(Attach(*link, 0, 1, OneColumn())["code"], "FAILED_PRECONDITION");
}

TEST_P(SideServerTest, ANodeThatHasEndedIsEnough) {
  auto open = Connect();
  const std::string stage = Attach(*open, 0, 1, OneColumn())["stage"];
  OnLoop([&] { server_->OnNodeEnd(); });
  Status refused = Fill(*open, stage);
  // A task of another host asks for room when it has filled a page, and hears of it in a later
  // call.
  if (refused.ok()) refused = open->Send({{"op", "seal"}}, {});
  EXPECT_EQ(refused.code(), Code::kCancelled);
  auto link = Connect();
  EXPECT_EQ(Attach(*link, 1, 2, OneColumn())["code"], "CANCELLED");
  ASSERT_FALSE(Heard().empty());
  EXPECT_EQ(Heard()[0]["op"], "enough");
}

TEST_P(SideServerTest, ABrokenPacketEndsItsTaskAlone) {
  auto good = Sealed(0, 1, 10);
  auto bad = Connect();
  ASSERT_TRUE(bad->Send({{"op", "claim"}, {"ranks", {0}}}, {}).ok());
  EXPECT_EQ(Answer(*bad)["op"], "closed");
  Decide(0, 1, true);
  EXPECT_EQ(Answer(*good)["granted"], true);
}

TEST_P(SideServerTest, WithoutAServerARequestIsRefusedAfterItsTime) {
  auto link = Connect();
  const Fd document = std::move(*DocumentToMemfd("schema", OneColumn().ToJson()));
  ASSERT_TRUE(link->Send({{"op", "attach"},
                          {"kind", "infer"},
                          {"feed", "infer"},
                          {"job", "job"},
                          {"partition", 0},
                          {"attempt", 1},
                          {"wait_s", 0.2}},
                         {document.get()})
                  .ok());
  EXPECT_THAT(Answer(*link)["message"].get<std::string>(), HasSubstr("ctx.serve"));
}

TEST_P(SideServerTest, RowsArriveAsTheyWereWrittenSegmentBySegment) {
  constexpr std::uint64_t kRows = 400'000;  // 3 MB, in segments above a chunk
  constexpr std::size_t kSegmentBytes = std::size_t{1} << 21;
  auto link = Connect();
  const std::string stage = Attach(*link, 0, 1, OneColumn())["stage"];
  std::uint64_t row = 0;
  while (row < kRows) {
    auto grant = link->Acquire(stage, kSegmentBytes, Patience());
    ASSERT_TRUE(grant.ok()) << grant.status().ToString();
    link->memory().Drop(grant->drop);
    Fd memory;
    std::byte* base = grant->create
                          ? *link->memory().Create(stage, grant->buffer, grant->size_bytes, &memory)
                          : *link->memory().Find(grant->buffer, grant->size_bytes);
    const std::uint64_t rows =
        std::min<std::uint64_t>(kRows - row, grant->size_bytes / sizeof(row));
    for (std::uint64_t i = 0; i < rows; ++i) std::memcpy(base + 8 * i, &(++row), sizeof(row));
    ASSERT_TRUE(link->Publish(stage, *grant, rows, true, memory.get()).ok());
  }
  ASSERT_TRUE(link->Send({{"op", "seal"}}, {}).ok());
  EXPECT_EQ(Answer(*link)["rows"], kRows);
  Decide(0, 1, true);
  EXPECT_EQ(Read(), kRows);
}

TEST_P(SideServerTest, ManyTasksAtOnceShareTheMemoryAndNoneIsRefused) {
  constexpr int kTasks = 12;
  constexpr int kSegments = 6;
  constexpr std::size_t kBytes = 256 * kPage;  // a sixteenth of the memory
  std::vector<std::unique_ptr<TaskLink>> links;
  std::vector<std::string> stages;
  for (int t = 0; t < kTasks; ++t) {
    links.push_back(Connect());
    stages.push_back(Attach(*links.back(), t, t + 1, OneColumn(), "auto")["stage"]);
  }
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kTasks; ++t) {
    threads.emplace_back([&, t] {
      TaskLink& link = *links[t];
      for (int i = 0; i < kSegments; ++i) {
        const auto grant = link.Acquire(stages[t], kBytes, Patience());
        ASSERT_TRUE(grant.ok()) << grant.status().ToString();
        link.memory().Drop(grant->drop);
        Fd memory;
        if (grant->create) {
          ASSERT_TRUE(
              link.memory().Create(stages[t], grant->buffer, grant->size_bytes, &memory).ok());
        }
        const Status status = link.Publish(stages[t], *grant, 10, true, memory.get());
        ASSERT_TRUE(status.ok()) << status.ToString();
      }
      const Status status = link.Send({{"op", "seal"}}, {});
      ASSERT_TRUE(status.ok()) << status.ToString();
      EXPECT_EQ(Answer(link)["rows"], 10 * kSegments);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(SideServerTest, AnswersOfAnySizeComeBackInOrder) {
  auto node = std::move(*net::PacketPair());
  OnLoop([&] { server_->AddSession(std::move(node.second)); });
  const int session = node.first.get();
  ASSERT_TRUE(net::SendPacket(session, {{"op", "server"}}, {}, Patience()).ok());
  auto link = Connect();
  const Fd document = std::move(*DocumentToMemfd("schema", OneColumn().ToJson()));
  ASSERT_TRUE(link->Send({{"op", "attach"},
                          {"kind", "infer"},
                          {"feed", "infer"},
                          {"job", "job"},
                          {"partition", 0},
                          {"attempt", 1},
                          {"wait_s", 30}},
                         {document.get()})
                  .ok());
  EXPECT_EQ(Answer(*link)["op"], "attached");
  for (const std::size_t bytes : {std::size_t{9} << 20, std::size_t{5}}) {
    ASSERT_TRUE(link->Send({{"op", "block"}}, {}).ok());
    const std::string stage = Answer(*link)["stage"];
    auto grant = link->Acquire(stage, kPage, Patience());
    ASSERT_TRUE(grant.ok());
    link->memory().Drop(grant->drop);
    Fd memory;
    ASSERT_TRUE(link->memory().Create(stage, grant->buffer, grant->size_bytes, &memory).ok());
    ASSERT_TRUE(link->Publish(stage, *grant, 3, true, memory.get()).ok());
    link->memory().DropFeed(stage);
    ASSERT_TRUE(link->Send({{"op", "serve"}}, {}).ok());
    const auto asked = net::ReceiveMessage(session, -1, Patience());
    ASSERT_TRUE(asked.ok() && *asked);
    EXPECT_EQ((*asked)->op, "serve");
    std::string wanted(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i) wanted[i] = static_cast<char>(i * 7 + (i >> 13));
    const Fd rows = std::move(*BytesToMemfd("rows", wanted));
    const json about{{"op", "rows"}, {"feed", stage}};
    ASSERT_TRUE(net::SendPacket(session, about, {rows.get()}, Patience()).ok());
    ASSERT_TRUE(net::SendPacket(session, {{"op", "served"}, {"feed", stage}}, {}, Patience()).ok());
    auto got = link->Receive(Patience());
    ASSERT_TRUE(got.ok() && *got) << got.status().ToString();
    EXPECT_EQ((*got)->op, "rows");
    ASSERT_EQ((*got)->fds.size(), 1u);
    EXPECT_TRUE(*ReadAllBytes((*got)->fds[0], kMaxResultBytes) == wanted);
    EXPECT_EQ(Answer(*link)["op"], "served");
  }
}

INSTANTIATE_TEST_SUITE_P(Roads, SideServerTest,
                         ::testing::Values(Road::kSocket, Road::kTcp, Road::kTls),
                         [](const auto& road) {
                           return std::string(road.param == Road::kSocket ? "Socket"
                                              : road.param == Road::kTcp  ? "Tcp"
                                                                          : "Tls");
                         });

}  // namespace
}  // namespace arcflow::control
