// SPDX-License-Identifier: Apache-2.0
// Tests of columns that are walked to: nested lists, fields, nulls, casts, decimals, vectors; and
// random columns against a slow reference.
#include "arcflow/columnar/arrow_walk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "arcflow/columnar/arrow_cast.h"
#include "arcflow/columnar/arrow_testing.h"

namespace arcflow::columnar {
namespace {

using namespace testing;  // NOLINT: the builders of arrow_testing.h
using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Schema Parsed(const char* column) {
  Result<Schema> schema = Schema::FromJson({{"columns", json::array({json::parse(column)})}});
  EXPECT_TRUE(schema.ok()) << schema.status().ToString();
  return schema.ok() ? *schema : Schema{{Column{"x"}}};
}

/// Rows [begin, begin + rows) of the only column, as bytes by row.
std::vector<std::string> RowBytes(const Schema& schema, const BatchView& view, std::size_t begin,
                                  std::size_t rows) {
  const Column& column = schema.columns[0];
  std::vector<std::string> out;
  if (!column.variable()) {
    std::string all(rows * column.row_bytes(), '\0');
    CopyRows(view.columns[0], column, begin, rows, reinterpret_cast<std::byte*>(all.data()));
    for (std::size_t i = 0; i < rows; ++i) {
      out.push_back(all.substr(i * column.row_bytes(), column.row_bytes()));
    }
    return out;
  }
  std::vector<std::int64_t> ends(rows);
  std::string all(StringBytes(view.columns[0], begin, rows), '\0');
  CopyStrings(view.columns[0], begin, rows, 0, ends.data(),
              reinterpret_cast<std::byte*>(all.data()));
  std::int64_t at = 0;
  for (const std::int64_t end : ends) {
    out.push_back(all.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(end - at)));
    at = end;
  }
  EXPECT_EQ(static_cast<std::size_t>(at), all.size());
  return out;
}

template <typename T>
std::string Bytes(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <typename T>
std::vector<std::vector<T>> Rows(const Schema& schema, TestArray& batch) {
  const Result<BatchView> view = ViewBatch(schema, batch.type, batch.array);
  EXPECT_TRUE(view.ok()) << view.status().ToString();
  std::vector<std::vector<T>> out;
  if (!view.ok()) return out;
  for (const std::string& bytes : RowBytes(schema, *view, 0, view->rows)) {
    std::vector<T> row(bytes.size() / sizeof(T));
    if (!row.empty()) std::memcpy(row.data(), bytes.data(), bytes.size());
    out.push_back(std::move(row));
  }
  return out;
}

using Ints = std::vector<std::int32_t>;

/// [[[0], [1, 2]], [], [[3, 4, 5]]], with junk before and behind on every level.
TestArrayPtr NestedBatch() {
  auto values = Primitive<std::int32_t>("item", "i", {9, 9, 0, 1, 2, 3, 4, 5, 9});
  values->Slice(1, 7);
  auto inner = List<std::int32_t>("item", {0, 1, 2, 4, 7}, std::move(values));
  inner->Slice(1, 3);
  auto outer = List<std::int64_t>("x", {0, 0, 2, 2, 3}, std::move(inner));
  outer->Slice(1, 3);
  return RecordBatch(3, std::move(outer));
}

TEST(ArrowWalkTest, RaggedListsOfRaggedListsComeAsLengthsAndValues) {
  auto batch = NestedBatch();
  const auto values =
      Parsed(R"({"name": "x", "dtype": "int32", "source": "list", "levels": [-1, -1]})");
  EXPECT_THAT(Rows<std::int32_t>(values, *batch),
              ElementsAre(Ints{0, 1, 2}, Ints{}, Ints{3, 4, 5}));
  const auto lengths = Parsed(
      R"({"name": "l", "path": ["x"], "dtype": "int64", "source": "lengths", "levels": [-1]})");
  using Longs = std::vector<std::int64_t>;
  EXPECT_THAT(Rows<std::int64_t>(lengths, *batch), ElementsAre(Longs{1, 2}, Longs{}, Longs{3}));
  batch->Slice(1, 2);
  EXPECT_THAT(Rows<std::int32_t>(values, *batch), ElementsAre(Ints{}, Ints{3, 4, 5}));
}

TEST(ArrowWalkTest, UniformListsOfListsAreDense) {
  auto inner = List<std::int32_t>("item", {0, 2, 4, 6, 8},
                                  Primitive<float>("item", "f", {0, 1, 2, 3, 4, 5, 6, 7}));
  auto batch = RecordBatch(2, List<std::int32_t>("x", {0, 2, 4}, std::move(inner)));
  const auto schema = Parsed(
      R"({"name": "x", "dtype": "float32", "source": "list", "shape": [2, 2], "levels": [2, 2]})");
  EXPECT_THAT(Rows<float>(schema, *batch),
              ElementsAre(std::vector<float>{0, 1, 2, 3}, std::vector<float>{4, 5, 6, 7}));
  ExpectRefused(
      Parsed(
          R"({"name": "x", "dtype": "float32", "source": "list", "shape": [3, 2], "levels": [3, 2]})"),
      *batch, "column 'x': row 0: 2 values, the schema says 3");
  ExpectRefused(
      Parsed(
          R"({"name": "x", "dtype": "float32", "source": "list", "shape": [2, 3], "levels": [2, 3]})"),
      *batch, "column 'x': list values: row 0: 2 values");
  ExpectRefused(Parsed(R"({"name": "x", "dtype": "float32", "source": "list", "levels": [-1]})"),
                *batch, "expected list<float32>, found list<list<float32>>");
}

TEST(ArrowWalkTest, LargeOffsetsBeyond32BitsAreCounted) {
  // Booleans, of which 2^33 take a gigabyte that nobody touches: only the last list is read.
  constexpr std::int64_t kFirst = (std::int64_t{1} << 33) + 5;
  std::vector<std::uint8_t> bits(2, 0b0110'0000);
  auto values = std::make_unique<TestArray>("b", "item", kFirst + 3);
  values->AddBuffer(bits);
  // The buffer begins so far before the bits that element kFirst is bit 5 of the first.
  values->array.buffers[1] = static_cast<const std::byte*>(values->array.buffers[1]) -
                             static_cast<std::ptrdiff_t>(kFirst / 8);
  auto batch = RecordBatch(1, List<std::int64_t>("x", {kFirst, kFirst + 3}, std::move(values)));
  const auto schema = Parsed(R"({"name": "x", "dtype": "bool", "source": "list", "levels": [-1]})");
  EXPECT_THAT(Rows<std::uint8_t>(schema, *batch), ElementsAre(std::vector<std::uint8_t>{1, 1, 0}));
}

TEST(ArrowWalkTest, FieldsOfStructsInStructsHonourEveryOffsetAndNull) {
  auto leaf = Primitive<std::int64_t>("b", "l", {7, 7, 1, 2, 3, 4});
  leaf->Slice(1, 5);
  auto inner = RecordBatch(5, std::move(leaf));
  inner->type.name = "a";
  inner->Slice(1, 4);
  auto outer = RecordBatch(4, std::move(inner));
  outer->type.name = "s";
  auto batch = RecordBatch(4, std::move(outer));
  const auto schema = Parsed(R"({"name": "s.a.b", "path": ["s", "a", "b"], "dtype": "int64"})");
  using Longs = std::vector<std::int64_t>;
  EXPECT_THAT(Rows<std::int64_t>(schema, *batch),
              ElementsAre(Longs{1}, Longs{2}, Longs{3}, Longs{4}));
  batch->child(0).SetValidity({true, false, true, true});
  ExpectRefused(schema, *batch, "field 'a': 1 null");
  const auto filled =
      Parsed(R"({"name": "x", "path": ["s", "a", "b"], "dtype": "int64", "fill": -1})");
  batch->child(0).child(0).SetValidity({true, true, true, true, false});  // of the inner, from 0
  EXPECT_THAT(Rows<std::int64_t>(filled, *batch),
              ElementsAre(Longs{1}, Longs{-1}, Longs{3}, Longs{-1}));
  ExpectRefused(Parsed(R"({"name": "x", "path": ["s", "no", "b"], "dtype": "int64", "fill": 0})"),
                *batch, "field 'no': missing; the struct has 'a'");
}

TEST(ArrowWalkTest, CastsAreCheckedAndNameTheRow) {
  auto batch = RecordBatch(3, Primitive<std::int64_t>("x", "l", {1, -2, 1LL << 31}));
  const auto schema = Parsed(R"({"name": "x", "dtype": "int32", "from": "int64"})");
  ExpectRefused(schema, *batch, "column 'x': row 2: 2147483648 is out of the range of int32");
  batch->Slice(0, 2);
  EXPECT_THAT(Rows<std::int32_t>(schema, *batch), ElementsAre(Ints{1}, Ints{-2}));
  ExpectRefused(Parsed(R"({"name": "x", "dtype": "uint8", "from": "int64"})"), *batch, "row 1: -2");
  ExpectRefused(Parsed(R"({"name": "x", "dtype": "float32", "from": "float64"})"), *batch,
                "expected float64, found int64");
}

TEST(ArrowWalkTest, NullsUnderACastAreNotChecked) {
  auto column = Primitive<std::int64_t>("x", "l", {1, 1LL << 40, 3});
  column->SetValidity({true, false, true});
  auto batch = RecordBatch(3, std::move(column));
  const auto schema = Parsed(R"({"name": "x", "dtype": "int32", "from": "int64", "fill": -9})");
  EXPECT_THAT(Rows<std::int32_t>(schema, *batch), ElementsAre(Ints{1}, Ints{-9}, Ints{3}));
}

TEST(ArrowWalkTest, DecimalsAreTheNearestDoubleExactIntegersOrText) {
  const auto decimals = [](std::vector<__int128> values, const char* format) {
    return RecordBatch(static_cast<std::int64_t>(values.size()),
                       Primitive<__int128>("x", format, values));
  };
  auto batch = decimals({12345, -5, 0}, "d:10,2");
  const auto number = Parsed(R"({"name": "x", "dtype": "float64", "decimal": 2})");
  using Doubles = std::vector<double>;
  EXPECT_THAT(Rows<double>(number, *batch),
              ElementsAre(Doubles{123.45}, Doubles{-0.05}, Doubles{0}));
  const auto text = Parsed(R"({"name": "x", "dtype": "string", "decimal": 2})");
  const auto view = ViewBatch(text, batch->type, batch->array);
  ASSERT_TRUE(view.ok());
  EXPECT_THAT(RowBytes(text, *view, 0, 3), ElementsAre("123.45", "-0.05", "0.00"));
  const auto scaled = Parsed(R"({"name": "x", "dtype": "int64", "decimal": 2})");
  EXPECT_EQ(Rows<std::int64_t>(scaled, *batch)[1][0], -5);
  ExpectRefused(Parsed(R"({"name": "x", "dtype": "int64", "decimal": 3})"), *batch,
                "expected decimal of scale 3, found decimal(10,2)");
  __int128 large = 1;
  for (int i = 0; i < 37; ++i) large *= 10;
  auto wide = decimals({large, -large / 3}, "d:38,2");
  ExpectRefused(scaled, *wide, "row 0: 10000000000000000000000000000000000000 is out of the range");
  EXPECT_EQ(Rows<double>(number, *wide)[0][0], 1e35);
  EXPECT_EQ(Rows<double>(number, *wide)[1][0], -33333333333333333333333333333333333.33);
}

TestArrayPtr Vectors() {
  auto types = Primitive<std::int8_t>("type", "c", {9, 1, 0, 0});
  auto sizes = Primitive<std::int32_t>("size", "i", {9, 0, 4, 4});
  auto indices = List<std::int32_t>("indices", {0, 0, 0, 2, 2},
                                    Primitive<std::int32_t>("element", "i", {1, 3}));
  auto values = List<std::int32_t>("values", {0, 1, 5, 7, 7},
                                   Primitive<double>("element", "g", {9, 1, 2, 3, 4, 5, 6}));
  auto vectors =
      RecordBatch(4, std::move(types), std::move(sizes), std::move(indices), std::move(values));
  vectors->type.name = "v";
  vectors->Slice(1, 3);
  return RecordBatch(3, std::move(vectors));
}

TEST(ArrowWalkTest, VectorsAreDenseRowsOrPositionsAndValues) {
  auto batch = Vectors();
  const auto dense =
      Parsed(R"({"name": "v", "dtype": "float64", "source": "vector", "shape": [4], "limit": 4})");
  using Doubles = std::vector<double>;
  EXPECT_THAT(Rows<double>(dense, *batch),
              ElementsAre(Doubles{1, 2, 3, 4}, Doubles{0, 5, 0, 6}, Doubles{0, 0, 0, 0}));
  const auto positions = Parsed(
      R"({"name": "i", "path": ["v"], "dtype": "int64", "source": "vector_indices", "limit": 4})");
  using Longs = std::vector<std::int64_t>;
  EXPECT_THAT(Rows<std::int64_t>(positions, *batch),
              ElementsAre(Longs{0, 1, 2, 3}, Longs{1, 3}, Longs{}));
  const auto values = Parsed(
      R"({"name": "e", "path": ["v", "values"], "dtype": "float32", "from": "float64",
          "source": "list", "levels": [-1]})");
  EXPECT_THAT(
      Rows<float>(values, *batch),
      ElementsAre(std::vector<float>{1, 2, 3, 4}, std::vector<float>{5, 6}, std::vector<float>{}));
  batch->child(0).Slice(1, 1);  // dense only: as it lies there
  batch->Slice(0, 1);
  const auto view = ViewBatch(dense, batch->type, batch->array);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->columns[0].owned, nullptr);
}

TEST(ArrowWalkTest, VectorsOfAnotherSizeAndCorruptOnesAreRefused) {
  const auto dense =
      Parsed(R"({"name": "v", "dtype": "float64", "source": "vector", "shape": [5], "limit": 5})");
  auto batch = Vectors();
  ExpectRefused(dense, *batch, "row 0: a vector of 4 elements, the schema says 5");
  const auto four =
      Parsed(R"({"name": "v", "dtype": "float64", "source": "vector", "shape": [4], "limit": 4})");
  const auto damage = [&](std::size_t field, auto value, std::size_t at) {
    auto broken = Vectors();
    TestArray& child = broken->child(0).child(field);
    TestArray& data = field < 2 ? child : child.child(0);
    std::memcpy(
        static_cast<std::byte*>(const_cast<void*>(data.array.buffers[1])) + at * sizeof(value),
        &value, sizeof(value));
    return broken;
  };
  ExpectRefused(four, *damage(0, std::int8_t{7}, 1), "no vector: type 7");
  ExpectRefused(four, *damage(2, std::int32_t{4}, 1), "corrupt vector: index 4 of 4");
  ExpectRefused(four, *damage(2, std::int32_t{-1}, 0), "corrupt vector: index -1");
  ExpectRefused(four, *damage(2, std::int32_t{3}, 0), "index 3 of 4 elements after 3");
}

TEST(ArrowWalkTest, FieldsBesideTheValueMustBeAsExpected) {
  auto image = RecordBatch(2, Primitive<std::int32_t>("height", "i", {2, 1}),
                           Strings("data", "z", {"ab", "cd"}));
  image->type.name = "image";
  auto batch = RecordBatch(2, std::move(image));
  const char* text =
      R"({"name": "image", "path": ["image", "data"], "dtype": "uint8", "source": "raw",
                         "shape": [2, 1], "expect": {"height": 2}})";
  ExpectRefused(Parsed(text), *batch,
                "column 'image': field 'data': 'height': row 1: is 1, must be 2");
  batch->Slice(0, 1);
  EXPECT_THAT(Rows<std::uint8_t>(Parsed(text), *batch),
              ElementsAre(std::vector<std::uint8_t>{'a', 'b'}));
}

TEST(ArrowCastTest, EveryPairOfTypesConvertsEveryEdgeValueOrFindsIt) {
  const DType ints[] = {DType::kInt8, DType::kInt16, DType::kInt32, DType::kInt64, DType::kUInt8};
  const auto lowest = [](DType d) -> std::int64_t {
    if (d == DType::kUInt8) return 0;
    return -(std::int64_t{1} << (8 * SizeOf(d) - 2)) * 2;
  };
  const auto highest = [](DType d) -> std::int64_t {
    if (d == DType::kUInt8) return 255;
    return ((std::int64_t{1} << (8 * SizeOf(d) - 2)) - 1) * 2 + 1;
  };
  for (const DType from : ints) {
    for (const DType to : ints) {
      ASSERT_TRUE(CanCast(from, to));
      for (const std::int64_t value :
           {std::int64_t{0}, std::int64_t{-1}, lowest(from), highest(from), lowest(to), highest(to),
            lowest(to) - (to != DType::kInt64), highest(to) + (to != DType::kInt64)}) {
        if (value < lowest(from) || value > highest(from)) continue;
        std::vector<std::int64_t> wide(1000, 1);  // as many as make several blocks
        wide[777] = value;
        std::string in;
        for (const std::int64_t w : wide)
          in.append(reinterpret_cast<const char*>(&w), SizeOf(from));
        const auto* data = reinterpret_cast<const std::byte*>(in.data());
        const auto misfit = FirstMisfit(from, to, data, wide.size());
        const bool fits = value >= lowest(to) && value <= highest(to);
        ASSERT_EQ(misfit.has_value(), !fits) << NameOf(from) << " " << NameOf(to) << " " << value;
        if (!fits) {
          EXPECT_EQ(*misfit, 777u);
          continue;
        }
        std::string out(wide.size() * SizeOf(to), '\0');
        CastElements(from, to, data, wide.size(), reinterpret_cast<std::byte*>(out.data()));
        std::string expected;
        for (const std::int64_t w : wide) {
          expected.append(reinterpret_cast<const char*>(&w), SizeOf(to));
        }
        EXPECT_EQ(out, expected);
      }
    }
  }
  EXPECT_FALSE(CanCast(DType::kFloat32, DType::kInt64));
  EXPECT_FALSE(CanCast(DType::kInt8, DType::kBool));
  EXPECT_FALSE(CanCast(DType::kString, DType::kInt8));
}

TEST(ArrowCastTest, FloatsRoundAndOverflowAsIeeeSays) {
  const std::vector<double> in = {1.0 / 3, 1e300, -1e300, std::nan(""), -0.0};
  std::vector<float> out(in.size());
  CastElements(DType::kFloat64, DType::kFloat32, reinterpret_cast<const std::byte*>(in.data()),
               in.size(), reinterpret_cast<std::byte*>(out.data()));
  EXPECT_EQ(out[0], static_cast<float>(1.0 / 3));
  EXPECT_EQ(out[1], std::numeric_limits<float>::infinity());
  EXPECT_EQ(out[2], -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(out[3]));
  EXPECT_TRUE(std::signbit(out[4]));
}

// ---- Random columns against a slow reference ---------------------------------------------------

/// A value as JSON would have it.
struct Node {
  bool null = false;
  std::int64_t number = 0;
  std::string text;
  std::vector<Node> items;
};

class RandomColumn {
 public:
  explicit RandomColumn(std::uint64_t seed) : random_(seed) {
    depth_ = Pick(3);
    strings_ = Pick(4) == 0;
    nulls_ = Pick(2) == 0;
    bool varies = false;
    for (std::size_t i = 0; i < depth_; ++i) {
      // Variable levels first, as the schema wants of shapes; but the core takes any order.
      levels_.push_back(Pick(2) == 0 ? kVariable : static_cast<std::int64_t>(Pick(4)));
      varies = varies || levels_.back() == kVariable;
    }
    const std::size_t n = Pick(20);
    for (std::size_t i = 0; i < n; ++i) rows_.push_back(Make(0));
  }

  std::size_t rows() const { return rows_.size(); }

  /// A record batch of all rows with junk before and behind.
  TestArrayPtr Batch() {
    std::vector<Node> all;
    const std::size_t before = Pick(4);
    for (std::size_t i = 0; i < before; ++i) all.push_back(Make(0));
    all.insert(all.end(), rows_.begin(), rows_.end());
    for (std::size_t i = Pick(4); i > 0; --i) all.push_back(Make(0));
    auto column = Build(0, all);
    column->type.name = "x";
    const auto n = static_cast<std::int64_t>(rows_.size());
    if (Pick(2) == 0) {
      column->array.offset += static_cast<std::int64_t>(before);
      column->array.length = n;
      return RecordBatch(n, std::move(column));
    }
    auto batch = RecordBatch(static_cast<std::int64_t>(all.size()), std::move(column));
    batch->Slice(static_cast<std::int64_t>(before), n);
    return batch;
  }

  /// A schema for it, and what it must make of each row.
  struct Want {
    Schema schema;
    std::vector<std::string> rows;
  };
  std::vector<Want> Wants() {
    std::vector<Want> out;
    json column{{"name", "c"}, {"path", {"x"}}};
    if (!levels_.empty()) column["levels"] = levels_;
    std::vector<std::int64_t> shape;
    for (const std::int64_t n : levels_) {
      if (n == kVariable) {
        shape.clear();
      } else {
        shape.push_back(n);
      }
    }
    const bool varies = std::find(levels_.begin(), levels_.end(), kVariable) != levels_.end();
    for (const std::int64_t n : shape) {
      if (varies && n == 0) return out;  // items of nothing are refused
    }
    column["shape"] = shape;
    const auto add = [&](json extra, auto store) {
      extra.update(column);
      Result<Schema> schema = Schema::FromJson({{"columns", json::array({extra})}});
      ASSERT_TRUE(schema.ok()) << schema.status().ToString() << extra.dump();
      Want want{*schema, {}};
      for (const Node& row : rows_) {
        std::string bytes;
        Emit(row, 0, store, &bytes);
        want.rows.push_back(bytes);
      }
      out.push_back(std::move(want));
    };
    const auto number = [](auto value) {
      return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    add({{"source", "mask"}, {"dtype", "bool"}},
        [&](const Node* n) { return std::string(1, n == nullptr ? '\0' : '\1'); });
    if (strings_) {
      json lengths{{"source", "lengths"}, {"dtype", "int64"}};
      if (nulls_) lengths["fill"] = 0;
      add(lengths, [&](const Node* n) {
        return number(n == nullptr ? std::int64_t{0} : static_cast<std::int64_t>(n->text.size()));
      });
      column.erase("shape");
      json bytes{{"source", "bytes"}, {"dtype", "uint8"}};
      if (nulls_) bytes["fill"] = 0;
      add(bytes, [](const Node* n) { return n == nullptr ? std::string() : n->text; });
      return out;
    }
    json same{{"source", depth_ == 0 ? "scalar" : "list"}, {"dtype", "int16"}};
    if (nulls_) same["fill"] = -7;
    add(same, [&](const Node* n) {
      return number(static_cast<std::int16_t>(n == nullptr ? -7 : n->number));
    });
    json cast{{"source", depth_ == 0 ? "scalar" : "list"}, {"dtype", "float64"}, {"from", "int16"}};
    if (nulls_) cast["fill"] = 0.5;
    add(cast,
        [&](const Node* n) { return number(n == nullptr ? 0.5 : static_cast<double>(n->number)); });
    return out;
  }

 private:
  std::size_t Pick(std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_);
  }

  Node Make(std::size_t level) {
    Node node;
    node.null = nulls_ && Pick(4) == 0;
    if (level == depth_) {
      node.number = static_cast<std::int64_t>(Pick(65536)) - 32768;
      node.text = std::string(Pick(5), static_cast<char>('a' + Pick(26)));
      return node;
    }
    // What a null list holds must not matter.
    const bool any = levels_[level] == kVariable || node.null;
    const std::size_t n = any ? Pick(4) : static_cast<std::size_t>(levels_[level]);
    for (std::size_t i = 0; i < n; ++i) node.items.push_back(Make(level + 1));
    return node;
  }

  TestArrayPtr Build(std::size_t level, const std::vector<Node>& nodes) {
    TestArrayPtr out;
    if (level < depth_) {
      std::vector<Node> items;
      const std::size_t junk = Pick(3);
      for (std::size_t i = 0; i < junk; ++i) items.push_back(Make(level + 1));
      std::vector<std::int64_t> offsets{static_cast<std::int64_t>(junk)};
      for (const Node& node : nodes) {
        items.insert(items.end(), node.items.begin(), node.items.end());
        offsets.push_back(static_cast<std::int64_t>(items.size()));
      }
      auto child = Build(level + 1, items);
      out = Pick(2) == 0
                ? List<std::int64_t>("item", offsets, std::move(child))
                : List<std::int32_t>("item", {offsets.begin(), offsets.end()}, std::move(child));
    } else if (strings_) {
      std::vector<std::string> values;
      for (const Node& node : nodes) values.push_back(node.text);
      out = Strings("item", Pick(2) == 0 ? "u" : "Z", values, Pick(3));
    } else {
      std::vector<std::int16_t> values;
      for (const Node& node : nodes) values.push_back(static_cast<std::int16_t>(node.number));
      out = Primitive<std::int16_t>("item", "s", values);
    }
    if (nulls_) {
      std::vector<bool> valid;
      for (const Node& node : nodes) valid.push_back(!node.null);
      out->SetValidity(valid);
    }
    return out;
  }

  /// Appends what a value becomes; `store` gets nullptr for a null.
  template <typename Store>
  void Emit(const Node& node, std::size_t level, const Store& store, std::string* out) const {
    if (level == depth_) {
      *out += store(node.null ? nullptr : &node);
      return;
    }
    if (!node.null) {
      for (const Node& item : node.items) Emit(item, level + 1, store, out);
      return;
    }
    if (levels_[level] == kVariable) return;
    Node missing;
    missing.null = true;
    for (std::int64_t i = 0; i < levels_[level]; ++i) Emit(missing, level + 1, store, out);
  }

  std::mt19937_64 random_;
  std::size_t depth_ = 0;
  bool strings_ = false;
  bool nulls_ = false;
  std::vector<std::int64_t> levels_;
  std::vector<Node> rows_;
};

TEST(ArrowWalkTest, RandomColumnsAreAsTheSlowReferenceSays) {
  for (std::uint64_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(seed);
    RandomColumn sut(seed);
    for (const RandomColumn::Want& want : sut.Wants()) {
      auto batch = sut.Batch();
      const Result<BatchView> view = ViewBatch(want.schema, batch->type, batch->array);
      ASSERT_TRUE(view.ok()) << view.status().ToString() << want.schema.ToJson().dump();
      ASSERT_EQ(view->rows, sut.rows());
      const std::size_t half = sut.rows() / 2;
      auto rows = RowBytes(want.schema, *view, 0, half);
      const auto rest = RowBytes(want.schema, *view, half, sut.rows() - half);
      rows.insert(rows.end(), rest.begin(), rest.end());
      ASSERT_EQ(rows, want.rows) << want.schema.ToJson().dump();
    }
  }
}

}  // namespace
}  // namespace arcflow::columnar
