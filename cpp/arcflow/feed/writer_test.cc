// SPDX-License-Identifier: Apache-2.0
// Tests of Writer: what lands in which segment, when it becomes visible, and that errors leave
// nothing half done.
#include "arcflow/feed/writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/feed/rows_testing.h"
#include "arcflow/feed/segment.h"
#include "arcflow/feed/segment_view.h"

namespace arcflow::feed {
namespace {

using namespace testing;  // NOLINT: rows_testing.h
using columnar::Schema;
using columnar::testing::TestArrayPtr;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Grants memory and records what is published; reads it back at once, as a reader would.
class RecordingSource : public SegmentSource {
 public:
  struct Publication {
    std::uint64_t buffer;
    std::size_t rows;
    bool closed;
    bool with_fd;
  };

  Result<Grant> Acquire(const std::string&, std::size_t min_bytes, Deadline) override {
    asked.push_back(min_bytes);
    if (!acquire_error.ok() && asked.size() > acquires_before_error) return acquire_error;
    if (recycle && !sizes.empty()) return Grant{1, sizes.at(1), false, drop};
    const std::uint64_t id = sizes.size() + 1;
    sizes[id] = min_bytes;
    return Grant{id, min_bytes + grant_less_by, true, drop};
  }
  Status Publish(const std::string&, const Grant& grant, std::size_t rows, bool closed,
                 int fd) override {
    if (!publish_error.ok()) return publish_error;
    published.push_back({grant.buffer, rows, closed, fd >= 0});
    if (fd >= 0) memfds[grant.buffer] = Fd(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    return Status::Ok();
  }
  /// A batch of the published rows of a buffer.
  Batch Read(std::uint64_t buffer, const Schema& schema, std::size_t rows) {
    Result<Mapping> mapping = Mapping::Map(memfds.at(buffer), sizes.at(buffer), false, true);
    EXPECT_TRUE(mapping.ok()) << mapping.status().ToString();
    auto view = SegmentView::Attach(std::make_shared<const Mapping>(std::move(*mapping)), schema,
                                    rows, nullptr, nullptr);
    EXPECT_TRUE(view.ok()) << view.status().ToString();
    Batch batch;
    batch.pieces.push_back({*view, 0, rows});
    return batch;
  }
  std::size_t CapacityOf(std::uint64_t buffer, const Schema& schema) {
    return Read(buffer, schema, 0).pieces[0].segment->layout().capacity_rows;
  }

  std::vector<std::size_t> asked;
  std::vector<Publication> published;
  std::map<std::uint64_t, std::size_t> sizes;
  std::map<std::uint64_t, Fd> memfds;
  std::vector<std::uint64_t> drop;
  bool recycle = false;
  std::size_t grant_less_by = 0;
  Status acquire_error;
  std::size_t acquires_before_error = 0;
  Status publish_error;
};

Status Append(Writer& writer, const TestArrayPtr& batch, std::size_t* taken = nullptr) {
  return writer.Append(batch->type, batch->array, Deadline::AfterSeconds(10), taken);
}

TEST(WriterTest, RowsOfEveryTypeComeBackAsTheyWent) {
  RecordingSource source;
  Writer sut({"train", EveryType(), 1 << 20}, source);
  ASSERT_TRUE(Append(sut, EveryTypeBatch(0, 100)).ok());
  const TestArrayPtr more = EveryTypeBatch(100, 57);
  ASSERT_TRUE(Append(sut, more).ok());
  ASSERT_EQ(source.published.size(), 2u);
  EXPECT_EQ(source.published[1].rows, 157u);
  EXPECT_FALSE(source.published[1].closed);
  EXPECT_EQ(Compare(source.Read(1, EveryType(), 157), EveryType(), 0), "");
  EXPECT_EQ(sut.rows(), 157u);
  ASSERT_TRUE(sut.Finish().ok());
  EXPECT_TRUE(source.published.back().closed);
  EXPECT_EQ(source.published.back().rows, 157u);
  ASSERT_TRUE(sut.Finish().ok());
  EXPECT_EQ(source.published.size(), 3u);
}

TEST(WriterTest, SlicesOfABatchAreWrittenAsSuch) {
  RecordingSource source;
  Writer sut({"train", EveryType(), 1 << 20}, source);
  const TestArrayPtr batch = EveryTypeBatch(0, 100);
  batch->Slice(30, 41);
  ASSERT_TRUE(Append(sut, batch).ok());
  EXPECT_EQ(Compare(source.Read(1, EveryType(), 41), EveryType(), 30), "");
}

TEST(WriterTest, CapacityIsThePowerOfTwoThatFits) {
  RecordingSource source;
  Writer sut({"train", Dense(), 72 * 1000}, source);  // 72 bytes a row
  ASSERT_TRUE(Append(sut, DenseBatch(0, 1)).ok());
  EXPECT_EQ(source.CapacityOf(1, Dense()), 512u);
  EXPECT_LE(source.asked[0], 72 * 512u + 8192u);
  EXPECT_EQ(source.asked[0] % 4096, 0u);
}

TEST(WriterTest, ABatchMaySpanSegmentsAndEachIsVisibleWhenFull) {
  RecordingSource source;
  Writer sut({"train", Dense(), 72 * 100}, source);
  ASSERT_TRUE(Append(sut, DenseBatch(0, 150)).ok());
  ASSERT_EQ(source.published.size(), 3u);
  EXPECT_EQ(source.published[0].rows, 64u);
  EXPECT_TRUE(source.published[0].closed && source.published[0].with_fd);
  EXPECT_EQ(source.published[1].rows, 64u);
  EXPECT_EQ(source.published[2].rows, 22u);
  EXPECT_FALSE(source.published[2].closed);
  EXPECT_EQ(Compare(source.Read(2, Dense(), 64), Dense(), 64), "");
  EXPECT_EQ(Compare(source.Read(3, Dense(), 22), Dense(), 128), "");
  EXPECT_EQ(sut.bytes(), 150 * 72u);
}

TEST(WriterTest, ARowLargerThanASegmentGetsOneOfItsOwn) {
  RecordingSource source;
  const Schema schema{{{"x", DType::kFloat32, Source::kList, {10000}}}};
  Writer sut({"train", schema, 4096}, source);
  using namespace columnar::testing;  // NOLINT
  const auto batch = columnar::testing::RecordBatch(
      2, FixedList("x", 10000, 2, Primitive("item", "f", Values<float>(0, 2, 10000))));
  ASSERT_TRUE(Append(sut, batch).ok());
  ASSERT_EQ(source.published.size(), 2u);
  EXPECT_EQ(source.CapacityOf(1, schema), 1u);
  EXPECT_EQ(Compare(source.Read(2, schema, 1), schema, 1), "");
}

const Schema kText{{{"text", DType::kString, Source::kScalar, {}}}};

TestArrayPtr TextBatch(const std::vector<std::string>& values) {
  return columnar::testing::RecordBatch(static_cast<std::int64_t>(values.size()),
                                        columnar::testing::Strings("text", "u", values));
}

std::vector<std::string> ReadText(RecordingSource& source, std::uint64_t buffer, std::size_t rows) {
  std::vector<std::string_view> views;
  const Batch batch = source.Read(buffer, kText, rows);
  EXPECT_TRUE(StringColumn(batch, 0, &views).ok());
  return {views.begin(), views.end()};
}

TEST(WriterTest, AFullStringRegionClosesTheSegmentEarly) {
  RecordingSource source;
  Writer sut({"train", kText, 1 << 16}, source);
  ASSERT_TRUE(Append(sut, TextBatch(std::vector<std::string>(10, "short"))).ok());
  // Much longer than the first batch promised.
  std::vector<std::string> all;
  for (int b = 0; b < 8; ++b) {
    const std::vector<std::string> values(20, std::string(997, static_cast<char>('a' + b)));
    ASSERT_TRUE(Append(sut, TextBatch(values)).ok());
    all.insert(all.end(), values.begin(), values.end());
  }
  ASSERT_TRUE(sut.Finish().ok());
  std::map<std::uint64_t, std::size_t> rows;
  for (const auto& p : source.published) rows[p.buffer] = p.rows;
  EXPECT_GT(rows.size(), 2u);
  EXPECT_LT(rows.size(), 12u);
  std::vector<std::string> got;
  for (const auto& [buffer, n] : rows) {
    for (std::string& s : ReadText(source, buffer, n)) got.push_back(std::move(s));
  }
  got.erase(got.begin(), got.begin() + 10);
  EXPECT_EQ(got, all);
}

TEST(WriterTest, EveryStringFitsHoweverLong) {
  RecordingSource source;
  Writer sut({"train", kText, 4096}, source);
  const std::vector<std::string> values{"a", std::string(100000, 'x'), "", std::string(5000, 'y')};
  ASSERT_TRUE(Append(sut, TextBatch(values)).ok());
  std::vector<std::string> got;
  std::map<std::uint64_t, std::size_t> rows;
  for (const auto& p : source.published) rows[p.buffer] = p.rows;
  for (const auto& [buffer, n] : rows) {
    for (std::string& s : ReadText(source, buffer, n)) got.push_back(std::move(s));
  }
  EXPECT_EQ(got, values);
}

TEST(WriterTest, EmptyStringsAndEmptyRowsNeedNoBytes) {
  RecordingSource source;
  Writer sut({"train", kText, 1 << 16}, source);
  ASSERT_TRUE(Append(sut, TextBatch({"", "", ""})).ok());
  EXPECT_THAT(ReadText(source, 1, 3), ElementsAre("", "", ""));
}

TEST(WriterTest, AnEmptyBatchPublishesNothing) {
  RecordingSource source;
  Writer sut({"train", Dense(), 1 << 16}, source);
  ASSERT_TRUE(Append(sut, DenseBatch(0, 0)).ok());
  ASSERT_TRUE(sut.Finish().ok());
  EXPECT_TRUE(source.asked.empty());
  EXPECT_TRUE(source.published.empty());
}

TEST(WriterTest, RecycledMemoryIsReusedThroughTheSameMapping) {
  RecordingSource source;
  Writer sut({"train", EveryType(), 1 << 14}, source);
  ASSERT_TRUE(Append(sut, EveryTypeBatch(0, 20)).ok());
  ASSERT_TRUE(sut.Finish().ok());
  source.recycle = true;
  ASSERT_TRUE(Append(sut, EveryTypeBatch(20, 30)).ok());
  EXPECT_EQ(source.published.back().buffer, 1u);
  EXPECT_FALSE(source.published.back().with_fd);
  EXPECT_EQ(Compare(source.Read(1, EveryType(), 30), EveryType(), 20), "");
}

TEST(WriterTest, MemoryGivenUpIsUnmapped) {
  RecordingSource source;
  Writer sut({"train", Dense(), 1 << 14}, source);
  ASSERT_TRUE(Append(sut, DenseBatch(0, 1)).ok());
  ASSERT_TRUE(sut.Finish().ok());
  source.drop = {1};
  ASSERT_TRUE(Append(sut, DenseBatch(1, 1)).ok());
  ASSERT_TRUE(sut.Finish().ok());
  source.drop = {};
  source.recycle = true;  // buffer 1 again, which the writer no longer has
  EXPECT_EQ(Append(sut, DenseBatch(2, 1)).code(), Code::kInternal);
}

TEST(WriterTest, MemoryOfAnotherFeedThatIsGivenUpIsUnmappedToo) {
  RecordingSource source;
  Writer train({"train", Dense(), 1 << 14}, source);
  Writer valid({"valid", Dense(), 1 << 14}, source);
  ASSERT_TRUE(Append(train, DenseBatch(0, 1)).ok());
  ASSERT_TRUE(train.Finish().ok());
  const std::size_t one = source.memory().mapped_bytes();
  source.drop = {1};
  ASSERT_TRUE(Append(valid, DenseBatch(1, 1)).ok());
  EXPECT_EQ(source.memory().mapped_bytes(), one);
  EXPECT_EQ(source.memory().Find(1, 1).status().code(), Code::kInternal);
}

TEST(WriterTest, MemoryOfAnEndedFeedIsUnmappedAndThatOfOthersIsNot) {
  RecordingSource source;
  Writer train({"train", Dense(), 1 << 14}, source);
  Writer valid({"valid", Dense(), 1 << 14}, source);
  ASSERT_TRUE(Append(train, DenseBatch(0, 1)).ok());
  ASSERT_TRUE(Append(valid, DenseBatch(1, 1)).ok());
  source.memory().DropFeed("train");
  EXPECT_FALSE(source.memory().Find(1, 1).ok());
  EXPECT_TRUE(source.memory().Find(2, 1).ok());
  source.memory().DropFeed("valid");
  EXPECT_EQ(source.memory().mapped_bytes(), 0u);
}

TEST(WriterTest, OtherProcessesCannotWriteToPublishedMemory) {
  RecordingSource source;
  Writer sut({"train", Dense(), 1 << 14}, source);
  ASSERT_TRUE(Append(sut, DenseBatch(0, 1)).ok());
  EXPECT_FALSE(Mapping::Map(source.memfds.at(1), source.sizes.at(1), true, false).ok());
  EXPECT_EQ(::fcntl(source.memfds.at(1).get(), F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW),
            F_SEAL_SHRINK | F_SEAL_GROW);
}

TEST(WriterTest, ABadBatchIsRefusedBeforeAnyRowIsVisible) {
  RecordingSource source;
  Writer sut({"train", Dense(), 1 << 14}, source);
  const TestArrayPtr bad = DenseBatch(0, 10);
  bad->child(1).SetValidity({true, false, true, true, true, true, true, true, true, false});
  const Status status = Append(sut, bad);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("feed 'train': column 'y': 2 nulls"));
  EXPECT_TRUE(source.asked.empty());
  EXPECT_TRUE(source.published.empty());
  EXPECT_TRUE(Append(sut, DenseBatch(0, 10)).ok());  // the writer goes on
}

TEST(WriterTest, CancelledShowsWholeRowsOnlyAndIsFinal) {
  RecordingSource source;
  source.acquire_error = Cancelled("the node wants no more rows");
  source.acquires_before_error = 1;
  Writer sut({"train", Dense(), 72 * 100}, source);
  EXPECT_EQ(Append(sut, DenseBatch(0, 150)).code(), Code::kCancelled);
  ASSERT_EQ(source.published.size(), 1u);
  EXPECT_EQ(source.published[0].rows, 64u);
  EXPECT_EQ(sut.rows(), 64u);
  EXPECT_EQ(Append(sut, DenseBatch(0, 1)).code(), Code::kCancelled);
  EXPECT_TRUE(sut.Finish().ok());
  EXPECT_EQ(source.published.size(), 1u);
}

TEST(WriterTest, AnAppendOutOfTimeGoesOnWhereItStopped) {
  RecordingSource source;
  source.acquire_error = DeadlineExceeded("no memory within the deadline");
  source.acquires_before_error = 1;
  Writer sut({"train", Dense(), 72 * 100}, source);
  const TestArrayPtr batch = DenseBatch(0, 150);
  std::size_t taken = 0;
  EXPECT_EQ(Append(sut, batch, &taken).code(), Code::kDeadlineExceeded);
  EXPECT_EQ(taken, 64u);
  source.acquire_error = Status::Ok();
  EXPECT_TRUE(Append(sut, batch, &taken).ok());
  EXPECT_EQ(taken, 150u);
  EXPECT_EQ(sut.rows(), 150u);
  EXPECT_EQ(Compare(source.Read(2, Dense(), 64), Dense(), 64), "");
}

TEST(WriterTest, WithoutTakenACutBatchMakesTheWriterUnusable) {
  RecordingSource source;
  source.acquire_error = DeadlineExceeded("no memory within the deadline");
  Writer sut({"train", Dense(), 72 * 100}, source);
  EXPECT_EQ(Append(sut, DenseBatch(0, 150)).code(),
            Code::kDeadlineExceeded);  // nothing taken: may be repeated
  source.acquires_before_error = source.asked.size() + 1;
  EXPECT_EQ(Append(sut, DenseBatch(0, 150)).code(), Code::kDeadlineExceeded);
  EXPECT_EQ(Append(sut, DenseBatch(0, 150)).code(), Code::kFailedPrecondition);
}

TEST(WriterTest, AFailedPublishIsFinal) {
  RecordingSource source;
  source.publish_error = Unavailable("the agent died");
  Writer sut({"train", Dense(), 1 << 14}, source);
  EXPECT_EQ(Append(sut, DenseBatch(0, 1)).code(), Code::kUnavailable);
  source.publish_error = Status::Ok();
  EXPECT_EQ(Append(sut, DenseBatch(0, 1)).code(), Code::kUnavailable);
  EXPECT_EQ(sut.rows(), 0u);
}

TEST(WriterTest, ARowThatIsTooLargeIsNamed) {
  RecordingSource source;
  source.acquire_error = ResourceExhausted("raise feed_memory");
  source.acquires_before_error = 1;
  Writer sut({"train", kText, 4096}, source);
  ASSERT_TRUE(Append(sut, TextBatch({"a", "b"})).ok());
  const Status status = Append(sut, TextBatch({std::string(100'000, 'x')}));
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("feed 'train': row 2 of this task has 100000 bytes in column 'text': "
                        "raise feed_memory"));
}

TEST(WriterTest, AGrantThatIsTooSmallIsAnError) {
  RecordingSource source;
  source.grant_less_by = static_cast<std::size_t>(-8192);
  Writer sut({"train", Dense(), 1 << 14}, source);
  EXPECT_EQ(Append(sut, DenseBatch(0, 1)).code(), Code::kInternal);
}

}  // namespace
}  // namespace arcflow::feed
