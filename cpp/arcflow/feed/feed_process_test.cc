// SPDX-License-Identifier: Apache-2.0
// Writer, agent and reader as three processes: every row of every type arrives, and a death at any
// stage is noticed and leaves nothing behind.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/feed/reader.h"
#include "arcflow/feed/rows_testing.h"
#include "arcflow/feed/service.h"
#include "arcflow/feed/writer.h"
#include "arcflow/net/packet.h"

namespace arcflow::feed {
namespace {

using namespace testing;  // NOLINT: rows_testing.h
using Json = nlohmann::json;

constexpr std::uint64_t kRows = 10000;
constexpr std::size_t kArrowBatch = 700;
constexpr std::size_t kBatch = 64;
constexpr std::size_t kSegmentBytes = 64 * 1024;
constexpr std::size_t kBudget = 1024 * 1024;

Deadline Patience() { return Deadline::AfterSeconds(60); }

// Exit codes of the children; anything else is a surprise.
enum ChildExit { kAllWell = 0, kWrongRows = 10, kGaveError = 11, kPeerGone = 12 };

/// SegmentSource over the feeder's packet socket, as control::FeederLink does it.
class SocketSource : public SegmentSource {
 public:
  explicit SocketSource(int socket) : socket_(socket) {}

  Result<Grant> Acquire(const std::string& feed, std::size_t min_bytes,
                        Deadline deadline) override {
    ARC_TRY(net::SendPacket(socket_, {{"op", "acquire"}, {"feed", feed}, {"bytes", min_bytes}}, {},
                            deadline));
    ARC_ASSIGN(auto answer, net::ReceiveMessage(socket_, -1, deadline));
    if (!answer) return Unavailable("the agent is gone");
    const Json& body = *answer->body;
    if (answer->op != "segment") {
      return Status(CodeFromName(body.value("code", "")), body.value("message", ""));
    }
    return Grant{body.at("buffer"), body.at("bytes"), body.at("create"),
                 body.value("drop", std::vector<std::uint64_t>())};
  }
  Status Publish(const std::string& feed, const Grant& grant, std::size_t rows, bool closed,
                 int fd) override {
    std::vector<int> fds;
    if (fd >= 0) fds.push_back(fd);
    return net::SendPacket(socket_,
                           {{"op", "publish"},
                            {"feed", feed},
                            {"buffer", grant.buffer},
                            {"rows", rows},
                            {"closed", closed}},
                           fds, Patience());
  }

 private:
  int socket_;
};

int ExitFor(const Status& status) {
  return status.code() == Code::kUnavailable ? kPeerGone : kGaveError;
}

/// The feeder: writes all rows; `stage(rows written)` may end the process.
int WriterMain(int socket, const std::function<void(std::uint64_t)>& stage) {
  SocketSource source(socket);
  Writer writer({"train", EveryType(), kSegmentBytes}, source);
  for (std::uint64_t row = 0; row < kRows; row += kArrowBatch) {
    stage(row);
    const auto batch = EveryTypeBatch(row, std::min<std::uint64_t>(kArrowBatch, kRows - row));
    const Status status = writer.Append(batch->type, batch->array, Patience());
    if (!status.ok()) return ExitFor(status);
  }
  if (Status status = writer.Finish(); !status.ok()) return ExitFor(status);
  if (Status status = net::SendPacket(socket, {{"op", "end"}, {"feed", "train"}}, {}, Patience());
      !status.ok()) {
    return ExitFor(status);
  }
  stage(kRows);
  char byte = 0;
  const ssize_t got = ::read(socket, &byte, 1);  // until the agent goes
  if (got == 0) return kAllWell;
  return got < 0 && errno == ECONNRESET ? kPeerGone : kGaveError;  // it left packets of ours unread
}

/// The node: `passes` over all rows; `stage(step)` may end the process.
int ReaderMain(int broker, int passes, const std::function<void(std::uint64_t)>& stage) {
  auto reader = Reader::Open(broker, {"train", kBatch, Remainder::kPad, nullptr}, Patience());
  if (!reader.ok()) return ExitFor(reader.status());
  for (int pass = 0; pass < passes; ++pass) {
    std::vector<Batch> kept;
    for (;;) {
      stage((*reader)->position());
      auto batch = (*reader)->Next(Patience());
      if (!batch.ok()) return ExitFor(batch.status());
      if (!*batch) break;
      const std::uint64_t first = (**batch).step * kBatch;
      if (!Compare(**batch, EveryType(), first).empty()) return kWrongRows;
      if (first % 1024 == 0 && kept.size() < 3) kept.push_back(std::move(**batch));
    }
    if ((*reader)->position() != (kRows + kBatch - 1) / kBatch) return kWrongRows;
    for (const Batch& b : kept) {
      if (!Compare(b, EveryType(), b.step * kBatch).empty()) return kWrongRows;
    }
    if (!(*reader)->Seek(0).ok()) return kGaveError;
  }
  return kAllWell;
}

/// The agent: a service in a poll loop. Ends when the node's socket closes; a feeder that closes
/// before its end fails the feed.
int AgentMain(int feeder, int broker, Cache cache, const std::function<void()>& stage) {
  ServiceOptions options;
  options.feeds["train"] = {EveryType(), cache};
  options.feed_memory_bytes = kBudget;
  options.segment_bytes = kSegmentBytes;
  options.local_dirs = {"/tmp"};
  FeedService service(
      options, {[&](const Json& packet) { (void)net::SendPacket(feeder, packet, {}, Patience()); },
                [](const std::string&) {}});
  const Deadline at_once = Deadline::After(std::chrono::nanoseconds(0));
  std::set<int> readers;
  bool feeder_open = true;
  for (;;) {
    stage();
    std::vector<pollfd> fds{{broker, POLLIN, 0}, {feeder_open ? feeder : -1, POLLIN, 0}};
    for (int fd : readers) fds.push_back({fd, POLLIN, 0});
    if (::poll(fds.data(), fds.size(), 30000) <= 0) return kGaveError;
    if (fds[1].revents != 0) {
      auto message = net::ReceiveMessage(feeder, -1, at_once);
      if (!message.ok() || !*message) {
        feeder_open = false;
        if (!service.Local("train").ended) service.Fail(Unavailable("the feeder is gone"));
      } else if (!service.OnFeederPacket(*(**message).body, std::move((**message).fds)).ok()) {
        return kGaveError;
      }
    }
    for (std::size_t i = 2; i < fds.size(); ++i) {
      if (fds[i].revents != 0 && !service.OnReaderReadable(fds[i].fd)) readers.erase(fds[i].fd);
    }
    if (fds[0].revents == 0) continue;
    auto message = net::ReceiveMessage(broker, -1, at_once);
    if (!message.ok() || !*message) {
      return service.Stats()["peak_buffers_bytes"].get<std::size_t>() <= kBudget ? kAllWell
                                                                                 : kGaveError;
    }
    auto added =
        service.AddReader((**message).body->value("feed", ""), std::move((**message).fds.at(0)));
    if (added.ok()) readers.insert(*added);
  }
}

/// Names in a folder, for comparing before and after.
std::multiset<std::string> Names(const char* folder) {
  std::multiset<std::string> names;
  DIR* dir = ::opendir(folder);
  while (const dirent* entry = ::readdir(dir)) names.insert(entry->d_name);
  ::closedir(dir);
  return names;
}

[[noreturn]] void Die() {
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

struct Stages {
  std::function<void(std::uint64_t)> writer = [](std::uint64_t) {};
  std::function<void(std::uint64_t)> reader = [](std::uint64_t) {};
  std::function<void()> agent = [] {};
};

struct Outcome {
  int writer = -1;
  int agent = -1;
  int reader = -1;
};

/// What waitpid says: the exit code, or 128 plus the signal.
int Reap(pid_t pid) {
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Outcome RunThree(Cache cache, const Stages& stages) {
  const auto fds_before = Names("/proc/self/fd").size();
  const auto shm_before = Names("/dev/shm");
  Outcome outcome;
  {
    auto feeder = net::PacketPair();
    auto broker = net::PacketPair();
    EXPECT_TRUE(feeder.ok() && broker.ok());
    const auto start = [&](const std::function<int()>& body) {
      const pid_t pid = ::fork();
      if (pid == 0) {
        ::alarm(100);
        ::_exit(body());
      }
      return pid;
    };
    const pid_t agent = start([&] {
      feeder->first.reset();
      broker->first.reset();
      return AgentMain(feeder->second.get(), broker->second.get(), cache, stages.agent);
    });
    const pid_t writer = start([&] {
      feeder->second.reset();
      broker->first.reset();
      broker->second.reset();
      return WriterMain(feeder->first.get(), stages.writer);
    });
    const pid_t reader = start([&] {
      feeder->first.reset();
      feeder->second.reset();
      broker->second.reset();
      // Without a cache rows may be read once.
      return ReaderMain(broker->first.get(), cache == Cache::kNone ? 1 : 2, stages.reader);
    });
    *feeder = {};
    *broker = {};
    outcome = {Reap(writer), Reap(agent), Reap(reader)};
  }
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
  EXPECT_EQ(Names("/proc/self/fd").size(), fds_before);
  EXPECT_EQ(Names("/dev/shm"), shm_before);
  return outcome;
}

class FeedProcessTest : public ::testing::TestWithParam<Cache> {};

TEST_P(FeedProcessTest, EveryRowOfEveryTypeArrivesInEveryPass) {
  const Outcome outcome = RunThree(GetParam(), {});
  EXPECT_EQ(outcome.reader, kAllWell);
  EXPECT_EQ(outcome.writer, kAllWell);
  EXPECT_EQ(outcome.agent, kAllWell);
}

INSTANTIATE_TEST_SUITE_P(Caches, FeedProcessTest,
                         ::testing::Values(Cache::kAuto, Cache::kDisk, Cache::kNone));

TEST(FeedDeathTest, ReaderNoticesADeadWriterAtAnyStage) {
  for (std::uint64_t stage :
       {std::uint64_t{0}, std::uint64_t{kArrowBatch}, std::uint64_t{7 * kArrowBatch}}) {
    Stages stages;
    stages.writer = [stage](std::uint64_t row) {
      if (row == stage) Die();
    };
    const Outcome outcome = RunThree(Cache::kAuto, stages);
    EXPECT_EQ(outcome.writer, 128 + SIGKILL);
    EXPECT_EQ(outcome.reader, kPeerGone) << "stage " << stage;
    EXPECT_EQ(outcome.agent, kAllWell);
  }
}

TEST(FeedDeathTest, ADeadWriterAfterTheEndLosesNoRow) {
  Stages stages;
  stages.writer = [](std::uint64_t row) {
    if (row == kRows) Die();
  };
  const Outcome outcome = RunThree(Cache::kAuto, stages);
  EXPECT_EQ(outcome.reader, kAllWell);
  EXPECT_EQ(outcome.agent, kAllWell);
}

TEST(FeedDeathTest, AgentNoticesADeadReaderAtAnyStage) {
  for (std::uint64_t stage :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{20}, std::uint64_t{156}}) {
    Stages stages;
    stages.reader = [stage](std::uint64_t step) {
      if (step == stage) Die();
    };
    const Outcome outcome = RunThree(Cache::kAuto, stages);
    EXPECT_EQ(outcome.reader, 128 + SIGKILL);
    EXPECT_EQ(outcome.agent, kAllWell) << "stage " << stage;
    // The writer is done, or noticed that the agent went.
    EXPECT_TRUE(outcome.writer == kAllWell || outcome.writer == kPeerGone) << outcome.writer;
  }
}

TEST(FeedDeathTest, BothSidesNoticeADeadAgentAtAnyStage) {
  for (int stage : {0, 1, 5, 60}) {
    Stages stages;
    stages.agent = [stage, turns = 0]() mutable {
      if (turns++ == stage) Die();
    };
    const Outcome outcome = RunThree(Cache::kAuto, stages);
    EXPECT_EQ(outcome.agent, 128 + SIGKILL);
    EXPECT_EQ(outcome.reader, kPeerGone) << "stage " << stage;
    EXPECT_TRUE(outcome.writer == kAllWell || outcome.writer == kPeerGone) << outcome.writer;
  }
}

}  // namespace
}  // namespace arcflow::feed
