// SPDX-License-Identifier: Apache-2.0
// Tests of segment layout and view: what is written is read back, and every hostile header or
// offset is refused.
#include "arcflow/feed/segment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {
namespace {

using columnar::DType;
using columnar::Schema;
using columnar::Source;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Schema TestSchema() {
  return Schema{{{"x", DType::kFloat32, Source::kList, {3}},
                 {"s", DType::kString, Source::kScalar, {}},
                 {"b", DType::kBool, Source::kScalar, {}},
                 {"empty", DType::kInt64, Source::kList, {0}}}};
}

SegmentLayout TestLayout(std::size_t rows = 8, std::size_t string_bytes = 100) {
  const std::vector<std::size_t> bytes{string_bytes};
  Result<SegmentLayout> layout = SegmentLayout::Plan(TestSchema(), rows, bytes);
  EXPECT_TRUE(layout.ok()) << layout.status().ToString();
  return *layout;
}

/// A segment in private memory whose fields a test may change.
struct Image {
  SegmentLayout layout = TestLayout();
  std::vector<std::byte> bytes = std::vector<std::byte>(layout.size_bytes);
  Image() { layout.WriteTo(bytes.data()); }
  SegmentHeader& header() { return *reinterpret_cast<SegmentHeader*>(bytes.data()); }
  SegmentColumn& column(std::size_t i) {
    return reinterpret_cast<SegmentColumn*>(bytes.data() + sizeof(SegmentHeader))[i];
  }
};

TEST(SegmentTest, ReadReturnsWhatWasPlanned) {
  Image image;
  const Result<SegmentLayout> sut = SegmentLayout::Read(image.bytes, TestSchema());
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_EQ(*sut, image.layout);
}

TEST(SegmentTest, RegionsAreAlignedAndDoNotOverlap) {
  const SegmentLayout layout = TestLayout(1000, 12345);
  std::size_t end = sizeof(SegmentHeader) + layout.columns.size() * sizeof(SegmentColumn);
  for (const ColumnRegion& c : layout.columns) {
    EXPECT_EQ(c.offset % kSegmentAlignment, 0u);
    EXPECT_GE(c.offset, end);
    end = c.offset + c.size;
    if (!c.variable()) continue;
    EXPECT_EQ(c.size, 1001 * 8u);
    EXPECT_EQ(c.data_offset % kSegmentAlignment, 0u);
    EXPECT_GE(c.data_offset, end);
    end = c.data_offset + c.data_size;
  }
  EXPECT_LE(end, layout.size_bytes);
  EXPECT_EQ(layout.columns[0].size, 12000u);
  EXPECT_EQ(layout.columns[1].data_size, 12345u);
}

TEST(SegmentTest, PlanRefusesImpossibleSizes) {
  EXPECT_FALSE(SegmentLayout::Plan(TestSchema(), 0, std::vector<std::size_t>{1}).ok());
  EXPECT_FALSE(
      SegmentLayout::Plan(TestSchema(), kMaxSegmentRows + 1, std::vector<std::size_t>{1}).ok());
  EXPECT_FALSE(SegmentLayout::Plan(TestSchema(), 1, {}).ok());
  EXPECT_FALSE(
      SegmentLayout::Plan(TestSchema(), 1, std::vector<std::size_t>{kMaxSegmentBytes + 1}).ok());
  const Schema huge{{{"x", DType::kInt8, Source::kList, {std::int64_t{1} << 31}}}};
  EXPECT_FALSE(SegmentLayout::Plan(huge, kMaxSegmentRows, {}).ok());
}

void ExpectRefused(const std::function<void(Image&)>& change, const std::string& part) {
  Image image;
  change(image);
  const Result<SegmentLayout> sut = SegmentLayout::Read(image.bytes, TestSchema());
  ASSERT_FALSE(sut.ok()) << part;
  EXPECT_EQ(sut.status().code(), Code::kDataLoss);
  EXPECT_THAT(std::string(sut.status().message()), HasSubstr(part));
}

TEST(SegmentTest, CorruptHeadersAreRefused) {
  ExpectRefused([](Image& i) { i.header().magic ^= 1; }, "magic");
  ExpectRefused([](Image& i) { i.header().version = 1; },
                "version 1, this program reads version 2");
  ExpectRefused([](Image& i) { i.header().size_bytes += 64; }, "mapped are");
  ExpectRefused([](Image& i) { i.header().size_bytes = 10; }, "size 10");
  ExpectRefused([](Image& i) { i.header().n_columns = 3; }, "3 columns, the schema has 4");
  ExpectRefused([](Image& i) { i.header().capacity_rows = 0; }, "capacity of 0");
  ExpectRefused([](Image& i) { i.header().capacity_rows = ~0ULL; }, "capacity of");
  ExpectRefused([](Image& i) { i.bytes.resize(64); }, "hold no header");
  ExpectRefused([](Image& i) { i.bytes.resize(10); }, "hold no header");
}

TEST(SegmentTest, CorruptColumnsAreRefused) {
  ExpectRefused([](Image& i) { i.column(0).dtype = 2; }, "column 'x': dtype is 2, expected 1");
  ExpectRefused([](Image& i) { i.column(0).row_bytes = 8; },
                "column 'x': row_bytes is 8, expected 12");
  ExpectRefused([](Image& i) { i.column(0).size += 1; }, "column 'x': size");
  ExpectRefused([](Image& i) { i.column(0).flags = 1; }, "column 'x': flags is 1, expected 0");
  ExpectRefused([](Image& i) { i.column(1).flags = 0; }, "column 's': flags is 0, expected 1");
  ExpectRefused([](Image& i) { i.column(1).item_bytes = 4; }, "item_bytes is 4, expected 1");
  ExpectRefused([](Image& i) { i.column(0).offset += 1; }, "column 'x': region at");
  ExpectRefused([](Image& i) { i.column(0).offset = 0; }, "does not fit between 320");
  ExpectRefused([](Image& i) { i.column(0).offset = ~0ULL - 63; }, "column 'x': region at");
  ExpectRefused([](Image& i) { i.column(0).data_size = 1; },
                "row bytes in a column of fixed width");
  ExpectRefused([](Image& i) { i.column(1).offset = i.column(0).offset; }, "column 's': region at");
  ExpectRefused([](Image& i) { i.column(1).data_size = ~0ULL; }, "column 's': row bytes at");
  ExpectRefused([](Image& i) { i.column(1).data_offset = i.column(1).offset; },
                "column 's': row bytes at");
  // One row more than the regions were made for.
  ExpectRefused([](Image& i) { i.header().capacity_rows = 9; },
                "column 'x': size is 96, expected 108");
}

/// A view of three rows "a", "", "bcd" with x = 0..8 in a memfd; `change` may corrupt it before it
/// is attached.
struct Shared {
  std::shared_ptr<Mapping> writable;
  SegmentLayout layout = TestLayout();
  std::shared_ptr<SegmentView> view;
  std::shared_ptr<LeaseGauge> gauge = std::make_shared<LeaseGauge>();
  std::shared_ptr<int> lease = std::make_shared<int>(0);

  Shared() {
    Result<Fd> fd = CreateMemfd("segment-test", layout.size_bytes);
    EXPECT_TRUE(fd.ok());
    Result<Mapping> mapping = Mapping::Map(*fd, layout.size_bytes, true, true);
    EXPECT_TRUE(mapping.ok());
    writable = std::make_shared<Mapping>(std::move(*mapping));
    layout.WriteTo(writable->data());
    for (int i = 0; i < 9; ++i) At<float>(layout.columns[0].offset)[i] = static_cast<float>(i);
    const std::int64_t offsets[] = {0, 1, 1, 4};
    std::memcpy(offsets_(), offsets, sizeof(offsets));
    std::memcpy(writable->data() + layout.columns[1].data_offset, "abcd", 4);
    Result<Mapping> readable = Mapping::Map(*fd, layout.size_bytes, false, true);
    EXPECT_TRUE(readable.ok());
    auto attached = SegmentView::Attach(std::make_shared<const Mapping>(std::move(*readable)),
                                        TestSchema(), 3, gauge, lease);
    EXPECT_TRUE(attached.ok()) << attached.status().ToString();
    view = std::move(*attached);
  }
  template <typename T>
  T* At(std::size_t offset) {
    return reinterpret_cast<T*>(writable->data() + offset);
  }
  std::int64_t* offsets_() { return At<std::int64_t>(layout.columns[1].offset); }
};

TEST(SegmentViewTest, ReadsColumnsWithinThePublishedRows) {
  Shared s;
  const auto dense = s.view->Dense(0, 1, 2);
  ASSERT_EQ(dense.size(), 24u);
  EXPECT_EQ(reinterpret_cast<const float*>(dense.data())[0], 3.0F);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(s.view->Dense(0, 0, 1).data()) % 64, 0u);
  std::vector<std::string_view> strings;
  ASSERT_TRUE(s.view->Rows(1, 0, 3, &strings).ok());
  EXPECT_THAT(strings, ElementsAre("a", "", "bcd"));
  EXPECT_EQ(s.view->RowBytes(1, 1, 2), 3u);
}

TEST(SegmentViewTest, RowsThatAreNotPublishedCannotBeRead) {
  Shared s;
  EXPECT_TRUE(s.view->Dense(0, 2, 2).empty());
  EXPECT_TRUE(s.view->Dense(0, ~std::size_t{0}, 2).empty());
  EXPECT_TRUE(s.view->Dense(9, 0, 1).empty());
  EXPECT_TRUE(s.view->Dense(1, 0, 1).empty());
  std::vector<std::string_view> strings;
  EXPECT_EQ(s.view->Rows(1, 3, 1, &strings).code(), Code::kInvalidArgument);
  EXPECT_EQ(s.view->Rows(0, 0, 1, &strings).code(), Code::kInvalidArgument);
  EXPECT_EQ(s.view->RowBytes(1, 3, 1), 0u);
  ASSERT_TRUE(s.view->Grow(4).ok());
  EXPECT_EQ(s.view->Dense(0, 2, 2).size(), 24u);
}

TEST(SegmentViewTest, GrowthBeyondTheCapacityOrBackwardsIsRefused) {
  Shared s;
  EXPECT_EQ(s.view->Grow(9).code(), Code::kDataLoss);
  EXPECT_EQ(s.view->Grow(2).code(), Code::kDataLoss);
  EXPECT_EQ(s.view->rows(), 3u);
  EXPECT_TRUE(s.view->Grow(8).ok());
}

TEST(SegmentViewTest, MoreRowsThanTheCapacityAreNotAttached) {
  Shared s;
  Result<Fd> fd = CreateMemfd("segment-test", s.layout.size_bytes);
  Result<Mapping> mapping = Mapping::Map(*fd, s.layout.size_bytes, true, true);
  s.layout.WriteTo(mapping->data());
  const auto sut = SegmentView::Attach(std::make_shared<const Mapping>(std::move(*mapping)),
                                       TestSchema(), 9, nullptr, nullptr);
  ASSERT_FALSE(sut.ok());
  EXPECT_EQ(sut.status().code(), Code::kDataLoss);
}

TEST(SegmentViewTest, HostileStringOffsetsAreDataLoss) {
  for (const std::vector<std::int64_t>& offsets : std::vector<std::vector<std::int64_t>>{
           {0, 1, 0, 4}, {0, 1, 1, 101}, {-1, 1, 1, 4}, {0, -5, 1, 4}, {0, 1, 1, INT64_MAX}}) {
    Shared s;
    std::memcpy(s.offsets_(), offsets.data(), offsets.size() * 8);
    std::vector<std::string_view> strings;
    const Status status = s.view->Rows(1, 0, 3, &strings);
    EXPECT_EQ(status.code(), Code::kDataLoss) << offsets[1];
    EXPECT_LE(s.view->RowBytes(1, 0, 3), 100u);
  }
}

TEST(SegmentViewTest, TheLeaseEndsWithTheLastView) {
  Shared s;
  std::weak_ptr<int> lease = s.lease;
  s.lease.reset();
  std::shared_ptr<const SegmentView> copy = s.view;
  s.view.reset();
  EXPECT_FALSE(lease.expired());
  copy.reset();
  EXPECT_TRUE(lease.expired());
}

TEST(SegmentViewTest, IsCrowdedWhenTensorsHoldTooManySegments) {
  Shared s;
  s.gauge->max_leases = 2;
  s.gauge->leased = 2;
  s.gauge->held = 1;
  EXPECT_FALSE(s.view->crowded());
  s.gauge->leased = 3;
  EXPECT_TRUE(s.view->crowded());
}

}  // namespace
}  // namespace arcflow::feed
