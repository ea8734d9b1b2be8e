// SPDX-License-Identifier: Apache-2.0
// CopyCrew: every byte once, whoever copies it; errors are told; copies beside one another.
#include "arcflow/transport/shm/copy_crew.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace arcflow::transport::shm {
namespace {

constexpr std::size_t kTotal = (std::size_t{5} << 20) + 17;

TEST(CopyCrewTest, EveryByteIsCopiedOnce) {
  for (const int helpers : {0, 1, 3}) {
    CopyCrew crew(helpers);
    for (const std::size_t total : {std::size_t{1}, std::size_t{1} << 20, kTotal}) {
      for (int round = 0; round < 3; ++round) {
        std::vector<std::atomic<std::uint8_t>> seen(total);
        ASSERT_TRUE(crew.Copy(total,
                              [&](std::size_t offset, std::size_t bytes) {
                                for (std::size_t i = offset; i < offset + bytes; ++i) ++seen[i];
                                return Status::Ok();
                              })
                        .ok());
        for (const auto& one : seen) ASSERT_EQ(one, 1);
      }
    }
  }
}

TEST(CopyCrewTest, HelpersTakeParts) {
  CopyCrew crew(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  // A part does not end before two threads have one.
  ASSERT_TRUE(crew.Copy(kTotal,
                        [&](std::size_t, std::size_t) {
                          for (;;) {
                            {
                              const std::lock_guard lock(mutex);
                              threads.insert(std::this_thread::get_id());
                              if (threads.size() >= 2) return Status::Ok();
                            }
                            std::this_thread::yield();
                          }
                        })
                  .ok());
}

TEST(CopyCrewTest, AnErrorIsToldWhoeverHadIt) {
  CopyCrew crew(2);
  for (int round = 0; round < 50; ++round) {
    const Status status = crew.Copy(kTotal, [&](std::size_t offset, std::size_t) {
      return offset < (std::size_t{3} << 20) ? Status::Ok() : Unavailable("gone");
    });
    ASSERT_EQ(status.code(), Code::kUnavailable);
  }
}

TEST(CopyCrewTest, TheProcessHasOneWhileItIsHeld) {
  const auto crew = CopyCrew::Shared();
  EXPECT_EQ(CopyCrew::Shared(), crew);
}

TEST(CopyCrewTest, CopiesAtOnceDoNotMeet) {
  CopyCrew crew(2);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&crew] {
      const std::vector<char> from(kTotal, 'x');
      for (int round = 0; round < 30; ++round) {
        std::vector<char> to(kTotal);
        ASSERT_TRUE(crew.Copy(kTotal,
                              [&](std::size_t offset, std::size_t bytes) {
                                std::memcpy(to.data() + offset, from.data() + offset, bytes);
                                return Status::Ok();
                              })
                        .ok());
        ASSERT_EQ(to, from);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace arcflow::transport::shm
