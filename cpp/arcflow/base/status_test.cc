// SPDX-License-Identifier: Apache-2.0
// Status, Result, Fd and Deadline: what the rest of the core takes for granted.
#include "arcflow/base/status.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <thread>

#include "arcflow/base/deadline.h"
#include "arcflow/base/fd.h"

namespace arcflow {
namespace {

TEST(StatusTest, DefaultIsOkAndEmpty) {
  const Status sut;
  EXPECT_TRUE(sut.ok());
  EXPECT_EQ(sut.code(), Code::kOk);
  EXPECT_EQ(sut.message(), "");
  EXPECT_EQ(sut.ToString(), "OK");
}

TEST(StatusTest, NamesOfCodesComeBack) {
  for (int i = 0; i <= 16; ++i) {
    const auto code = static_cast<Code>(i);
    EXPECT_EQ(CodeFromName(CodeName(code)), code) << i;
  }
  EXPECT_EQ(CodeName(Code::kInvalidArgument), "INVALID_ARGUMENT");
  EXPECT_EQ(CodeName(Code::kUnauthenticated), "UNAUTHENTICATED");
  EXPECT_EQ(CodeName(static_cast<Code>(99)), "UNKNOWN");
  EXPECT_EQ(CodeName(static_cast<Code>(-1)), "UNKNOWN");
  EXPECT_EQ(CodeFromName("no such"), Code::kUnknown);
}

TEST(StatusTest, CodeAndMessageAreKeptByCopies) {
  const Status sut = DataLoss("bad crc");
  const Status copy = sut;
  EXPECT_EQ(copy.code(), Code::kDataLoss);
  EXPECT_EQ(copy.message(), "bad crc");
  EXPECT_EQ(copy.ToString(), "DATA_LOSS: bad crc");
}

TEST(StatusTest, ContextGoesBeforeTheMessage) {
  EXPECT_EQ(NotFound("x").WithContext("feed train").ToString(), "NOT_FOUND: feed train: x");
  EXPECT_TRUE(Status().WithContext("feed train").ok());
}

TEST(StatusTest, ErrnoFindsItsCode) {
  EXPECT_EQ(Status::FromErrno(EINVAL, "f").code(), Code::kInvalidArgument);
  EXPECT_EQ(Status::FromErrno(EMFILE, "f").code(), Code::kResourceExhausted);
  EXPECT_EQ(Status::FromErrno(EPIPE, "f").code(), Code::kUnavailable);
  EXPECT_EQ(Status::FromErrno(ENOENT, "open /x").ToString(),
            "NOT_FOUND: open /x: No such file or directory");
  EXPECT_EQ(Status::FromErrno(12345, "f").code(), Code::kUnknown);
}

TEST(StatusTest, ResultHoldsValueOrStatus) {
  Result<std::string> value = std::string("v");
  EXPECT_TRUE(value.ok());
  EXPECT_EQ(*value, "v");
  EXPECT_TRUE(value.status().ok());
  const Result<std::string> error = Cancelled("c");
  EXPECT_FALSE(error.ok());
  EXPECT_EQ(error.status().code(), Code::kCancelled);
}

TEST(StatusTest, ResultOfAnOkStatusIsOurBugAndSaysSo) {
  const Result<int> sut = Status();
  EXPECT_FALSE(sut.ok());
  EXPECT_EQ(sut.status().code(), Code::kInternal);
}

Result<std::unique_ptr<int>> Half(int x) {
  if (x % 2 != 0) return InvalidArgument("odd");
  return std::make_unique<int>(x / 2);
}
Status Quarter(int x, int* out) {
  ARC_ASSIGN(const std::unique_ptr<int> half, Half(x));
  ARC_ASSIGN(auto quarter, Half(*half));
  ARC_TRY(Status());
  *out = *quarter;
  return Status::Ok();
}

TEST(StatusTest, MacrosPassTheFirstErrorOnAndMoveValues) {
  int out = 0;
  EXPECT_TRUE(Quarter(8, &out).ok());
  EXPECT_EQ(out, 2);
  EXPECT_EQ(Quarter(6, &out).message(), "odd");
  EXPECT_EQ(out, 2);
}

bool IsOpen(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }
Fd OpenNull() { return Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

TEST(FdTest, ClosesOnceWhenItsOwnerEnds) {
  int raw = -1;
  {
    Fd sut = OpenNull();
    raw = sut.get();
    ASSERT_TRUE(IsOpen(raw));
    Fd moved = std::move(sut);
    EXPECT_FALSE(sut.valid());  // NOLINT(bugprone-use-after-move): what is tested
    EXPECT_EQ(moved.get(), raw);
  }
  EXPECT_FALSE(IsOpen(raw));
}

TEST(FdTest, AssignmentClosesWhatWasHeld) {
  Fd sut = OpenNull();
  const int first = sut.get();
  Fd other = OpenNull();
  const int second = other.get();
  sut = std::move(other);
  EXPECT_FALSE(IsOpen(first));
  EXPECT_EQ(sut.get(), second);
}

TEST(FdTest, ReleaseGivesItUp) {
  Fd sut = OpenNull();
  const int raw = sut.release();
  EXPECT_FALSE(sut.valid());
  EXPECT_TRUE(IsOpen(raw));
  ::close(raw);
}

TEST(DeadlineTest, PollTimeoutsRoundUpAndNeverGoNegative) {
  EXPECT_EQ(Deadline::Infinite().poll_ms(), -1);
  EXPECT_EQ(Deadline::After(std::chrono::seconds(-5)).poll_ms(), 0);
  EXPECT_EQ(Deadline::After(std::chrono::hours(1'000'000)).poll_ms(), 1'000'000'000);
  const int ms = Deadline::After(std::chrono::microseconds(900)).poll_ms();
  EXPECT_GE(ms, 0);
  EXPECT_LE(ms, 1);
}

TEST(DeadlineTest, ExpiresAtItsTime) {
  EXPECT_FALSE(Deadline::Infinite().expired());
  EXPECT_FALSE(Deadline::AfterSeconds(1000).expired());
  const Deadline sut = Deadline::AfterSeconds(0.001);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_TRUE(sut.expired());
  EXPECT_EQ(sut.poll_ms(), 0);
}

TEST(DeadlineTest, SecondsTooManyForTheClockAreForEver) {
  EXPECT_TRUE(Deadline::AfterSeconds(1e300).infinite());
  EXPECT_FALSE(Deadline::After(std::chrono::nanoseconds::max()).expired());
}

}  // namespace
}  // namespace arcflow
