// SPDX-License-Identifier: Apache-2.0
// Groups of several hosts, a process for each rank: a death at any step, of any rank, is an error
// that names it to all others, and leaves nothing behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "arcflow/base/log.h"
#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/collective/wide_testing.h"

namespace arcflow::collective {
namespace {

using namespace testing;  // NOLINT: group_testing.h

Deadline Patience() { return Deadline::AfterSeconds(60); }

enum ChildExit { kAllWell = 0, kWrong = 10, kNoGroup = 11, kNamed = 12, kOtherError = 13 };

/// Where a child can be reached; goes through pipes.
struct Address {
  std::array<char, 1024> lobby{};
  std::array<char, 128> hub{};
};

struct Child {
  pid_t pid = 0;
  int hears = -1;  // we write
  int tells = -1;  // we read
  int Wait() const {
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
};

int RunChild(int rank, const std::vector<int>& hosts, int hears, int tells,
             const transport::ContextOptions& options,
             const std::function<int(Lobby&, Hub&, const WideMembership&)>& body) {
  auto hub = Hub::Listen(options.secret);
  auto lobby = Lobby::Open(options);
  if (!hub.ok() || !lobby.ok()) return kNoGroup;
  Address own;
  std::strncpy(own.lobby.data(), (*lobby)->address().c_str(), own.lobby.size() - 1);
  std::strncpy(own.hub.data(), (*hub)->address().c_str(), own.hub.size() - 1);
  if (::write(tells, &own, sizeof own) != sizeof own) return kNoGroup;
  WideMembership m{"g", rank, {}, {}, hosts};
  for (std::size_t r = 0; r < hosts.size(); ++r) {
    Address other;
    if (::read(hears, &other, sizeof other) != sizeof other) return kNoGroup;
    m.lobbies.emplace_back(other.lobby.data());
    m.hubs.emplace_back(other.hub.data());
  }
  return body(**lobby, **hub, m);
}

/// Forks a child for each rank; they meet through this process. No thread may run in it.
std::vector<Child> StartRanks(const std::vector<int>& hosts,
                              const std::function<int(Lobby&, Hub&, const WideMembership&)>& body,
                              const transport::ContextOptions& options = LoopbackOptions()) {
  std::vector<Child> children;
  for (std::size_t r = 0; r < hosts.size(); ++r) {
    int down[2], up[2];
    EXPECT_EQ(::pipe(down), 0);
    EXPECT_EQ(::pipe(up), 0);
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::alarm(100);
      for (const Child& other : children) ::close(other.hears), ::close(other.tells);
      ::close(down[1]);
      ::close(up[0]);
      ::_exit(RunChild(static_cast<int>(r), hosts, down[0], up[1], options, body));
    }
    ::close(down[0]);
    ::close(up[1]);
    children.push_back({pid, down[1], up[0]});
  }
  std::vector<Address> all(children.size());
  for (std::size_t r = 0; r < children.size(); ++r) {
    EXPECT_EQ(::read(children[r].tells, &all[r], sizeof(Address)),
              static_cast<ssize_t>(sizeof(Address)));
  }
  for (const Child& child : children) {
    const std::size_t bytes = all.size() * sizeof(Address);
    EXPECT_EQ(::write(child.hears, all.data(), bytes), static_cast<ssize_t>(bytes));
    ::close(child.hears);
    ::close(child.tells);
  }
  return children;
}

/// `steps` all-reduces of a small and a large vector; `victim`: whom an error has to name.
int Reduce(Engine& engine, int steps, int victim) {
  for (int step = 0; step < steps; ++step) {
    for (const std::size_t count : {std::size_t{100}, std::size_t{300'000}}) {
      const auto in = InputOf<float>(engine.rank(), count, step);
      std::vector<float> out(count);
      Operation operation = AddFloats(count, in, out);
      operation.deadline = Patience();
      const Status status = engine.Run(std::move(operation));
      if (!status.ok()) {
        Log(LogLevel::kInfo, status.ToString());
        const bool named =
            status.message().find("rank " + std::to_string(victim) + " ") != std::string_view::npos;
        return status.code() == Code::kUnavailable && named ? kNamed : kOtherError;
      }
      if (out != SumOf(engine.ranks(), count, step)) return kWrong;
    }
  }
  return kAllWell;
}

/// Children that leave together: one that goes while others still work is a death to them.
class Leaving {
 public:
  Leaving() {
    EXPECT_EQ(::pipe(ended_), 0);
    EXPECT_EQ(::pipe(leave_), 0);
  }
  ~Leaving() {
    for (const int fd : {ended_[0], ended_[1], leave_[0]}) ::close(fd);
  }
  Leaving(const Leaving&) = delete;
  Leaving& operator=(const Leaving&) = delete;

  /// In a child, at its end.
  void Await() {
    char byte = 0;
    ::close(leave_[1]);
    (void)!::write(ended_[1], &byte, 1);
    (void)!::read(leave_[0], &byte, 1);
  }
  /// In the parent: waits until so many have come to their ends, and lets them go.
  void LetGo(std::size_t children) {
    char byte = 0;
    for (std::size_t i = 0; i < children; ++i) EXPECT_EQ(::read(ended_[0], &byte, 1), 1);
    ::close(leave_[1]);
  }

 private:
  int ended_[2];
  int leave_[2];
};

TEST(WideProcessTest, ProcessesReduceTogether) {
  for (const std::vector<int>& hosts :
       {std::vector<int>{0, 1}, std::vector<int>{0, 0, 1, 1}, std::vector<int>{0, 1, 2, 1}}) {
    Leaving leaving;
    const auto children = StartRanks(hosts, [&](Lobby& lobby, Hub& hub, const auto& m) {
      auto engine = lobby.Join(hub, m, Patience());
      const int code = engine.ok() ? Reduce(**engine, 5, -1) : static_cast<int>(kNoGroup);
      leaving.Await();
      return code;
    });
    leaving.LetGo(hosts.size());
    for (const Child& child : children) EXPECT_EQ(child.Wait(), kAllWell);
  }
}

std::atomic<int> g_countdown{0};
std::atomic<Moment> g_moment{};
void KillSelf(Moment moment) {
  if (moment == g_moment.load() && --g_countdown == 0) ::raise(SIGKILL);
}

using Case = std::tuple<int, Moment>;
class WideKilledTest : public ::testing::TestWithParam<Case> {};
std::string StepName(const ::testing::TestParamInfo<Case>& one) {
  const char* const moments[] = {"Arrived", "Ordered",   "Started", "Turned",
                                 "Ended",   "Published", "Finished"};
  return "Rank" + std::to_string(std::get<0>(one.param)) +
         moments[static_cast<int>(std::get<1>(one.param))];
}
const auto kVictims = testing_support::UnlessThreadSanitizer<std::vector<int>>({0, 1, 3}, {1});
INSTANTIATE_TEST_SUITE_P(Steps, WideKilledTest,
                         ::testing::Combine(::testing::ValuesIn(kVictims),
                                            ::testing::Values(Moment::kArrived, Moment::kOrdered,
                                                              Moment::kFilled, Moment::kReduced,
                                                              Moment::kDrained, Moment::kPublished,
                                                              Moment::kFinished)),
                         StepName);

TEST_P(WideKilledTest, OthersAreToldWho) {
  const auto [victim, moment] = GetParam();
  const std::vector<int> hosts = {0, 0, 1, 1};
  Leaving leaving;
  const auto children = StartRanks(hosts, [&, victim = victim, moment = moment](
                                              Lobby& lobby, Hub& hub, const WideMembership& m) {
    if (m.rank == victim) {
      g_moment = moment;
      g_countdown = 3;
      lobby.SetProbe(&KillSelf);
    }
    auto engine = lobby.Join(hub, m, Patience());
    const int code = engine.ok() ? Reduce(**engine, 100000, victim) : static_cast<int>(kNoGroup);
    leaving.Await();
    return code;
  });
  leaving.LetGo(hosts.size() - 1);
  for (int r = 0; r < 4; ++r) {
    EXPECT_EQ(children[static_cast<std::size_t>(r)].Wait(), r == victim ? -SIGKILL : kNamed)
        << "rank " << r;
  }
}

TEST(WideProcessTest, ADeathEndsAnIdleGroup) {
  const auto children = StartRanks({0, 1, 2}, [](Lobby& lobby, Hub& hub, const WideMembership& m) {
    auto engine = lobby.Join(hub, m, Patience());
    if (!engine.ok()) return static_cast<int>(kNoGroup);
    // A rank that dies before all have joined ends their joining instead.
    if (const int code = Reduce(**engine, 1, 1); code != kAllWell) return code;
    if (m.rank == 1) ::raise(SIGKILL);
    while ((*engine)->failure().ok()) ::usleep(1000);  // alarm() is the watchdog
    return (*engine)->failure().code() == Code::kUnavailable ? static_cast<int>(kNamed)
                                                             : static_cast<int>(kOtherError);
  });
  EXPECT_EQ(children[0].Wait(), kNamed);
  EXPECT_EQ(children[1].Wait(), -SIGKILL);
  EXPECT_EQ(children[2].Wait(), kNamed);
}

/// As a host that is cut off: nothing closes its connections.
TEST(WideProcessTest, AProcessThatIsStoppedCountsAsDeadAfterTheSilenceLimit) {
  transport::ContextOptions options = LoopbackOptions();
  options.silence_limit = std::chrono::milliseconds(800);
  const auto children = StartRanks(
      {0, 1, 2},
      [](Lobby& lobby, Hub& hub, const WideMembership& m) {
        auto engine = lobby.Join(hub, m, Patience());
        if (!engine.ok()) return static_cast<int>(kNoGroup);
        const int code = Reduce(**engine, 2, 2);
        if (code != kAllWell) return code;
        if (m.rank == 2) ::raise(SIGSTOP);
        return Reduce(**engine, 100000, 2);
      },
      options);
  EXPECT_EQ(children[0].Wait(), kNamed);
  EXPECT_EQ(children[1].Wait(), kNamed);
  ::kill(children[2].pid, SIGKILL);
  EXPECT_EQ(children[2].Wait(), -SIGKILL);
}

}  // namespace
}  // namespace arcflow::collective
