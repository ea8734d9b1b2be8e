// SPDX-License-Identifier: Apache-2.0
// Tests of BufferMappings and IdleMappings: what is mapped once, and what is forgotten when.
#include "arcflow/feed/reader_mappings.h"

#include <gtest/gtest.h>

#include <utility>

#include "arcflow/net/packet.h"

namespace arcflow::feed {
namespace {

Fd Memory(std::size_t size) {
  Result<Fd> fd = CreateMemfd("mappings-test", size);
  EXPECT_TRUE(fd.ok());
  return std::move(*fd);
}

const std::byte* AddressOf(const Result<std::shared_ptr<const Mapping>>& mapping) {
  EXPECT_TRUE(mapping.ok()) << mapping.status().ToString();
  return mapping.ok() ? (*mapping)->data() : nullptr;
}

TEST(BufferMappingsTest, TheSameFileIsMappedOnce) {
  BufferMappings sut;
  const Fd memory = Memory(8192);
  const std::byte* first = AddressOf(sut.Get(1, 8192, memory));
  EXPECT_EQ(AddressOf(sut.Get(1, 8192, memory)), first);
  EXPECT_EQ(AddressOf(sut.Get(1, 4096, Fd())), first);
}

TEST(BufferMappingsTest, OtherMemoryUnderTheSameIdReplacesTheOld) {
  BufferMappings sut;
  auto old = sut.Get(1, 4096, Memory(4096));
  ASSERT_TRUE(old.ok());
  EXPECT_NE(AddressOf(sut.Get(1, 4096, Memory(4096))), (*old)->data());
  EXPECT_EQ(sut.size(), 1u);
}

TEST(BufferMappingsTest, WhatWasNeverHandedOverOrIsTooSmallIsDataLoss) {
  BufferMappings sut;
  EXPECT_EQ(sut.Get(1, 4096, Fd()).status().code(), Code::kDataLoss);
  EXPECT_EQ(sut.Get(1, 8192, Memory(4096)).status().code(), Code::kInvalidArgument);
  EXPECT_TRUE(sut.Get(1, 4096, Memory(4096)).ok());
  EXPECT_EQ(sut.Get(1, 4097, Fd()).status().code(), Code::kDataLoss);
  sut.Drop(1);
  EXPECT_EQ(sut.Get(1, 4096, Fd()).status().code(), Code::kDataLoss);
}

TEST(BufferMappingsTest, DropUnusedKeepsWhatTheLastPassUsed) {
  BufferMappings sut;
  ASSERT_TRUE(sut.Get(1, 4096, Memory(4096)).ok());
  ASSERT_TRUE(sut.Get(2, 4096, Memory(4096)).ok());
  sut.DropUnused();
  EXPECT_EQ(sut.size(), 2u);
  ASSERT_TRUE(sut.Get(2, 4096, Fd()).ok());
  sut.DropUnused();
  EXPECT_EQ(sut.size(), 1u);
  EXPECT_TRUE(sut.Get(2, 4096, Fd()).ok());
}

TEST(IdleMappingsTest, OneTakerGetsWhatWasGivenForItsFeed) {
  auto broker = net::PacketPair();
  IdleMappings sut;
  BufferMappings mappings;
  ASSERT_TRUE(mappings.Get(1, 4096, Memory(4096)).ok());
  sut.Give(broker->first.get(), "train", std::move(mappings), true);
  EXPECT_EQ(sut.Take(broker->first.get(), "validation").size(), 0u);
  EXPECT_EQ(sut.Take(broker->first.get(), "train").size(), 1u);
  EXPECT_EQ(sut.Take(broker->first.get(), "train").size(), 0u);
}

TEST(IdleMappingsTest, AnIncompletePassAddsAndACompleteOneReplaces) {
  auto broker = net::PacketPair();
  IdleMappings sut;
  for (const bool complete : {false, true}) {
    BufferMappings a;
    BufferMappings b;
    ASSERT_TRUE(a.Get(1, 4096, Memory(4096)).ok());
    ASSERT_TRUE(b.Get(2, 4096, Memory(4096)).ok());
    sut.Give(broker->first.get(), "train", std::move(a), true);
    sut.Give(broker->first.get(), "train", std::move(b), complete);
    EXPECT_EQ(sut.Take(broker->first.get(), "train").size(), complete ? 1u : 2u);
  }
}

TEST(IdleMappingsTest, WhatTheAgentGaveUpGoesWhicheverFeedHadIt) {
  auto broker = net::PacketPair();
  IdleMappings sut;
  for (const std::uint64_t id : {1, 2}) {
    BufferMappings mappings;
    ASSERT_TRUE(mappings.Get(id, 4096, Memory(4096)).ok());
    sut.Give(broker->first.get(), id == 1 ? "train" : "validation", std::move(mappings), true);
  }
  sut.Drop(1);
  EXPECT_EQ(sut.Take(broker->first.get(), "train").size(), 0u);
  EXPECT_EQ(sut.Take(broker->first.get(), "validation").size(), 1u);
}

TEST(IdleMappingsTest, AnotherBrokerForgetsEverything) {
  auto broker = net::PacketPair();
  IdleMappings sut;
  BufferMappings mappings;
  ASSERT_TRUE(mappings.Get(1, 4096, Memory(4096)).ok());
  sut.Give(broker->first.get(), "train", std::move(mappings), true);
  EXPECT_EQ(sut.Take(broker->second.get(), "train").size(), 0u);
  EXPECT_EQ(sut.Take(broker->first.get(), "train").size(), 0u);
}

}  // namespace
}  // namespace arcflow::feed
