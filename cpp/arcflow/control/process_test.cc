// SPDX-License-Identifier: Apache-2.0
// Children: how they start, how their end is told, and that nothing of them is left.
#include "arcflow/control/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>

#include "arcflow/control/control_testing.h"

namespace arcflow::control {
namespace {

using testing_support::Eventually;
using testing_support::Mark;
using testing_support::Patience;

SpawnOptions Shell(const std::string& script) {
  SpawnOptions options;
  options.file = "/bin/sh";
  options.argv = {"sh", "-c", script};
  options.env = EnvironmentWith({}, {});
  return options;
}

TEST(ProcessTest, ExitCodeIsTold) {
  auto sut = ChildProcess::Spawn(Shell("exit 3"));
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  const auto end = sut->Wait(Patience());
  ASSERT_TRUE(end);
  EXPECT_EQ(end->exit_code, 3);
  EXPECT_EQ(end->signal, 0);
  EXPECT_EQ(end->ToString(), "exit code 3");
}

TEST(ProcessTest, SignalIsTold) {
  auto sut = ChildProcess::Spawn(Shell("kill -9 $$"));
  ASSERT_TRUE(sut.ok());
  const auto end = sut->Wait(Patience());
  ASSERT_TRUE(end);
  EXPECT_EQ(end->signal, SIGKILL);
  EXPECT_EQ(end->ToString(), "signal SIGKILL");
}

TEST(ProcessTest, WaitGivesUpAtItsDeadline) {
  auto sut = ChildProcess::Spawn(Shell("sleep 100"));
  ASSERT_TRUE(sut.ok());
  EXPECT_FALSE(sut->TryWait());
  EXPECT_FALSE(sut->Wait(Deadline::AfterSeconds(0.05)));
}

TEST(ProcessTest, MissingExecutableNamesItself) {
  SpawnOptions options = Shell("");
  options.file = "/no/such/program";
  const auto sut = ChildProcess::Spawn(options);
  ASSERT_FALSE(sut.ok());
  EXPECT_EQ(sut.status().code(), Code::kNotFound);
  EXPECT_NE(std::string(sut.status().message()).find("/no/such/program"), std::string::npos);
}

TEST(ProcessTest, MissingWorkingDirectoryNamesItself) {
  SpawnOptions options = Shell("");
  options.cwd = "/no/such/folder";
  const auto sut = ChildProcess::Spawn(options);
  ASSERT_FALSE(sut.ok());
  EXPECT_NE(std::string(sut.status().message()).find("/no/such/folder"), std::string::npos);
}

TEST(ProcessTest, DescriptorsArriveUnderTheirNumbersAndNoOthers) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd out(ends[0]);
  const Fd in(ends[1]);
  const Fd ours(::fcntl(in.get(), F_DUPFD_CLOEXEC, 77));
  SpawnOptions options =
      Shell("echo to5 >&5; echo to6 >&6; pwd >&5; for n in 64 65 " + std::to_string(ours.get()) +
            "; do [ -e /proc/$$/fd/$n ] && echo leak of $n >&5; done");
  options.cwd = "/";
  options.fds = {{in.get(), 6}, {in.get(), 5}};
  auto sut = ChildProcess::Spawn(options);
  ASSERT_TRUE(sut.ok());
  ASSERT_TRUE(sut->Wait(Patience()));
  ::fcntl(out.get(), F_SETFL, O_NONBLOCK);
  char buffer[256] = {};
  std::string text;
  for (ssize_t n; (n = ::read(out.get(), buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<std::size_t>(n));
  EXPECT_EQ(text, "to5\nto6\n/\n");
}

TEST(ProcessTest, ChildStartsWithDefaultSignalsAndItsOwnGroup) {
  sigset_t term;
  sigset_t before;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &term, &before);
  auto sut = ChildProcess::Spawn(Shell("sleep 100"));
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
  ASSERT_TRUE(sut.ok());
  EXPECT_EQ(::getpgid(sut->pid()), sut->pid());
  const ExitStatus end = sut->Stop(Patience());
  EXPECT_EQ(end.signal, SIGTERM);
}

TEST(ProcessTest, StopKillsWhatIgnoresSigterm) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const Fd out(ends[0]);
  Fd in(ends[1]);
  SpawnOptions options = Shell("trap '' TERM; echo >&5; while true; do sleep 0.05; done");
  options.fds = {{in.get(), 5}};
  auto sut = ChildProcess::Spawn(options);
  ASSERT_TRUE(sut.ok());
  char byte = 0;
  ASSERT_EQ(::read(out.get(), &byte, 1), 1);  // the trap is set
  EXPECT_EQ(sut->Stop(Deadline::AfterSeconds(0.1)).signal, SIGKILL);
}

TEST(ProcessTest, DestructorEndsTheWholeGroup) {
  const Mark mark;
  {
    auto sut = ChildProcess::Spawn(Shell("sleep 100 & sleep 100 & wait"));
    ASSERT_TRUE(sut.ok());
    ASSERT_TRUE(Eventually([&] { return mark.Processes().size() == 3; })) << mark.Describe();
  }
  EXPECT_TRUE(Eventually([&] { return mark.Processes().empty(); })) << mark.Describe();
}

TEST(ProcessTest, DaemonsThatLeftTheGroupAreFoundAndKilled) {
  const Mark mark;
  BecomeSubreaper();
  auto sut = ChildProcess::Spawn(Shell("setsid sh -c 'sleep 100 & sleep 100' & sleep 0.2"));
  ASSERT_TRUE(sut.ok());
  ASSERT_TRUE(sut->Wait(Patience()));
  EXPECT_FALSE(mark.Processes().empty());
  EXPECT_GE(KillDescendants(0, Patience()), 1);
  EXPECT_TRUE(mark.Processes().empty()) << mark.Describe();
}

TEST(ProcessTest, MarkedProcessesAreFoundWhereverTheyWent) {
  const Mark mark;
  SpawnOptions options = Shell("setsid sh -c 'setsid sleep 100 & exec sleep 100' & exit 0");
  options.env.push_back("ARC_T_MARK=me");
  auto sut = ChildProcess::Spawn(options);
  ASSERT_TRUE(sut.ok());
  ASSERT_TRUE(sut->Wait(Patience()));
  EXPECT_EQ(KillMarked("ARC_T_MARK=m", Patience()), 0);
  ASSERT_TRUE(Eventually([&] { return mark.Processes().size() == 2; })) << mark.Describe();
  EXPECT_GE(KillMarked("ARC_T_MARK=me", Patience()), 2);
  EXPECT_TRUE(mark.Processes().empty()) << mark.Describe();
  KillDescendants(0, Patience());  // this process may have become their parent
}

TEST(ProcessTest, EnvironmentDropsAndReplaces) {
  ::setenv("ARC_T_SECRET_A", "1", 1);
  ::setenv("ARC_T_KEEP", "old", 1);
  const auto sut =
      EnvironmentWith({{"ARC_T_KEEP", "new"}, {"ARC_T_MORE", "x=y"}}, {"ARC_T_SECRET"});
  const auto count = [&](const std::string& entry) {
    return std::count(sut.begin(), sut.end(), entry);
  };
  EXPECT_EQ(count("ARC_T_KEEP=new"), 1);
  EXPECT_EQ(count("ARC_T_KEEP=old"), 0);
  EXPECT_EQ(count("ARC_T_MORE=x=y"), 1);
  EXPECT_EQ(count("ARC_T_SECRET_A=1"), 0);
  ::unsetenv("ARC_T_SECRET_A");
  ::unsetenv("ARC_T_KEEP");
}

TEST(ProcessTest, PidfdOfNobodyIsNotFound) {
  auto child = ChildProcess::Spawn(Shell("exit 0"));
  ASSERT_TRUE(child.ok());
  const pid_t pid = child->pid();
  ASSERT_TRUE(child->Wait(Patience()));
  EXPECT_EQ(OpenPidfd(pid).status().code(), Code::kNotFound);
  EXPECT_EQ(ResidentBytes(pid), 0u);
  EXPECT_GT(ResidentBytes(::getpid()), 0u);
}

}  // namespace
}  // namespace arcflow::control
