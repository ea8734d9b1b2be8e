// SPDX-License-Identifier: Apache-2.0
// Recycled memory: the same buffer serves every step, and no more is kept than was in use.
#include "arcflow/base/recycled_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace arcflow {
namespace {

TEST(RecycledMemoryTest, TheSameMemoryServesEveryStep) {
  RecycledMemory sut;
  auto first = sut.Take(5'000'000);
  ASSERT_NE(first.data, nullptr);
  EXPECT_GE(first.capacity, 5'000'000u);
  EXPECT_FALSE(first.recycled);
  std::memset(first.data, 1, first.capacity);
  sut.Give(first);
  for (int step = 0; step < 100; ++step) {
    const auto next = sut.Take(5'000'000 - static_cast<std::size_t>(step));
    EXPECT_EQ(next.data, first.data);
    EXPECT_TRUE(next.recycled);
    sut.Give(next);
  }
  EXPECT_EQ(sut.kept(), first.capacity);
}

TEST(RecycledMemoryTest, KeepsNoMoreThanWasInUseAtOnce) {
  RecycledMemory sut;
  std::size_t most = 0;
  for (std::size_t i = 1; i < 40; ++i) {  // another size each time
    const auto buffer = sut.Take(i * (2 << 20));
    most = std::max(most, buffer.capacity);
    sut.Give(buffer);
    EXPECT_LE(sut.kept(), most);
  }
}

TEST(RecycledMemoryTest, BuffersAreAlignedAndApart) {
  RecycledMemory sut;
  const auto a = sut.Take(2 << 20);
  const auto b = sut.Take(3 << 20);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.data) % (2 << 20), 0u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data) % (2 << 20), 0u);
  std::memset(a.data, 1, a.capacity);
  std::memset(b.data, 2, b.capacity);
  EXPECT_EQ(a.data[a.capacity - 1], std::byte{1});
  sut.Give(a);
  sut.Give(b);
}

TEST(RecycledMemoryTest, SmallBuffersWasteAtMostAnEighth) {
  RecycledMemory sut;
  for (const std::size_t bytes : {1u, 4096u, 200'000u, 803'000u, 1'900'000u}) {
    const auto buffer = sut.Take(bytes);
    EXPECT_GE(buffer.capacity, bytes);
    EXPECT_LE(buffer.capacity, bytes + std::max<std::size_t>(bytes / 8, 4096)) << bytes;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data) % 4096, 0u);
    std::memset(buffer.data, 1, buffer.capacity);
    sut.Give(buffer);
  }
}

TEST(RecycledMemoryTest, AskingForTooMuchGivesNothing) {
  RecycledMemory sut;
  EXPECT_EQ(sut.Take(std::size_t{1} << 62).data, nullptr);
  EXPECT_EQ(sut.kept(), 0u);
}

TEST(RecycledMemoryTest, ThreadsShareIt) {
  RecycledMemory sut;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&sut, t] {
      for (int i = 0; i < 200; ++i) {
        const auto buffer = sut.Take((2 << 20) * static_cast<std::size_t>(1 + (t + i) % 3));
        buffer.data[0] = static_cast<std::byte>(t);
        EXPECT_EQ(buffer.data[0], static_cast<std::byte>(t));
        sut.Give(buffer);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace arcflow
