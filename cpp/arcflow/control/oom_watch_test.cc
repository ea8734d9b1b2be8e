// SPDX-License-Identifier: Apache-2.0
// Memory cgroups of both versions in a tree of files, and a real kill where this machine allows
// one.
#include "arcflow/control/oom_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace arcflow::control {
namespace {

using ::testing::HasSubstr;

class OomWatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "arcflow_oom_" + std::to_string(::getpid());
    paths_ = {root_ + "/proc", root_ + "/cg"};
    Write("proc/vmstat", "pgfault 5\noom_kill 0\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = root_ + "/" + name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  std::string root_;
  OomPaths paths_;
};

TEST_F(OomWatchTest, VersionTwoCountsInMemoryEvents) {
  Write("proc/self/cgroup", "0::/kube/pod7\n");
  Write("cg/kube/memory.max", "1073741824\n");
  Write("cg/kube/memory.events", "oom 0\noom_kill 9\n");
  Write("cg/kube/pod7/memory.max", "max\n");
  Write("cg/kube/pod7/memory.events", "low 0\noom 0\noom_kill 2\n");
  const OomWatch sut(0, paths_);
  EXPECT_EQ(sut.cgroup().limit_bytes, 1073741824u);  // of the parent: it is the one that binds
  EXPECT_EQ(sut.Happened(), "");
  Write("cg/kube/pod7/memory.events", "low 0\noom 3\noom_kill 3\n");
  EXPECT_THAT(sut.Happened(), HasSubstr("cgroup /kube/pod7 reached its memory limit of 1 GiB"));
}

TEST_F(OomWatchTest, VersionOneCountsInOomControl) {
  Write("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/yarn/c1\n0::/\n");
  Write("cg/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("cg/memory/yarn/c1/memory.limit_in_bytes", "536870912\n");
  Write("cg/memory/yarn/c1/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
  const OomWatch sut(0, paths_);
  EXPECT_EQ(sut.Happened(), "");
  Write("cg/memory/yarn/c1/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
  EXPECT_THAT(sut.Happened(), HasSubstr("cgroup /yarn/c1 reached its memory limit of 512 MiB"));
}

TEST_F(OomWatchTest, AContainerSeesItsGroupAtTheRootOfTheMount) {
  Write("proc/self/cgroup", "4:memory:/docker/abc\n");
  Write("cg/memory/memory.oom_control", "oom_kill 0\n");
  Write("cg/memory/memory.limit_in_bytes", "67108864\n");
  const OomWatch sut(0, paths_);
  EXPECT_EQ(sut.cgroup().limit_bytes, 67108864u);
}

TEST_F(OomWatchTest, WithoutAVisibleGroupTheHostsCounterIsAHint) {
  Write("proc/self/cgroup", "0::/somewhere/else\n");
  const OomWatch sut(0, paths_);
  Write("proc/vmstat", "oom_kill 1\n");
  EXPECT_THAT(sut.Happened(), HasSubstr("on this host just then"));
}

TEST_F(OomWatchTest, AKillElsewhereOnTheHostIsNotOurs) {
  Write("proc/self/cgroup", "0::/kube/pod7\n");
  Write("cg/kube/pod7/memory.events", "oom 0\noom_kill 2\n");
  const OomWatch sut(0, paths_);
  Write("proc/vmstat", "oom_kill 1\n");
  EXPECT_EQ(sut.Happened(), "");
}

TEST_F(OomWatchTest, AGroupThatMayBeAnotherLeavesTheHostsCounterAsAHint) {
  Write("proc/self/cgroup", "4:memory:/docker/abc\n");
  Write("cg/memory/memory.oom_control", "oom_kill 0\n");
  const OomWatch sut(0, paths_);
  Write("proc/vmstat", "oom_kill 1\n");
  EXPECT_THAT(sut.Happened(), HasSubstr("on this host just then"));
}

TEST_F(OomWatchTest, NoFilesAtAllIsNoError) {
  const OomWatch sut(0, {"/no/such", "/no/such"});
  EXPECT_EQ(sut.Happened(), "");
}

TEST(OomWatchRealTest, TheKernelsKillIsSeen) {
  const std::string folder = "/sys/fs/cgroup/memory/arcflow_test_" + std::to_string(::getpid());
  std::error_code error;
  if (!std::filesystem::create_directory(folder, error)) {
    GTEST_SKIP() << "no memory cgroup of version 1 can be made here: " << error.message();
  }
  std::ofstream(folder + "/memory.limit_in_bytes") << (32 << 20);
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char go = 0;
    (void)!::read(ready[0], &go, 1);
    for (;;) {  // until the kernel has had enough
      auto* bytes = static_cast<volatile char*>(std::malloc(1 << 20));
      for (int i = 0; i < (1 << 20); i += 4096) bytes[i] = 1;
    }
  }
  std::ofstream(folder + "/cgroup.procs") << child;
  {
    const OomWatch sut(child);
    EXPECT_EQ(sut.Happened(), "");
    ASSERT_EQ(::write(ready[1], "g", 1), 1);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_THAT(sut.Happened(), HasSubstr("memory limit of 32 MiB"));
  }
  ::close(ready[0]);
  ::close(ready[1]);
  std::filesystem::remove(folder, error);
}

}  // namespace
}  // namespace arcflow::control
