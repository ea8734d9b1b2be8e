// SPDX-License-Identifier: Apache-2.0
// Tests of Schema: the JSON form round trips and every refusal names the column.
#include "arcflow/columnar/schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace arcflow::columnar {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

json OneColumn(const char* text) { return json{{"columns", json::array({json::parse(text)})}}; }

void ExpectRefused(const json& schema, const std::string& part) {
  const Result<Schema> sut = Schema::FromJson(schema);
  ASSERT_FALSE(sut.ok()) << schema.dump();
  EXPECT_EQ(sut.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(sut.status().message()), HasSubstr(part));
}

TEST(DTypeTest, EveryTypeHasNameAndSizeThatComeBack) {
  for (const auto& [name, size] :
       std::initializer_list<std::pair<const char*, std::size_t>>{{"float32", 4},
                                                                  {"float64", 8},
                                                                  {"int32", 4},
                                                                  {"uint8", 1},
                                                                  {"int16", 2},
                                                                  {"int8", 1},
                                                                  {"string", 0},
                                                                  {"int64", 8},
                                                                  {"bool", 1}}) {
    const Result<DType> d = DTypeFromName(name);
    ASSERT_TRUE(d.ok()) << name;
    EXPECT_EQ(NameOf(*d), name);
    EXPECT_EQ(SizeOf(*d), size) << name;
  }
}

TEST(DTypeTest, UnknownNameIsRefusedAndListsTheKnown) {
  const Result<DType> d = DTypeFromName("float16");
  ASSERT_FALSE(d.ok());
  EXPECT_THAT(std::string(d.status().message()), HasSubstr("float32, float64"));
}

TEST(SchemaTest, JsonRoundTripKeepsEveryField) {
  Schema sut;
  sut.columns = {{"x", DType::kFloat32, Source::kList, {28, 28}},
                 {"label", DType::kInt64, Source::kScalar, {}},
                 {"text", DType::kString, Source::kScalar, {}},
                 {"raw", DType::kInt16, Source::kRaw, {3}}};
  const Result<Schema> back = Schema::FromJson(json::parse(sut.ToJson().dump()));
  ASSERT_TRUE(back.ok()) << back.status().ToString();
  EXPECT_EQ(*back, sut);
  EXPECT_EQ(back->columns[0].row_elements(), 784u);
  EXPECT_EQ(back->columns[0].row_bytes(), 3136u);
  EXPECT_EQ(back->columns[2].row_bytes(), 0u);
}

TEST(SchemaTest, SourceAndShapeHaveDefaults) {
  const Result<Schema> sut = Schema::FromJson(OneColumn(R"({"name": "x", "dtype": "bool"})"));
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_EQ(sut->columns[0], (Column{"x", DType::kBool, Source::kScalar, {}}));
}

TEST(SchemaTest, ZeroDimensionIsAnEmptyRow) {
  const Result<Schema> sut = Schema::FromJson(
      OneColumn(R"({"name": "x", "dtype": "int8", "source": "list", "shape": [0, 5]})"));
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_EQ(sut->columns[0].row_bytes(), 0u);
}

TEST(SchemaTest, RefusesWhatIsNotASchema) {
  ExpectRefused(json::parse("[]"), "must be a JSON object");
  ExpectRefused(json::parse("{}"), "'columns' must be an array");
  ExpectRefused(json::parse(R"({"columns": {}})"), "'columns' must be an array");
  ExpectRefused(json::parse(R"({"columns": []})"), "no columns");
  ExpectRefused(json::parse(R"({"columns": [1]})"), "column 0: must be an object, is number");
  ExpectRefused(json::parse(R"({"columns": [], "row": 2})"), "unknown key 'row'");
  ExpectRefused(json::parse(R"({"columns": [], "version": 3})"), "version 3, this program reads");
  ExpectRefused(json::parse(R"({"columns": [], "version": "2"})"), "version must be an integer");
  ExpectRefused(json::parse(R"({"columns": [{"name": "x", "dtype": "int8"}], "values": {}})"),
                "'values' must be an array");
}

TEST(SchemaTest, RefusesBadColumnsByName) {
  ExpectRefused(OneColumn(R"({"dtype": "int8"})"), "column 0: 'name' is missing");
  ExpectRefused(OneColumn(R"({"name": 3, "dtype": "int8"})"), "'name' must be a string, is number");
  ExpectRefused(OneColumn(R"({"name": "", "dtype": "int8"})"), "the name is empty");
  ExpectRefused(OneColumn("{\"name\": \"a\\u0000b\", \"dtype\": \"int8\"}"), "NUL");
  ExpectRefused(OneColumn(R"({"name": "x"})"), "column 'x': 'dtype' is missing");
  ExpectRefused(OneColumn(R"({"name": "x", "dtype": "half"})"), "column 'x': unknown dtype 'half'");
  ExpectRefused(OneColumn(R"({"name": "x", "dtype": "int8", "source": "map"})"),
                "column 'x': unknown source 'map'");
  ExpectRefused(OneColumn(R"({"name": "x", "dtype": "int8", "shap": []})"), "unknown key 'shap'");
}

TEST(SchemaTest, RefusesBadShapes) {
  const auto with_shape = [](const std::string& shape, const char* dtype = "float32") {
    return OneColumn((R"({"name": "x", "source": "list", "dtype": ")" + std::string(dtype) +
                      R"(", "shape": )" + shape + "}")
                         .c_str());
  };
  ExpectRefused(with_shape("3"), "'shape' must be an array");
  ExpectRefused(with_shape("[-1]"), "dimension -1");
  ExpectRefused(with_shape("[1.5]"), "a dimension must be an integer");
  ExpectRefused(with_shape("[18446744073709551615]"), "dimension 18446744073709551615");
  ExpectRefused(with_shape("[1,1,1,1,1,1,1]"), "7 dimensions, at most 6");
  ExpectRefused(with_shape("[536870913]"), "larger than 2147483648 bytes");
  ExpectRefused(with_shape("[4294967296, 4294967296]"), "larger than");
  ExpectRefused(with_shape("[0, 4294967296]"), "larger than");
  ExpectRefused(with_shape("[2147483648, 2147483648, 4]", "int8"), "larger than");
  EXPECT_TRUE(Schema::FromJson(with_shape("[536870912]")).ok());
}

TEST(SchemaTest, RefusesContradictions) {
  ExpectRefused(OneColumn(R"({"name": "s", "dtype": "string", "shape": [2]})"),
                "column 's': a string has no row shape");
  ExpectRefused(OneColumn(R"({"name": "s", "dtype": "string", "source": "raw"})"),
                "string needs source scalar, has raw");
  ExpectRefused(OneColumn(R"({"name": "x", "dtype": "int8", "shape": [2]})"),
                "source scalar has no row shape");
  ExpectRefused(json::parse(R"({"columns": [{"name": "x", "dtype": "int8"},
                                            {"name": "x", "dtype": "bool"}]})"),
                "column 'x': the name is there twice");
}

TEST(SchemaTest, RefusesContradictionsOfLevelsCastsAndFills) {
  const auto refused = [](const std::string& fields, const std::string& part) {
    SCOPED_TRACE(fields);
    ExpectRefused(OneColumn((R"({"name": "x", )" + fields + "}").c_str()), "column 'x': " + part);
  };
  refused(R"("dtype": "int8", "levels": [-1])", "source scalar has no levels");
  refused(R"("dtype": "int8", "source": "list", "levels": [2, 3], "shape": [5])",
          "levels make 6 elements, the shape says 5");
  refused(R"("dtype": "int8", "source": "list", "levels": [-1, 3])", "levels make 3 elements");
  refused(R"("dtype": "int8", "source": "list", "levels": [-2])", "a dimension -2");
  refused(R"("dtype": "int8", "source": "list", "levels": [-1, 0], "shape": [0])", "items of no");
  refused(R"("dtype": "int8", "from": "float32")", "cannot cast float32 to int8");
  refused(R"("dtype": "bool", "from": "int8")", "cannot cast int8 to bool");
  refused(R"("dtype": "int8", "from": "int16", "source": "raw")", "'from' needs source");
  refused(R"("dtype": "int8", "decimal": 2)", "a decimal becomes float64");
  refused(R"("dtype": "int64", "decimal": 39)", "'decimal' is above 38");
  refused(R"("dtype": "int8", "fill": 128)", "fill 128 is no int8");
  refused(R"("dtype": "int8", "fill": 1.5)", "fill 1.5 is no int8");
  refused(R"("dtype": "float32", "fill": "many")", "fill \"many\" is no float32");
  refused(R"("dtype": "bool", "fill": 1)", "fill 1 is no bool");
  refused(R"("dtype": "string", "fill": 1)", "fill 1 is no string");
  refused(R"("dtype": "int32", "source": "lengths")", "source lengths needs dtype int64");
  refused(R"("dtype": "float64", "source": "vector", "limit": 3)", "source vector needs the shape");
  refused(R"("dtype": "float32", "source": "vector", "limit": 3, "shape": [3])",
          "a vector holds float64: say");
  refused(R"("dtype": "int8", "limit": 3)", "'limit' is for vectors");
  refused(R"("dtype": "int8", "path": "x")", "'path' must be an array");
  refused(R"("dtype": "int8", "expect": {"y": 1})", "'expect' needs a path");
}

TEST(SchemaTest, EveryKeyComesBack) {
  const json text =
      json::parse(R"({"version": 2, "values": [{"name": "v", "any": ["thing"]}], "columns": [
      {"name": "a", "dtype": "float32", "source": "list", "shape": [3], "levels": [-1, 3],
       "path": ["s", "a"], "from": "float64", "fill": "nan"},
      {"name": "b", "dtype": "int64", "source": "scalar", "shape": [], "decimal": 2, "fill": -3},
      {"name": "c", "dtype": "uint8", "source": "raw", "shape": [2], "path": ["i", "data"],
       "expect": {"height": 2, "mode": 0}},
      {"name": "d", "dtype": "int64", "source": "vector_indices", "shape": [], "limit": 7}]})");
  const Result<Schema> sut = Schema::FromJson(text);
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_EQ(sut->ToJson(), text);
  EXPECT_TRUE(sut->columns[0].variable());
  EXPECT_EQ(sut->columns[0].item_bytes(), 12u);
  EXPECT_EQ(sut->columns[0].row_bytes(), 0u);
}

TEST(SchemaTest, RefusesMoreColumnsThanTheBound) {
  json columns = json::array();
  for (std::size_t i = 0; i <= Schema::kMaxColumns; ++i) {
    columns.push_back({{"name", "c" + std::to_string(i)}, {"dtype", "int8"}});
  }
  ExpectRefused(json{{"columns", columns}}, "4097 columns, at most 4096");
  columns.erase(columns.size() - 1);
  EXPECT_TRUE(Schema::FromJson(json{{"columns", columns}}).ok());
}

}  // namespace
}  // namespace arcflow::columnar
