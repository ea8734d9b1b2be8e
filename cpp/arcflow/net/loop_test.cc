// SPDX-License-Identifier: Apache-2.0
// Loop: posted tasks, timers and watched descriptors run on one thread and stop when told.
#include "arcflow/net/loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>

#include "arcflow/base/fd.h"

namespace arcflow::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::unique_ptr<Loop> Started() {
  auto loop = Loop::Create();
  EXPECT_TRUE(loop.ok());
  EXPECT_TRUE((*loop)->StartThread().ok());
  return std::move(*loop);
}

template <typename T>
bool Ready(std::future<T>& future) {
  return future.wait_for(seconds(20)) == std::future_status::ready;
}

/// Waits until everything posted so far has run.
void Flush(Loop& loop) {
  std::promise<void> done;
  auto future = done.get_future();
  loop.Post([&] { done.set_value(); });
  ASSERT_TRUE(Ready(future));
}

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    read = Fd(ends[0]);
    write = Fd(ends[1]);
  }
  Fd read, write;
};

TEST(LoopTest, TasksRunInOrderOnTheLoopThread) {
  auto sut = Started();
  std::vector<int> seen;
  bool inside = false;
  for (int i = 0; i < 100; ++i) {
    sut->Post([&, i] {
      seen.push_back(i);
      inside = sut->in_loop_thread();
    });
  }
  Flush(*sut);
  ASSERT_EQ(seen.size(), 100u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_TRUE(inside);
  EXPECT_FALSE(sut->in_loop_thread());
}

TEST(LoopTest, PostedTaskNeverRunsInline) {
  auto sut = Started();
  bool inner = false;
  bool inner_when_posted = true;
  sut->Post([&] {
    sut->Post([&] { inner = true; });
    inner_when_posted = inner;
  });
  Flush(*sut);
  Flush(*sut);
  EXPECT_FALSE(inner_when_posted);
  EXPECT_TRUE(inner);
}

TEST(LoopTest, SecondThreadIsRefused) {
  auto sut = Started();
  EXPECT_EQ(sut->StartThread().code(), Code::kFailedPrecondition);
}

TEST(LoopTest, TimersFireInOrderOfTime) {
  auto sut = Started();
  std::promise<std::vector<int>> done;
  auto future = done.get_future();
  std::vector<int> seen;
  sut->After(milliseconds(40), [&] {
    seen.push_back(2);
    done.set_value(seen);
  });
  sut->After(milliseconds(5), [&] { seen.push_back(1); });
  ASSERT_TRUE(Ready(future));
  EXPECT_EQ(future.get(), (std::vector<int>{1, 2}));
}

TEST(LoopTest, PeriodicTimerRunsUntilCancelled) {
  auto sut = Started();
  std::promise<void> done;
  auto future = done.get_future();
  int count = 0;
  Loop::TimerId id = 0;
  sut->Post([&] {
    id = sut->Every(milliseconds(2), [&] {
      if (++count == 5) {
        sut->CancelTimer(id);
        done.set_value();
      }
    });
  });
  ASSERT_TRUE(Ready(future));
  std::this_thread::sleep_for(milliseconds(20));
  Flush(*sut);
  EXPECT_EQ(count, 5);
}

TEST(LoopTest, CancelledTimerDropsItsTaskAtOnce) {
  auto sut = Started();
  auto owned = std::make_shared<int>(1);
  const std::weak_ptr<int> weak = owned;
  const auto id = sut->After(seconds(1000), [owned = std::move(owned)] {});
  sut->CancelTimer(id);
  Flush(*sut);
  Flush(*sut);
  EXPECT_TRUE(weak.expired());
}

TEST(LoopTest, WatchReportsBytesAndTheEnd) {
  auto sut = Started();
  Pipe pipe;
  std::string seen;
  std::promise<void> ended;
  auto future = ended.get_future();
  ASSERT_TRUE(sut->WatchReadable(pipe.read.get(),
                                 [&] {
                                   char byte;  // one at a time: what is left must be reported again
                                   if (::read(pipe.read.get(), &byte, 1) == 1) {
                                     seen.push_back(byte);
                                     return true;
                                   }
                                   ended.set_value();
                                   return false;
                                 })
                  .ok());
  ASSERT_EQ(::write(pipe.write.get(), "abc", 3), 3);
  pipe.write.reset();
  ASSERT_TRUE(Ready(future));
  EXPECT_EQ(seen, "abc");
}

TEST(LoopTest, WatchOfBytesThatWereThereBeforeFires) {
  auto sut = Started();
  Pipe pipe;
  ASSERT_EQ(::write(pipe.write.get(), "x", 1), 1);
  std::promise<void> ready;
  auto future = ready.get_future();
  ASSERT_TRUE(sut->WatchReadable(pipe.read.get(),
                                 [&] {
                                   ready.set_value();
                                   return false;
                                 })
                  .ok());
  EXPECT_TRUE(Ready(future));
}

TEST(LoopTest, EndedWatchLetsGoOfTheDescriptor) {
  auto sut = Started();
  Pipe pipe;
  auto id = sut->WatchReadable(pipe.read.get(), [] { return true; });
  ASSERT_TRUE(id.ok());
  sut->Unwatch(*id);
  Flush(*sut);
  pipe.read.reset();
  ::signal(SIGPIPE, SIG_IGN);
  EXPECT_EQ(::write(pipe.write.get(), "x", 1), -1);  // the last reading end is closed
}

TEST(LoopTest, PlainFileAndClosedDescriptorAreRefused) {
  auto sut = Started();
  const Fd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(sut->WatchReadable(file.get(), [] { return false; }).status().code(),
            Code::kInvalidArgument);
  EXPECT_FALSE(sut->WatchReadable(1'000'000, [] { return false; }).ok());
}

TEST(LoopTest, DestructorEndsEverythingAndFreesTasks) {
  auto owned = std::make_shared<int>(1);
  const std::weak_ptr<int> weak = owned;
  Pipe pipe;
  {
    auto sut = Started();
    sut->After(seconds(1000), [owned] {});
    sut->Every(seconds(1000), [owned] {});
    ASSERT_TRUE(sut->WatchReadable(pipe.read.get(), [owned] { return true; }).ok());
    owned.reset();
    Flush(*sut);
  }
  EXPECT_TRUE(weak.expired());
}

TEST(LoopTest, StopFromACallbackEndsRun) {
  auto sut = Loop::Create();
  ASSERT_TRUE(sut.ok());
  int count = 0;
  (*sut)->Every(milliseconds(1), [&] {
    if (++count == 3) (*sut)->Stop();
  });
  (*sut)->Run();
  EXPECT_EQ(count, 3);
}

TEST(LoopTest, LoopThatNeverRanIsDestroyed) {
  auto sut = Loop::Create();
  ASSERT_TRUE(sut.ok());
  (*sut)->After(seconds(1), [] {});
}

}  // namespace
}  // namespace arcflow::net
