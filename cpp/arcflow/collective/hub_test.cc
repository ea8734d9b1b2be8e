// SPDX-License-Identifier: Apache-2.0
// Groups of processes: they find each other, strangers do not get in, and a death at any step is
// an error for all others and leaves nothing behind.
#include "arcflow/collective/hub.h"

#include <dirent.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/log.h"
#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/collective/group_testing.h"
#include "arcflow/collective/local_socket.h"
#include "arcflow/net/packet.h"

namespace arcflow::collective {
namespace {

using namespace testing;  // NOLINT: group_testing.h
using ::testing::HasSubstr;

const std::string kSecret(32, 's');
Deadline Patience() { return Deadline::AfterSeconds(60); }

enum ChildExit { kAllWell = 0, kWrong = 10, kNoGroup = 11, kUnavailable = 12, kOtherError = 13 };

/// A forked child; ends by itself, and with the test at the latest.
struct Child {
  pid_t pid;
  int Wait() const {
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
};

/// Forks `ranks` children that join one group and call body(group); rank 0's address goes to the
/// others through a pipe. No thread may run in this process when it forks.
std::vector<Child> StartRanks(int ranks,
                              const std::function<int(Hub&, int, const std::string&)>& body) {
  int pipe_fds[2];
  EXPECT_EQ(::pipe(pipe_fds), 0);
  std::vector<Child> children;
  for (int r = 0; r < ranks; ++r) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::alarm(100);
      auto hub = Hub::Listen(kSecret);
      if (!hub.ok()) ::_exit(kNoGroup);
      char name[64] = {};
      if (r == 0) {
        std::strncpy(name, (*hub)->address().c_str(), sizeof name - 1);
        for (int i = 1; i < ranks; ++i) (void)!::write(pipe_fds[1], name, sizeof name);
      } else if (::read(pipe_fds[0], name, sizeof name) != sizeof name) {
        ::_exit(kNoGroup);
      }
      ::_exit(body(**hub, r, name));
    }
    children.push_back({pid});
  }
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
  return children;
}

int Judge(const Status& status) {
  if (status.ok()) return kAllWell;
  return status.code() == Code::kUnavailable ? kUnavailable : kOtherError;
}

/// An all-reduce whose result all ranks read in one place.
int ReduceShared(Group& group, int step) {
  constexpr std::size_t kCount = 300'000;
  const auto in = InputOf<float>(group.rank(), kCount, step);
  std::vector<float> out;
  Operation operation = AddFloats(1, in, out);
  const auto shared = group.Reserve(1, operation.what, kCount * sizeof(float));
  if (!shared) {  // as it is in a group that has failed
    std::vector<float> own(kCount);
    const int code = Judge(group.Run(AddFloats(1, in, own)));
    return code == kAllWell ? kWrong : code;
  }
  operation.out = shared->write;
  operation.result_shared = true;
  operation.deadline = Patience();
  if (const Status status = group.Run(std::move(operation)); !status.ok()) return Judge(status);
  const auto sum = SumOf(group.ranks(), kCount, step);
  return std::memcmp(shared->read.get(), sum.data(), kCount * sizeof(float)) == 0 ? kAllWell
                                                                                  : kWrong;
}

/// `steps` all-reduces of a small vector and of a large one, into memory of its own and into a
/// place for all, all values checked.
int Reduce(Group& group, int steps) {
  for (int step = 0; step < steps; ++step) {
    if (const int shared = ReduceShared(group, step); shared != kAllWell) return shared;
    for (const std::size_t count : {std::size_t{100}, std::size_t{300'000}}) {
      const auto in = InputOf<float>(group.rank(), count, step);
      std::vector<float> out(count);
      Operation operation = AddFloats(count, in, out);
      operation.deadline = Patience();
      const Status status = group.Run(std::move(operation));
      if (!status.ok()) {
        Log(LogLevel::kInfo, status.ToString());
        return Judge(status);
      }
      if (out != SumOf(group.ranks(), count, step)) return kWrong;
    }
  }
  return kAllWell;
}

int JoinAndReduce(Hub& hub, int rank, int ranks, const std::string& leader, int steps) {
  auto group = hub.Join({"g", leader, rank, ranks}, Patience());
  if (!group.ok()) return kNoGroup;
  return Reduce(**group, steps);
}

std::size_t SharedMemoryFiles() {
  std::size_t count = 0;
  DIR* folder = ::opendir("/dev/shm");
  while (folder != nullptr && ::readdir(folder) != nullptr) ++count;
  if (folder != nullptr) ::closedir(folder);
  return count;
}

TEST(HubTest, ProcessesReduceTogether) {
  for (const int ranks : {2, 4, 8}) {
    const auto children = StartRanks(ranks, [&](Hub& hub, int r, const std::string& leader) {
      auto group = hub.Join({"g", leader, r, ranks}, Patience());
      if (!group.ok()) return static_cast<int>(kNoGroup);
      const int code = Reduce(**group, 5);
      // Nobody leaves while others still work.
      std::vector<float> one(1);
      return code != kAllWell ? code : Judge((*group)->Run(AddFloats(1, one, one)));
    });
    for (const Child& child : children) EXPECT_EQ(child.Wait(), kAllWell);
  }
}

std::atomic<int> g_countdown{0};
std::atomic<Moment> g_moment{};
void KillSelf(Moment moment) {
  if (moment == g_moment.load() && --g_countdown == 0) ::raise(SIGKILL);
}

class KilledTest : public ::testing::TestWithParam<std::tuple<int, Moment>> {};
std::string StepName(const ::testing::TestParamInfo<std::tuple<int, Moment>>& one) {
  const char* const moments[] = {"Arrived", "Ordered",   "Filled",  "Reduced",
                                 "Drained", "Published", "Finished"};
  return "Rank" + std::to_string(std::get<0>(one.param)) +
         moments[static_cast<int>(std::get<1>(one.param))];
}
const auto kVictims = testing_support::UnlessThreadSanitizer<std::vector<int>>({0, 1, 2}, {1});
INSTANTIATE_TEST_SUITE_P(Steps, KilledTest,
                         ::testing::Combine(::testing::ValuesIn(kVictims),
                                            ::testing::Values(Moment::kArrived, Moment::kOrdered,
                                                              Moment::kFilled, Moment::kReduced,
                                                              Moment::kDrained, Moment::kPublished,
                                                              Moment::kFinished)),
                         StepName);

TEST_P(KilledTest, OthersGetUnavailable) {
  const auto [victim, moment] = GetParam();
  const std::size_t before = SharedMemoryFiles();
  const auto children = StartRanks(
      3, [&, victim = victim, moment = moment](Hub& hub, int r, const std::string& leader) {
        if (r == victim) {
          g_moment = moment;
          g_countdown = 3;
          hub.SetProbe(&KillSelf);
        }
        return JoinAndReduce(hub, r, 3, leader, 100000);
      });
  for (int r = 0; r < 3; ++r)
    EXPECT_EQ(children[static_cast<std::size_t>(r)].Wait(), r == victim ? -SIGKILL : kUnavailable);
  EXPECT_EQ(SharedMemoryFiles(), before);
}

TEST(HubTest, DeathAtRandomTimesIsNoticed) {
  for (int round = 0; round < 5; ++round) {
    int joined[2];
    ASSERT_EQ(::pipe(joined), 0);
    const auto children = StartRanks(2, [&](Hub& hub, int r, const std::string& leader) {
      auto group = hub.Join({"g", leader, r, 2}, Patience());
      if (!group.ok()) return static_cast<int>(kNoGroup);
      (void)!::write(joined[1], "x", 1);
      return Reduce(**group, 1000000);
    });
    ::close(joined[1]);
    char byte = 0;  // the end of the pipe, when a child could not join
    for (int r = 0; r < 2; ++r) EXPECT_EQ(::read(joined[0], &byte, 1), 1);
    ::close(joined[0]);
    ::usleep(static_cast<useconds_t>(round * 37'000));
    const auto victim = static_cast<std::size_t>(round % 2);
    ::kill(children[victim].pid, SIGKILL);
    EXPECT_EQ(children[1 - victim].Wait(), kUnavailable);
    EXPECT_EQ(children[victim].Wait(), -SIGKILL);
  }
}

TEST(HubTest, AWatchedDeathEndsAnIdleGroup) {
  const auto children = StartRanks(2, [&](Hub& hub, int r, const std::string& leader) {
    auto group = hub.Join({"g", leader, r, 2}, Patience());
    if (!group.ok()) return static_cast<int>(kNoGroup);
    // A rank that dies before all have joined ends their joining instead.
    if (const int code = Reduce(**group, 1); code != kAllWell) return code;
    if (r == 1) ::raise(SIGKILL);
    while ((*group)->failure().ok()) ::usleep(1000);  // alarm() is the watchdog
    return Judge((*group)->failure());
  });
  EXPECT_EQ(children[0].Wait(), kUnavailable);
  EXPECT_EQ(children[1].Wait(), -SIGKILL);
}

// From here on all ranks are hubs in this process.

Result<std::shared_ptr<Group>> JoinLater(Hub& hub, const std::string& leader, int rank, int ranks,
                                         double seconds) {
  return hub.Join({"g", leader, rank, ranks}, Deadline::AfterSeconds(seconds));
}

TEST(HubTest, RanksOfOneProcessJoinThroughOneHub) {
  auto hub = Hub::Listen(kSecret);
  ASSERT_TRUE(hub.ok());
  std::vector<std::shared_ptr<Group>> groups(4);
  OnEachRank(4, [&](int r) {
    auto group = JoinLater(**hub, (*hub)->address(), r, 4, 30);
    ASSERT_TRUE(group.ok()) << group.status().ToString();
    groups[static_cast<std::size_t>(r)] = *group;
    EXPECT_EQ(Reduce(**group, 3), kAllWell);
  });
}

TEST(HubTest, WhoDoesNotComeIsNamed) {
  auto hub = Hub::Listen(kSecret);
  ASSERT_TRUE(hub.ok());
  OnEachRank(2, [&](int r) {  // rank 2 stays away
    auto group = JoinLater(**hub, (*hub)->address(), r, 3, r == 0 ? 0.5 : 30);
    EXPECT_EQ(group.status().code(), r == 0 ? Code::kDeadlineExceeded : Code::kUnavailable);
    EXPECT_THAT(std::string(group.status().message()), HasSubstr("ranks 2 did not come"));
  });
}

TEST(HubTest, AGroupCanBeMadeAgain) {
  auto hub = Hub::Listen(kSecret);
  ASSERT_TRUE(hub.ok());
  for (int i = 0; i < 3; ++i) {
    std::vector<std::shared_ptr<Group>> groups(2);
    OnEachRank(2, [&](int r) {
      auto group = JoinLater(**hub, (*hub)->address(), r, 2, 30);
      ASSERT_TRUE(group.ok()) << group.status().ToString();
      groups[static_cast<std::size_t>(r)] = *group;
      EXPECT_EQ(Reduce(**group, 1), kAllWell);
    });
    groups[0]->Fail(Status(Code::kAborted, "again"));
  }
}

TEST(HubTest, ALeaderThatIsGoneIsAnErrorAtOnce) {
  std::string gone;
  {
    auto hub = Hub::Listen(kSecret);
    gone = (*hub)->address();
  }
  auto hub = Hub::Listen(kSecret);
  EXPECT_EQ(JoinLater(**hub, gone, 1, 2, 60).status().code(), Code::kUnavailable);
}

TEST(HubTest, AnotherSecretGetsNothing) {
  auto leader = Hub::Listen(kSecret);
  auto stranger = Hub::Listen(std::string(32, 'x'));
  EXPECT_EQ(JoinLater(**stranger, (*leader)->address(), 1, 2, 30).status().code(),
            Code::kUnauthenticated);
  EXPECT_FALSE(Hub::Listen("short").ok());
}

TEST(HubTest, MembershipsThatCannotBeAreRefused) {
  auto hub = Hub::Listen(kSecret);
  EXPECT_EQ(JoinLater(**hub, "x", 2, 2, 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(JoinLater(**hub, "x", 0, 1, 1).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(JoinLater(**hub, "x", 0, 100, 1).status().code(), Code::kInvalidArgument);
}

TEST(HubTest, RanksThatCountDifferentlyDoNotMeet) {
  auto hub = Hub::Listen(kSecret);
  OnEachRank(2, [&](int r) {
    auto group = JoinLater(**hub, (*hub)->address(), r, r == 0 ? 2 : 3, r == 0 ? 0.7 : 30);
    EXPECT_FALSE(group.ok());
  });
}

/// Connects, proves the secret, and says something.
std::string Say(const std::string& address, const std::string& text) {
  auto socket = ConnectAbstract(address, Patience());
  if (!socket.ok() || !ProveAsClient(*socket, kSecret, Patience()).ok()) return "no connection";
  if (::send(socket->get(), text.data(), text.size(), MSG_NOSIGNAL) < 0) return "not sent";
  auto answer = net::ReceivePacket(socket->get(), -1, Patience());
  if (!answer.ok() || !*answer) return "closed";
  return (*answer)->body;
}

TEST(HubTest, NonsenseFromAMemberIsTurnedAway) {
  auto hub = Hub::Listen(kSecret);
  const std::string address = (*hub)->address();
  EXPECT_EQ(Say(address, "{"), "closed");
  EXPECT_EQ(Say(address, "[]"), "closed");
  EXPECT_THAT(Say(address, R"({"op":"join","protocol":7})"), HasSubstr("version"));
  EXPECT_THAT(Say(address, R"({"op":"join","protocol":"1"})"), HasSubstr("version"));
  std::thread leader([&] { EXPECT_FALSE(JoinLater(**hub, address, 0, 2, 1).ok()); });
  EXPECT_THAT(Say(address, R"({"op":"join","protocol":2,"group":"g","rank":-4,"ranks":2})"),
              HasSubstr("refused"));
  EXPECT_THAT(Say(address, R"({"op":"join","protocol":2,"group":"g","rank":0,"ranks":2})"),
              HasSubstr("refused"));
  leader.join();
}

TEST(HubTest, AStrangerThatSaysNothingHoldsNobodyUp) {
  auto hub = Hub::Listen(kSecret);
  std::vector<Fd> silent;
  for (int i = 0; i < 20; ++i) {
    auto socket = ConnectAbstract((*hub)->address(), Patience());
    ASSERT_TRUE(socket.ok());
    silent.push_back(std::move(*socket));
  }
  OnEachRank(2, [&](int r) {
    auto group = JoinLater(**hub, (*hub)->address(), r, 2, 30);
    ASSERT_TRUE(group.ok());
    EXPECT_EQ(Reduce(**group, 1), kAllWell);
  });
}

TEST(HostIdentityTest, IsTheSameWithinAHost) {
  EXPECT_EQ(HostIdentity(), HostIdentity());
  EXPECT_GT(HostIdentity().size(), 30u);
}

}  // namespace
}  // namespace arcflow::collective
