// SPDX-License-Identifier: Apache-2.0
// Everything arrives; a disk that hangs costs bytes, not time.
#include "arcflow/control/log_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

#include "arcflow/control/control_testing.h"

namespace arcflow::control {
namespace {

class LogFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "arcflow_log_" + std::to_string(::getpid());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Text(const std::string& path) const {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  std::string folder_;
};

TEST_F(LogFileTest, WritesAllAndMakesFolders) {
  const std::string path = folder_ + "/run/worker-1.log";
  {
    auto sut = LogFile::Open(path);
    ASSERT_TRUE(sut.ok()) << sut.status().ToString();
    for (int i = 0; i < 1000; ++i) (*sut)->Write("line " + std::to_string(i) + "\n");
    EXPECT_EQ((*sut)->lost(), 0u);
  }
  const std::string text = Text(path);
  EXPECT_EQ(text.substr(0, 14), "line 0\nline 1\n");
  EXPECT_THAT(text, ::testing::EndsWith("line 999\n"));
  struct stat st {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0077, 0u);  // nobody else's to read
}

TEST_F(LogFileTest, NamesAFolderThatCannotBe) {
  const auto sut = LogFile::Open("/proc/no/such/folder/x.log");
  ASSERT_FALSE(sut.ok());
  EXPECT_THAT(std::string(sut.status().message()), ::testing::HasSubstr("log_dir"));
}

TEST_F(LogFileTest, AWriterThatHangsLosesBytesAndSaysSo) {
  std::filesystem::create_directories(folder_);
  const std::string path = folder_ + "/fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const Fd reader(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  auto sut = LogFile::Open(path);
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  const std::string block(1 << 20, 'x');
  for (int i = 0; i < 40; ++i) (*sut)->Write(block);  // nobody reads: never waits
  EXPECT_GT((*sut)->lost(), 0u);
  std::string got;
  std::string buffer(1 << 16, '\0');
  EXPECT_TRUE(testing_support::Eventually([&] {
    const ssize_t n = ::read(reader.get(), buffer.data(), buffer.size());
    const std::string_view missing = "bytes are missing here";
    const std::size_t from = got.size() - std::min(got.size(), missing.size());
    if (n > 0) got.append(buffer, 0, static_cast<std::size_t>(n));
    if (got.size() > (std::size_t{4} << 20)) (*sut)->Write("end\n");
    return got.find(missing, from) != std::string::npos;
  }));
}

}  // namespace
}  // namespace arcflow::control
