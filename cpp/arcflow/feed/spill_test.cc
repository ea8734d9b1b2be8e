// SPDX-License-Identifier: Apache-2.0
// Tests of SpillToDisk: content, read-only descriptors, no names left, and every way in which disks
// fail.
#include "arcflow/feed/spill.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "arcflow/base/mapping.h"

namespace arcflow::feed {
namespace {

using ::testing::HasSubstr;

class SpillTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string path = ::testing::TempDir() + "/arcflow-spill-test-XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    dir_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  static Fd Memory(std::size_t bytes) {
    Result<Fd> fd = CreateMemfd("spill-test", bytes);
    EXPECT_TRUE(fd.ok());
    Result<Mapping> map = Mapping::Map(*fd, bytes, true, false);
    EXPECT_TRUE(map.ok());
    for (std::size_t i = 0; i < bytes; ++i)
      map->data()[i] = static_cast<std::byte>(i * 31 + i / 4096);
    return std::move(*fd);
  }

  std::string dir_;
};

TEST_F(SpillTest, FileHoldsTheSameBytesReadOnlyAndHasNoName) {
  constexpr std::size_t kBytes = 3 * 1024 * 1024 + 4096;
  const Fd memory = Memory(kBytes);
  Result<Fd> file = SpillToDisk({dir_}, memory, kBytes);
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  EXPECT_EQ(*ReadAllBytes(*file, kBytes), *ReadAllBytes(memory, kBytes));
  EXPECT_TRUE(std::filesystem::is_empty(dir_));
  EXPECT_EQ(::fcntl(file->get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_FALSE(Mapping::Map(*file, kBytes, true, false).ok()) << "no writable mapping";
  EXPECT_NE(::fcntl(file->get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(SpillTest, FileSystemThatTakesNoFilesIsNamedInTheError) {
  // procfs and sysfs refuse O_TMPFILE and files alike; the fallback's error must name what it
  // tried.
  const Fd memory = Memory(4096);
  const Result<Fd> file = SpillToDisk({"/proc/self"}, memory, 4096);
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("/proc/self"));
}

TEST_F(SpillTest, NextDirectoryIsTakenWhenOneIsBroken) {
  const Fd memory = Memory(4096);
  EXPECT_TRUE(SpillToDisk({dir_ + "/missing", dir_}, memory, 4096).ok());
}

TEST_F(SpillTest, ErrorNamesEveryDirectoryAndReason) {
  const Fd memory = Memory(4096);
  const Result<Fd> file = SpillToDisk({dir_ + "/one", dir_ + "/two"}, memory, 4096);
  ASSERT_FALSE(file.ok());
  const std::string message(file.status().message());
  EXPECT_THAT(message, HasSubstr(dir_ + "/one"));
  EXPECT_THAT(message, HasSubstr(dir_ + "/two"));
  EXPECT_THAT(message, HasSubstr("No such file"));
}

TEST_F(SpillTest, NoDirectoryIsAnErrorThatNamesTheSetting) {
  const Fd memory = Memory(4096);
  const Result<Fd> file = SpillToDisk({}, memory, 4096);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), Code::kFailedPrecondition);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("spark.local.dir"));
}

TEST_F(SpillTest, FullDiskIsResourceExhaustedWithThePath) {
  const Fd memory = Memory(256 * 1024);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{64 * 1024, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Result<Fd> file = SpillToDisk({dir_}, memory, 256 * 1024);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), Code::kResourceExhausted);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(dir_));
  EXPECT_TRUE(std::filesystem::is_empty(dir_)) << "nothing is left";
}

TEST_F(SpillTest, FileSizeSignalIsHandledAsBeforeAfterwards) {
  sigset_t before, after, pending;
  ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, nullptr, &before), 0);
  ASSERT_TRUE(SpillToDisk({dir_}, Memory(4096), 4096).ok());
  ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, nullptr, &after), 0);
  ASSERT_EQ(::sigpending(&pending), 0);
  EXPECT_EQ(sigismember(&before, SIGXFSZ), sigismember(&after, SIGXFSZ));
  EXPECT_EQ(sigismember(&pending, SIGXFSZ), 0);
}

TEST_F(SpillTest, ProcessOutOfDescriptorsIsAnErrorThatSaysSo) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "UBSan's vptr check needs descriptors of its own, and reports without them";
#endif
  const Fd memory = Memory(4096);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{3, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const Result<Fd> file = SpillToDisk({dir_}, memory, 4096);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("Too many open files"));
}

TEST_F(SpillTest, MemoryThatIsTooShortIsDataLoss) {
  const Fd memory = Memory(4096);
  EXPECT_EQ(SpillToDisk({dir_}, memory, 8192).status().code(), Code::kDataLoss);
}

}  // namespace
}  // namespace arcflow::feed
