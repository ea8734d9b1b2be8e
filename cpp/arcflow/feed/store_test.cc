// SPDX-License-Identifier: Apache-2.0
// Tests of BufferStore: the budget holds, free memory is used again, and memory of another size or
// feed takes its place.
#include "arcflow/feed/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/mapping.h"

namespace arcflow::feed {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr std::size_t kPage = BufferStore::kPageBytes;

Fd MakeMemory(std::size_t bytes) {
  Result<Fd> fd = CreateMemfd("store-test", bytes);
  EXPECT_TRUE(fd.ok()) << fd.status().ToString();
  return std::move(*fd);
}

/// Grants and hands over its memory; the id.
std::uint64_t Take(BufferStore& sut, const std::string& feed, std::size_t bytes) {
  const auto grant = sut.TryGrant(feed, bytes);
  EXPECT_TRUE(grant.has_value());
  if (!grant) return 0;
  if (grant->create) {
    EXPECT_TRUE(sut.Adopt(grant->buffer, MakeMemory(grant->bytes)).ok());
  }
  return grant->buffer;
}

TEST(BufferStoreTest, GrantsWholePagesUpToTheBudget) {
  BufferStore sut(3 * kPage);
  const auto a = sut.TryGrant("f", 1);
  ASSERT_TRUE(a);
  EXPECT_TRUE(a->create);
  EXPECT_EQ(a->bytes, kPage);
  EXPECT_TRUE(sut.TryGrant("f", 2 * kPage));
  EXPECT_FALSE(sut.TryGrant("f", 1));
  EXPECT_EQ(sut.used_bytes(), 3 * kPage);
  EXPECT_FALSE(BufferStore(kPage).TryGrant("f", SIZE_MAX));
}

TEST(BufferStoreTest, FreeMemoryOfTheSameFeedIsUsedAgain) {
  BufferStore sut(8 * kPage);
  const std::uint64_t big = Take(sut, "f", 3 * kPage);
  const std::uint64_t fits = Take(sut, "f", 2 * kPage);
  sut.Close(big);
  sut.Free(big);
  sut.Close(fits);
  sut.Free(fits);
  const auto again = sut.TryGrant("f", kPage + 1);
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->create);
  EXPECT_EQ(again->buffer, fits) << "the smallest that fits";
  EXPECT_EQ(again->bytes, 2 * kPage);
  EXPECT_THAT(again->drop, IsEmpty());
}

TEST(BufferStoreTest, KeptMemoryIsNotGranted) {
  BufferStore sut(kPage);
  const std::uint64_t a = Take(sut, "f", kPage);
  sut.Close(a);
  EXPECT_FALSE(sut.TryGrant("f", kPage));
  EXPECT_EQ(sut.busy_bytes("f"), kPage);
  EXPECT_EQ(sut.granted_bytes("f"), 0u);
  sut.Free(a);
  EXPECT_EQ(sut.busy_bytes("f"), 0u);
  EXPECT_TRUE(sut.TryGrant("f", kPage));
}

TEST(BufferStoreTest, FreeMemoryOfAnotherFeedMakesRoomAndEverybodyIsTold) {
  BufferStore sut(2 * kPage);
  const std::uint64_t a = Take(sut, "a", kPage);
  const std::uint64_t b = Take(sut, "b", kPage);
  sut.Free(a);
  const auto grant = sut.TryGrant("b", kPage);
  ASSERT_TRUE(grant);
  EXPECT_TRUE(grant->create) << "b's writer does not have a's memory";
  EXPECT_THAT(grant->drop, ElementsAre(a));
  EXPECT_THAT(sut.TakeDestroyed(), ElementsAre(a));
  EXPECT_THAT(sut.TakeDestroyed(), IsEmpty());
  EXPECT_EQ(sut.used_bytes(), 2 * kPage);
  EXPECT_NE(grant->buffer, a);
  EXPECT_NE(grant->buffer, b);
}

TEST(BufferStoreTest, SmallFreeBuffersMakeRoomForALargeOne) {
  BufferStore sut(4 * kPage);
  std::vector<std::uint64_t> small;
  for (int i = 0; i < 4; ++i) small.push_back(Take(sut, "f", kPage));
  for (const auto id : small) sut.Free(id);
  const auto grant = sut.TryGrant("f", 3 * kPage);
  ASSERT_TRUE(grant);
  EXPECT_EQ(grant->drop.size(), 3u) << "no more than needed";
  EXPECT_EQ(sut.used_bytes(), 4 * kPage);
}

TEST(BufferStoreTest, NothingIsDestroyedWhenThatWouldNotHelp) {
  BufferStore sut(3 * kPage);
  const std::uint64_t a = Take(sut, "f", kPage);
  Take(sut, "f", kPage);
  sut.Free(a);
  EXPECT_FALSE(sut.TryGrant("f", 3 * kPage));
  EXPECT_EQ(sut.free_bytes(), kPage);
  EXPECT_THAT(sut.TakeDestroyed(), IsEmpty());
}

TEST(BufferStoreTest, RetiredFeedGivesItsMemoryBack) {
  BufferStore sut(3 * kPage);
  const std::uint64_t a = Take(sut, "f", kPage);
  const std::uint64_t b = Take(sut, "f", kPage);
  sut.Free(a);
  sut.Close(b);
  sut.RetireFeed("f");
  EXPECT_EQ(sut.used_bytes(), kPage);
  sut.Free(b);
  EXPECT_EQ(sut.used_bytes(), 0u);
  EXPECT_THAT(sut.TakeDestroyed(), UnorderedElementsAre(a, b));
}

TEST(BufferStoreTest, TheFeederIsNotToldOfMemoryThatTheAgentMade) {
  BufferStore sut(3 * kPage);
  sut.RetireFeed("pass");  // filled by the agent
  for (int i = 0; i < 100; ++i) {
    const std::uint64_t id = Take(sut, "pass", kPage);
    sut.Close(id);
    sut.Free(id);
  }
  const auto grant = sut.TryGrant("f", kPage);
  ASSERT_TRUE(grant);
  EXPECT_THAT(grant->drop, IsEmpty());
  EXPECT_EQ(sut.TakeDestroyed().size(), 100u) << "readers have it";
}

TEST(BufferStoreTest, MemoryThatWasNeverSentIsDestroyed) {
  BufferStore sut(kPage);
  const auto grant = sut.TryGrant("f", kPage);
  sut.Free(grant->buffer);
  EXPECT_EQ(sut.used_bytes(), 0u);
  EXPECT_EQ(sut.Find(grant->buffer), nullptr);
}

TEST(BufferStoreTest, MemoryOfAnotherSizeOrKindIsRefused) {
  BufferStore sut(8 * kPage);
  const auto grant = sut.TryGrant("f", 2 * kPage);
  EXPECT_EQ(sut.Adopt(grant->buffer, MakeMemory(kPage)).code(), Code::kInvalidArgument);
  EXPECT_EQ(sut.Adopt(grant->buffer, MakeMemory(3 * kPage)).code(), Code::kInvalidArgument);
  EXPECT_EQ(sut.Adopt(grant->buffer + 1, MakeMemory(2 * kPage)).code(), Code::kInvalidArgument);
  std::string path = ::testing::TempDir() + "/arcflow-store-test-XXXXXX";
  Fd file(::mkstemp(path.data()));
  ::unlink(path.c_str());
  ASSERT_EQ(::ftruncate(file.get(), 2 * kPage), 0);
  EXPECT_EQ(sut.Adopt(grant->buffer, std::move(file)).code(), Code::kInvalidArgument)
      << "not sealed";
  EXPECT_TRUE(sut.Adopt(grant->buffer, MakeMemory(2 * kPage)).ok());
  EXPECT_EQ(sut.Adopt(grant->buffer, MakeMemory(2 * kPage)).code(), Code::kInvalidArgument)
      << "twice";
}

/// A feeder that makes and drops as told never has more memory than the budget.
TEST(BufferStoreTest, MemoryThatTheFeederHasNeverExceedsTheBudget) {
  constexpr std::size_t kBudget = 16 * kPage;
  BufferStore sut(kBudget);
  std::mt19937 random(11);
  std::map<std::uint64_t, std::size_t> feeder;  // what the feeder has mapped
  std::set<std::uint64_t> busy;
  int grants = 0;
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 == 0 && !busy.empty()) {
      const auto id = *std::next(busy.begin(), static_cast<long>(random() % busy.size()));
      if (random() % 2 == 0) sut.Close(id);
      sut.Free(id);
      busy.erase(id);
      continue;
    }
    const std::string feed(1, static_cast<char>('a' + random() % 3));
    const auto grant = sut.TryGrant(feed, 1 + random() % (6 * kPage));
    if (!grant) continue;
    ++grants;
    for (const auto id : grant->drop) feeder.erase(id);
    ASSERT_EQ(grant->create, !feeder.contains(grant->buffer));
    feeder[grant->buffer] = grant->bytes;
    if (grant->create) {
      ASSERT_TRUE(sut.Adopt(grant->buffer, MakeMemory(grant->bytes)).ok());
    }
    ASSERT_TRUE(busy.insert(grant->buffer).second) << "granted while in use";
    std::size_t sum = 0;
    for (const auto& [id, bytes] : feeder) sum += bytes;
    ASSERT_LE(sum, kBudget);
    ASSERT_LE(sut.used_bytes(), kBudget);
  }
  EXPECT_GT(grants, 5000);
  EXPECT_LE(sut.peak_bytes(), kBudget);
}

}  // namespace
}  // namespace arcflow::feed
