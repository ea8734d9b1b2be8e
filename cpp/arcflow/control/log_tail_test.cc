// SPDX-License-Identifier: Apache-2.0
// Lines out of a node's output.
#include "arcflow/control/log_tail.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "arcflow/base/fd.h"

namespace arcflow::control {
namespace {

using ::testing::ElementsAre;

struct Pipe {
  Fd out;
  Fd in;
  Pipe() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    out = Fd(ends[0]);
    in = Fd(ends[1]);
  }
};

TEST(LogTailTest, KeepsTheLastLinesAcrossAnyCut) {
  LogTail::Options options;
  options.max_lines = 2;
  LogTail sut(options);
  for (const char c : std::string("one\ntwo\nthree\nfo")) sut.Feed(std::string_view(&c, 1));
  EXPECT_THAT(sut.Lines(), ElementsAre("three", "fo"));
  sut.Feed("ur\n");
  EXPECT_THAT(sut.Lines(), ElementsAre("three", "four"));
  EXPECT_EQ(sut.lines_seen(), 4u);
}

TEST(LogTailTest, KeepsNoMoreThanItsBytes) {
  LogTail::Options options;
  options.max_lines = 100;
  options.max_bytes = 10;
  LogTail sut(options);
  sut.Feed("12345\n12345\n12345\n");
  EXPECT_THAT(sut.Lines(), ElementsAre("12345", "12345"));
}

TEST(LogTailTest, ALineWithoutEndIsCutIntoLines) {
  std::size_t lines = 0;
  LogTail::Options options;
  options.on_line = [&](std::string_view line) {
    ++lines;
    EXPECT_LE(line.size(), LogTail::kMaxLine);
  };
  LogTail sut(options);
  sut.Feed(std::string(10 * LogTail::kMaxLine, 'x'));
  EXPECT_EQ(lines, 10u);
}

TEST(LogTailTest, CarriageReturnStartsTheLineAnew) {
  LogTail sut({});
  sut.Feed("1/3 [=  ]\r2/3 [== ]\r3/3 [===]\ndos\r\n");
  EXPECT_THAT(sut.Lines(), ElementsAre("3/3 [===]", "dos"));
}

TEST(LogTailTest, DrainTellsTheEnd) {
  Pipe pipe;
  LogTail sut({});
  EXPECT_TRUE(sut.Drain(pipe.out.get()));
  ASSERT_EQ(::write(pipe.in.get(), "a\nb", 3), 3);
  EXPECT_TRUE(sut.Drain(pipe.out.get()));
  pipe.in.reset();
  EXPECT_FALSE(sut.Drain(pipe.out.get()));
  sut.Finish();
  EXPECT_THAT(sut.Lines(), ElementsAre("a", "b"));
}

TEST(LogTailTest, CopiesWithPrefix) {
  Pipe pipe;
  LogTail::Options options;
  options.copy_fd = pipe.in.get();
  options.copy_prefix = "[0] ";
  LogTail sut(options);
  sut.Feed("one\ntwo\n");
  char buffer[64] = {};
  ASSERT_GT(::read(pipe.out.get(), buffer, sizeof buffer), 0);
  EXPECT_STREQ(buffer, "[0] one\n[0] two\n");
}

TEST(LogTailTest, AReaderThatDoesNotReadNeverBlocksIt) {
  Pipe pipe;
  ASSERT_EQ(::fcntl(pipe.in.get(), F_SETFL, 0), 0);  // blocking, as a real stderr is
  LogTail::Options options;
  options.copy_fd = pipe.in.get();
  LogTail sut(options);
  const std::string line(1000, 'x');
  for (int i = 0; i < 1000; ++i) sut.Feed(line + "\n");
  EXPECT_GT(sut.copy_dropped(), 0u);
  EXPECT_EQ(sut.lines_seen(), 1000u);
}

}  // namespace
}  // namespace arcflow::control
