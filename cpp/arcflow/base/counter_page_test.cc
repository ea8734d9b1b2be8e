// SPDX-License-Identifier: Apache-2.0
// CounterPage: two processes see the same counters; a page that is none is refused.
#include "arcflow/base/counter_page.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

namespace arcflow {
namespace {

Fd Duplicate(const Fd& fd) { return Fd(::dup(fd.get())); }

/// A page whose 32-bit word `index` is `value`.
Fd Forged(std::size_t index, std::uint32_t value, std::size_t size = CounterPage::kSizeBytes) {
  Fd fd = std::move(*CreateMemfd("forged", size));
  auto mapping = Mapping::Map(fd, size, true, false);
  EXPECT_TRUE(mapping.ok());
  const std::uint32_t good[2] = {CounterPageLayout::kMagic, CounterPageLayout::kVersion};
  std::memcpy(mapping->data(), good, sizeof(good));
  std::memcpy(mapping->data() + index * sizeof(value), &value, sizeof(value));
  return fd;
}

TEST(CounterPageTest, FreshPageIsZeroAndItsLossUnknown) {
  auto sut = CounterPage::Create();
  ASSERT_TRUE(sut.ok());
  const CounterPageLayout& counters = (*sut)->counters();
  EXPECT_EQ(counters.steps.load(), 0u);
  EXPECT_EQ(counters.heartbeat.load(), 0u);
  EXPECT_TRUE(std::isnan(counters.user_loss.load()));
}

TEST(CounterPageTest, AttachedPageIsTheSamePage) {
  auto owner = CounterPage::Create();
  ASSERT_TRUE(owner.ok());
  auto sut = CounterPage::Attach(Duplicate((*owner)->fd()));
  ASSERT_TRUE(sut.ok());
  (*sut)->counters().rows_used += 7;
  (*sut)->counters().user_loss = 0.25;
  EXPECT_EQ((*owner)->counters().rows_used.load(), 7u);
  EXPECT_EQ((*owner)->counters().user_loss.load(), 0.25);
}

TEST(CounterPageTest, CountersOfAKilledProcessStay) {
  auto owner = CounterPage::Create();
  ASSERT_TRUE(owner.ok());
  const pid_t child = ::fork();
  if (child == 0) {
    auto page = CounterPage::Attach(Duplicate((*owner)->fd()));
    if (!page.ok()) ::_exit(1);
    for (int i = 0; i < 1000; ++i) ++(*page)->counters().steps;
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ((*owner)->counters().steps.load(), 1000u);
}

TEST(CounterPageTest, WrongMagicIsRefused) {
  EXPECT_EQ(CounterPage::Attach(Forged(0, 0x12345678)).status().code(), Code::kInvalidArgument);
}

TEST(CounterPageTest, WrongVersionIsRefusedAndNamed) {
  const Status why = CounterPage::Attach(Forged(1, 99)).status();
  EXPECT_EQ(why.code(), Code::kInvalidArgument);
  EXPECT_NE(why.message().find("99"), std::string::npos);
}

TEST(CounterPageTest, WrongSizeIsRefused) {
  EXPECT_EQ(CounterPage::Attach(Forged(0, CounterPageLayout::kMagic, 100)).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(CounterPage::Attach(Forged(0, CounterPageLayout::kMagic, 8192)).status().code(),
            Code::kInvalidArgument);
}

TEST(CounterPageTest, NoDescriptorIsRefused) { EXPECT_FALSE(CounterPage::Attach(Fd()).ok()); }

TEST(CounterPageTest, PageThatCannotBeWrittenIsRefused) {
  const std::string bytes(CounterPage::kSizeBytes, '\0');
  auto fd = MemfdFromBytes("frozen", std::as_bytes(std::span(bytes.data(), bytes.size())));
  ASSERT_TRUE(fd.ok());
  EXPECT_FALSE(CounterPage::Attach(std::move(*fd)).ok());
}

}  // namespace
}  // namespace arcflow
