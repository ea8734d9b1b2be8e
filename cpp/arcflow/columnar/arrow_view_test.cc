// SPDX-License-Identifier: Apache-2.0
// Tests of ViewBatch and the copies: every Arrow type, slices on every level, and each refusal
// before anything is copied.
#include "arcflow/columnar/arrow_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "arcflow/columnar/arrow_testing.h"

namespace arcflow::columnar {
namespace {

using namespace testing;  // NOLINT: the builders of arrow_testing.h
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

Schema One(DType dtype, Source source = Source::kScalar, std::vector<std::int64_t> shape = {}) {
  return Schema{{Column{"x", dtype, source, std::move(shape)}}};
}

template <typename T>
std::vector<T> CopyAll(const Schema& schema, TestArray& batch) {
  const Result<BatchView> view = ViewBatch(schema, batch.type, batch.array);
  EXPECT_TRUE(view.ok()) << view.status().ToString();
  if (!view.ok()) return {};
  std::vector<T> out(view->rows * schema.columns[0].row_elements());
  CopyRows(view->columns[0], schema.columns[0], 0, view->rows,
           reinterpret_cast<std::byte*>(out.data()));
  return out;
}

std::vector<std::string> CopyAllStrings(const Schema& schema, TestArray& batch) {
  const Result<BatchView> view = ViewBatch(schema, batch.type, batch.array);
  EXPECT_TRUE(view.ok()) << view.status().ToString();
  if (!view.ok()) return {};
  const ColumnView& column = view->columns[0];
  std::vector<std::int64_t> ends(view->rows);
  std::string bytes(StringBytes(column, 0, view->rows), '\0');
  CopyStrings(column, 0, view->rows, 0, ends.data(), reinterpret_cast<std::byte*>(bytes.data()));
  std::vector<std::string> out;
  std::int64_t begin = 0;
  for (std::int64_t end : ends) {
    out.push_back(
        bytes.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
    begin = end;
  }
  return out;
}

template <typename T>
void ExpectPrimitive(DType dtype, const std::string& format) {
  const std::vector<T> values = {T(1), T(-2), T(3), T(100), T(5), T(6)};
  auto column = Primitive<T>("x", format, values);
  column->Slice(1, 5);
  auto batch = RecordBatch(5, std::move(column));
  EXPECT_THAT(CopyAll<T>(One(dtype), *batch), ElementsAre(T(-2), T(3), T(100), T(5), T(6)))
      << format;
  batch->Slice(2, 2);
  EXPECT_THAT(CopyAll<T>(One(dtype), *batch), ElementsAre(T(100), T(5))) << format;
}

TEST(ArrowViewTest, PrimitivesHonourColumnAndBatchOffsets) {
  ExpectPrimitive<float>(DType::kFloat32, "f");
  ExpectPrimitive<double>(DType::kFloat64, "g");
  ExpectPrimitive<std::int8_t>(DType::kInt8, "c");
  ExpectPrimitive<std::uint8_t>(DType::kUInt8, "C");
  ExpectPrimitive<std::int16_t>(DType::kInt16, "s");
  ExpectPrimitive<std::int32_t>(DType::kInt32, "i");
  ExpectPrimitive<std::int64_t>(DType::kInt64, "l");
}

TEST(ArrowViewTest, DatesAndTimestampsBecomeIntegers) {
  ExpectPrimitive<std::int32_t>(DType::kInt32, "tdD");
  ExpectPrimitive<std::int64_t>(DType::kInt64, "tsu:");
  ExpectPrimitive<std::int64_t>(DType::kInt64, "tsu:Europe/Berlin");
}

TEST(ArrowViewTest, BooleansUnpackFromAnyBit) {
  std::vector<bool> values;
  for (int i = 0; i < 200; ++i) values.push_back(i % 3 == 0 || i % 7 == 2);
  for (std::int64_t column_offset : {0, 1, 8, 13}) {
    for (std::int64_t batch_offset : {0, 3, 8, 70}) {
      auto column = Bools("x", values);
      column->Slice(column_offset, 200 - column_offset);
      auto batch = RecordBatch(200 - column_offset, std::move(column));
      batch->Slice(batch_offset, 200 - column_offset - batch_offset);
      const auto first = values.begin() + column_offset + batch_offset;
      EXPECT_THAT(CopyAll<std::uint8_t>(One(DType::kBool), *batch),
                  ElementsAreArray(std::vector<std::uint8_t>(first, values.end())));
    }
  }
}

TEST(ArrowViewTest, PartOfTheRowsCanBeCopied) {
  auto batch = RecordBatch(6, Bools("x", {true, false, true, true, false, false}));
  const Schema schema = One(DType::kBool);
  const Result<BatchView> view = ViewBatch(schema, batch->type, batch->array);
  ASSERT_TRUE(view.ok());
  std::vector<std::uint8_t> out(3);
  CopyRows(view->columns[0], schema.columns[0], 2, 3, reinterpret_cast<std::byte*>(out.data()));
  EXPECT_THAT(out, ElementsAre(1, 1, 0));
}

TEST(ArrowViewTest, StringsOfEveryKindHonourOffsets) {
  const std::vector<std::string> values = {"skip", "", "alpha", std::string("a\0b", 3), "ω"};
  for (const char* format : {"u", "z", "U", "Z"}) {
    auto column = Strings("x", format, values, 7);
    column->Slice(1, 4);
    auto batch = RecordBatch(4, std::move(column));
    EXPECT_THAT(CopyAllStrings(One(DType::kString), *batch),
                ElementsAre("", "alpha", std::string("a\0b", 3), "ω"))
        << format;
    batch->Slice(1, 2);
    EXPECT_THAT(CopyAllStrings(One(DType::kString), *batch),
                ElementsAre("alpha", std::string("a\0b", 3)));
  }
  auto fixed = FixedBinary("x", 3, {"abc", "def", "ghi"});
  fixed->Slice(1, 2);
  auto batch = RecordBatch(2, std::move(fixed));
  EXPECT_THAT(CopyAllStrings(One(DType::kString), *batch), ElementsAre("def", "ghi"));
}

TEST(ArrowViewTest, StringsThatFitFindsTheLastRowThatFits) {
  auto batch = RecordBatch(4, Strings("x", "u", {"aa", "bbb", "", "cccc"}));
  const Result<BatchView> view = ViewBatch(One(DType::kString), batch->type, batch->array);
  ASSERT_TRUE(view.ok());
  const ColumnView& sut = view->columns[0];
  EXPECT_EQ(StringsThatFit(sut, 0, 4, 1), 0u);
  EXPECT_EQ(StringsThatFit(sut, 0, 4, 2), 1u);
  EXPECT_EQ(StringsThatFit(sut, 0, 4, 5), 3u);
  EXPECT_EQ(StringsThatFit(sut, 0, 4, 8), 3u);
  EXPECT_EQ(StringsThatFit(sut, 0, 4, 9), 4u);
  EXPECT_EQ(StringsThatFit(sut, 1, 2, 100), 2u);
}

TEST(ArrowViewTest, RawBytesBecomeElements) {
  const std::vector<std::int16_t> numbers = {1, 2, 3, -4, 5, 6};
  const std::string bytes(reinterpret_cast<const char*>(numbers.data()), 12);
  const Schema schema = One(DType::kInt16, Source::kRaw, {2});
  for (const char* format : {"z", "Z"}) {
    auto column =
        Strings("x", format, {bytes.substr(0, 4), bytes.substr(4, 4), bytes.substr(8, 4)}, 3);
    column->Slice(1, 2);
    auto batch = RecordBatch(2, std::move(column));
    EXPECT_THAT(CopyAll<std::int16_t>(schema, *batch), ElementsAre(3, -4, 5, 6)) << format;
  }
  auto fixed = FixedBinary("x", 4, {bytes.substr(0, 4), bytes.substr(4, 4), bytes.substr(8, 4)});
  fixed->Slice(2, 1);
  auto batch = RecordBatch(1, std::move(fixed));
  EXPECT_THAT(CopyAll<std::int16_t>(schema, *batch), ElementsAre(5, 6));
}

TEST(ArrowViewTest, ListsHonourEveryOffset) {
  const Schema schema = One(DType::kFloat32, Source::kList, {2});
  const auto values = [] {
    auto child = Primitive<float>("item", "f", {-9, 0, 1, 2, 3, 4, 5, 6, 7});
    child->Slice(1, 8);
    return child;
  };
  auto list = List<std::int32_t>("x", {0, 2, 4, 6, 8}, values());
  list->Slice(1, 3);
  auto batch = RecordBatch(3, std::move(list));
  EXPECT_THAT(CopyAll<float>(schema, *batch), ElementsAre(2, 3, 4, 5, 6, 7));
  batch->Slice(1, 1);
  EXPECT_THAT(CopyAll<float>(schema, *batch), ElementsAre(4, 5));

  auto large = List<std::int64_t>("x", {2, 4, 6}, values());
  batch = RecordBatch(2, std::move(large));
  EXPECT_THAT(CopyAll<float>(schema, *batch), ElementsAre(2, 3, 4, 5));

  auto fixed = FixedList("x", 2, 4, values());
  fixed->Slice(1, 3);
  batch = RecordBatch(3, std::move(fixed));
  batch->Slice(1, 2);
  EXPECT_THAT(CopyAll<float>(schema, *batch), ElementsAre(4, 5, 6, 7));
}

TEST(ArrowViewTest, ListsOfBooleansUnpack) {
  auto batch =
      RecordBatch(2, List<std::int32_t>("x", {1, 4, 7}, Bools("item", {0, 1, 0, 1, 1, 1, 0})));
  EXPECT_THAT(CopyAll<std::uint8_t>(One(DType::kBool, Source::kList, {3}), *batch),
              ElementsAre(1, 0, 1, 1, 1, 0));
}

TEST(ArrowViewTest, ColumnsAreFoundByNameInSchemaOrder) {
  auto batch = RecordBatch(1, Primitive<float>("b", "f", {2.5F}), Strings("extra", "u", {"?"}),
                           Primitive<std::int64_t>("a", "l", {7}));
  const Schema schema{
      {{"a", DType::kInt64, Source::kScalar, {}}, {"b", DType::kFloat32, Source::kScalar, {}}}};
  const Result<BatchView> view = ViewBatch(schema, batch->type, batch->array);
  ASSERT_TRUE(view.ok()) << view.status().ToString();
  std::int64_t a = 0;
  std::memcpy(&a, view->columns[0].data, 8);
  EXPECT_EQ(a, 7);
}

TEST(ArrowViewTest, EmptyBatchNeedsNoBuffers) {
  for (const Schema& schema :
       {One(DType::kFloat32), One(DType::kString), One(DType::kBool),
        One(DType::kFloat32, Source::kList, {3}), One(DType::kInt8, Source::kRaw, {3})}) {
    const Column& c = schema.columns[0];
    const char* format = c.source == Source::kList   ? "+l"
                         : c.source == Source::kRaw  ? "z"
                         : c.dtype == DType::kString ? "u"
                         : c.dtype == DType::kBool   ? "b"
                                                     : "f";
    auto column = std::make_unique<TestArray>(format, "x", 0);
    if (c.source == Source::kList) column->AddChild(std::make_unique<TestArray>("f", "item", 0));
    auto batch = RecordBatch(0, std::move(column));
    const Result<BatchView> view = ViewBatch(schema, batch->type, batch->array);
    ASSERT_TRUE(view.ok()) << view.status().ToString();
    EXPECT_EQ(view->rows, 0u);
    EXPECT_EQ(StringBytes(view->columns[0], 0, 0), 0u);
  }
}

TEST(ArrowViewTest, NullsAreCountedWithinTheSliceOnly) {
  auto column = Primitive<float>("x", "f", std::vector<float>(200, 1.0F));
  std::vector<bool> valid(200, true);
  valid[0] = valid[70] = valid[71] = valid[199] = false;
  column->SetValidity(valid);
  auto batch = RecordBatch(200, std::move(column));
  const Schema schema = One(DType::kFloat32);
  ExpectRefused(schema, *batch, "column 'x': 4 nulls; tensors have no nulls");
  batch->Slice(1, 70);
  ExpectRefused(schema, *batch, "column 'x': 1 null;");
  batch->Slice(1, 69);
  EXPECT_EQ(CopyAll<float>(schema, *batch).size(), 69u);
  batch->child(0).array.null_count = 0;  // a claim that is not true is not believed
  batch->Slice(0, 200);
  ExpectRefused(schema, *batch, "4 nulls");
}

TEST(ArrowViewTest, NullsWithoutBitmapAreMalformed) {
  auto batch = RecordBatch(1, Primitive<float>("x", "f", {1}));
  batch->child(0).array.null_count = 1;
  ExpectRefused(One(DType::kFloat32), *batch, "no validity bitmap");
}

TEST(ArrowViewTest, NullsInsideListsAreRefused) {
  auto values = Primitive<float>("item", "f", {1, 2, 3, 4, 5, 6});
  values->SetValidity({true, true, true, false, true, false});
  auto batch = RecordBatch(3, List<std::int32_t>("x", {0, 2, 4, 6}, std::move(values)));
  const Schema schema = One(DType::kFloat32, Source::kList, {2});
  ExpectRefused(schema, *batch, "column 'x': list values: 2 nulls");
  batch->Slice(0, 1);
  EXPECT_THAT(CopyAll<float>(schema, *batch), ElementsAre(1, 2));
}

TEST(ArrowViewTest, NullRowsOfTheBatchItselfAreRefused) {
  auto batch = RecordBatch(2, Primitive<float>("x", "f", {1, 2}));
  batch->SetValidity({true, false});
  ExpectRefused(One(DType::kFloat32), *batch, "record batch: 1 null");
}

TEST(ArrowViewTest, RaggedListNamesRowAndBothLengths) {
  auto batch = RecordBatch(
      3, List<std::int32_t>("x", {0, 2, 3, 6}, Primitive<float>("item", "f", {1, 2, 3, 4, 5, 6})));
  ExpectRefused(One(DType::kFloat32, Source::kList, {2}), *batch,
                "column 'x': row 1: 1 values, the schema says 2;");
  auto fixed = RecordBatch(1, FixedList("x", 3, 1, Primitive<float>("item", "f", {1, 2, 3})));
  ExpectRefused(One(DType::kFloat32, Source::kList, {2}), *fixed, "3 values, the schema says 2");
}

TEST(ArrowViewTest, RawValueOfAnotherLengthIsRefused) {
  auto batch = RecordBatch(2, Strings("x", "z", {"abcd", "abcde"}));
  ExpectRefused(One(DType::kFloat32, Source::kRaw, {1}), *batch,
                "column 'x': row 1: 5 bytes, the schema says 4;");
  auto fixed = RecordBatch(1, FixedBinary("x", 5, {"abcde"}));
  ExpectRefused(One(DType::kFloat32, Source::kRaw, {1}), *fixed,
                "expected binary of 4 bytes (1 x float32), found fixed_size_binary[5]");
}

TEST(ArrowViewTest, RawBooleansMustBeZeroOrOne) {
  auto batch = RecordBatch(2, Strings("x", "z", {std::string("\0\1", 2), std::string("\1\7", 2)}));
  ExpectRefused(One(DType::kBool, Source::kRaw, {2}), *batch, "row 1: byte 7 is no boolean");
}

TEST(ArrowViewTest, WrongTypeNamesBoth) {
  const auto expect = [](const Schema& schema, TestArrayPtr column, const std::string& part) {
    auto batch = RecordBatch(1, std::move(column));
    ExpectRefused(schema, *batch, "column 'x': expected ");
    ExpectRefused(schema, *batch, part);
  };
  expect(One(DType::kFloat32), Primitive<double>("x", "g", {1}), "expected float32, found float64");
  expect(One(DType::kInt64), Primitive<std::int64_t>("x", "tsn:UTC", {1}),
         "expected int64, found timestamp[ns, tz=UTC]; only timestamps in microseconds");
  expect(One(DType::kInt32), Primitive<std::int32_t>("x", "tts", {1}), "found time32[s]");
  expect(One(DType::kFloat32), Strings("x", "u", {"1"}), "expected float32, found string");
  expect(One(DType::kString), Primitive<float>("x", "f", {1}),
         "expected string or binary, found float32");
  expect(One(DType::kString), std::make_unique<TestArray>("vu", "x", 1),
         "found string_view; cast views");
  expect(One(DType::kString), std::make_unique<TestArray>("vz", "x", 1),
         "found binary_view; cast views");
  expect(One(DType::kFloat32), std::make_unique<TestArray>("n", "x", 1),
         "found null; the column holds only nulls");
  expect(One(DType::kFloat32), std::make_unique<TestArray>("d:10,2", "x", 1),
         "found decimal(10,2)");
  expect(One(DType::kFloat32), List<std::int32_t>("x", {0, 1}, Primitive<float>("item", "f", {1})),
         "expected float32, found list<float32>");
  expect(One(DType::kFloat32, Source::kList, {1}),
         List<std::int32_t>("x", {0, 1}, Primitive<double>("item", "g", {1})),
         "expected list<float32> of length 1, found list<float64>");
  expect(One(DType::kFloat32, Source::kList, {1}),
         List<std::int32_t>("x", {0, 1},
                            List<std::int32_t>("item", {0, 1}, Primitive<float>("item", "f", {1}))),
         "found list<list<float32>>");
  expect(One(DType::kUInt8, Source::kRaw, {1}), Strings("x", "u", {"1"}), "found string");
}

TEST(ArrowViewTest, DictionaryEncodingIsRefused) {
  auto column = Primitive<std::int32_t>("x", "i", {0});
  column->SetDictionary(Strings("", "u", {"a"}));
  auto batch = RecordBatch(1, std::move(column));
  ExpectRefused(One(DType::kString), *batch,
                "column 'x': is dictionary-encoded (dictionary<i, string>)");
  ExpectRefused(One(DType::kInt32), *batch, "dictionary-encoded");
}

TEST(ArrowViewTest, MissingAndDoubleColumnsAreRefused) {
  auto batch = RecordBatch(1, Primitive<float>("y", "f", {1}), Primitive<float>("z", "f", {1}));
  ExpectRefused(One(DType::kFloat32), *batch, "column 'x': missing; the batch has 'y', 'z'");
  batch = RecordBatch(1, Primitive<float>("x", "f", {1}), Primitive<float>("x", "f", {1}));
  ExpectRefused(One(DType::kFloat32), *batch, "column 'x': there twice");
}

TEST(ArrowViewTest, HostileOffsetsAreRefused) {
  const auto strings = [](const std::vector<std::int32_t>& offsets) {
    auto column =
        std::make_unique<TestArray>("u", "x", static_cast<std::int64_t>(offsets.size()) - 1);
    column->AddBuffer(offsets);
    column->AddBuffer(std::vector<char>(16, 'a'));
    return RecordBatch(static_cast<std::int64_t>(offsets.size()) - 1, std::move(column));
  };
  const Schema schema = One(DType::kString);
  ExpectRefused(schema, *strings({0, 5, 3}), "row 1: corrupt offsets 5 and 3");
  ExpectRefused(schema, *strings({-4, 5, 6}), "row 0: corrupt offsets -4 and 5");
  ExpectRefused(schema, *strings({0, std::numeric_limits<std::int32_t>::min(), 4}),
                "row 0: corrupt offsets");
  const Schema lists = One(DType::kFloat32, Source::kList, {2});
  auto past =
      RecordBatch(2, List<std::int32_t>("x", {0, 2, 4}, Primitive<float>("item", "f", {1, 2, 3})));
  ExpectRefused(lists, *past, "row 1: corrupt offsets 2 and 4");
  auto wraps = RecordBatch(1, List<std::int32_t>("x",
                                                 {std::numeric_limits<std::int32_t>::max(),
                                                  std::numeric_limits<std::int32_t>::min() + 1},
                                                 Primitive<float>("item", "f", {1, 2, 3})));
  ExpectRefused(lists, *wraps, "row 0: corrupt offsets");
}

TEST(ArrowViewTest, ImpossibleSizesAreRefused) {
  const Schema schema = One(DType::kFloat32);
  const auto make = [] { return RecordBatch(2, Primitive<float>("x", "f", {1, 2})); };
  auto batch = make();
  batch->array.length = -1;
  ExpectRefused(schema, *batch, "record batch: impossible length -1");
  batch = make();
  batch->array.offset = std::numeric_limits<std::int64_t>::max();
  ExpectRefused(schema, *batch, "record batch: impossible length");
  batch = make();
  batch->array.offset = 1;
  ExpectRefused(schema, *batch, "column 'x': holds 2 values, needs 3");
  batch = make();
  batch->child(0).array.offset = -1;
  ExpectRefused(schema, *batch, "column 'x': impossible length 2 or offset -1");
  batch = make();
  batch->child(0).array.buffers[1] = nullptr;
  ExpectRefused(schema, *batch, "column 'x': has no data buffer");
  auto fixed = RecordBatch(2, FixedList("x", 2, 2, Primitive<float>("item", "f", {1, 2, 3})));
  ExpectRefused(One(DType::kFloat32, Source::kList, {2}), *fixed,
                "list values: holds 3 values, needs 4");
}

TEST(ArrowViewTest, MalformedStructsAreRefused) {
  const Schema schema = One(DType::kFloat32);
  auto batch = RecordBatch(1, Primitive<float>("x", "f", {1}));
  batch->array.n_children = 0;
  ExpectRefused(schema, *batch, "different columns");
  batch = RecordBatch(1, Primitive<float>("x", "f", {1}));
  batch->array.release = nullptr;
  ExpectRefused(schema, *batch, "released before");
  batch = RecordBatch(1, Primitive<float>("x", "f", {1}));
  batch->array.children[0] = nullptr;
  ExpectRefused(schema, *batch, "column 0 is null");
  auto bare = Primitive<float>("x", "f", {1});
  ExpectRefused(schema, *bare, "expected a record batch, found float32");
}

}  // namespace
}  // namespace arcflow::columnar
