// SPDX-License-Identifier: Apache-2.0
// Rows of every column type whose values follow from their number: made as Arrow batches, compared
// when they come back.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/columnar/arrow_testing.h"
#include "arcflow/columnar/schema.h"
#include "arcflow/feed/reader.h"
#include "arcflow/feed/writer.h"

namespace arcflow::feed::testing {

using columnar::DType;
using columnar::Source;

inline columnar::Schema EveryType() {
  return {{{"flag", DType::kBool, Source::kScalar, {}},
           {"tiny", DType::kInt8, Source::kScalar, {}},
           {"small", DType::kInt16, Source::kScalar, {}},
           {"day", DType::kInt32, Source::kScalar, {}},
           {"time", DType::kInt64, Source::kScalar, {}},
           {"byte", DType::kUInt8, Source::kScalar, {}},
           {"real", DType::kFloat64, Source::kScalar, {}},
           {"pixels", DType::kFloat32, Source::kList, {2, 8}},
           {"mask", DType::kBool, Source::kList, {3}},
           {"raw", DType::kInt16, Source::kRaw, {2}},
           {"text", DType::kString, Source::kScalar, {}},
           {"blob", DType::kString, Source::kScalar, {}},
           {"bag", DType::kInt32, Source::kList, {2}, {columnar::kVariable, 2}}}};
}

/// Pairs that row `row` has in "bag".
inline std::size_t BagSize(std::uint64_t row) { return (row * 5) % 4; }

/// Fixed width only: 64 bytes of floats and a label a row.
inline columnar::Schema Dense() {
  return {{{"x", DType::kFloat32, Source::kList, {16}}, {"y", DType::kInt64, Source::kScalar, {}}}};
}

/// Element `e` of row `row`, in a range that every type holds exactly.
inline int Value(std::uint64_t row, std::size_t e) {
  return static_cast<int>((row * 31 + e * 7) % 101);
}
inline std::string Text(std::uint64_t row, std::size_t salt) {
  return std::string((row * 13 + salt) % 23, static_cast<char>('a' + (row + salt) % 26));
}

template <typename T>
std::vector<T> Values(std::uint64_t first, std::size_t rows, std::size_t k) {
  std::vector<T> out;
  for (std::uint64_t r = first; r < first + rows; ++r) {
    for (std::size_t e = 0; e < k; ++e) out.push_back(static_cast<T>(Value(r, e)));
  }
  return out;
}
inline std::vector<bool> Flags(std::uint64_t first, std::size_t rows, std::size_t k) {
  std::vector<bool> out;
  for (int v : Values<int>(first, rows, k)) out.push_back(v % 2 == 1);
  return out;
}
inline std::vector<std::string> Texts(std::uint64_t first, std::size_t rows, std::size_t salt) {
  std::vector<std::string> out;
  for (std::uint64_t r = first; r < first + rows; ++r) out.push_back(Text(r, salt));
  return out;
}

/// Rows [first, first + rows) of EveryType() as an Arrow batch, columns in another order than the
/// schema's.
inline columnar::testing::TestArrayPtr EveryTypeBatch(std::uint64_t first, std::size_t rows) {
  using namespace columnar::testing;  // NOLINT: the builders
  const auto n = static_cast<std::int64_t>(rows);
  std::vector<std::int32_t> mask_offsets;
  for (std::size_t i = 0; i <= rows; ++i) mask_offsets.push_back(static_cast<std::int32_t>(i * 3));
  std::vector<std::string> raw;
  const auto numbers = Values<std::int16_t>(first, rows, 2);
  for (std::size_t i = 0; i < rows; ++i) {
    raw.emplace_back(reinterpret_cast<const char*>(&numbers[i * 2]), 4);
  }
  std::vector<std::int32_t> bag_offsets{0};
  std::vector<std::int32_t> bag;
  for (std::uint64_t r = first; r < first + rows; ++r) {
    for (std::size_t e = 0; e < 2 * BagSize(r); ++e) bag.push_back(Value(r, e));
    bag_offsets.push_back(static_cast<std::int32_t>(bag.size() / 2));
  }
  auto pairs = FixedList("item", 2, bag_offsets.back(), Primitive("item", "i", bag));
  return RecordBatch(
      n, List<std::int32_t>("bag", bag_offsets, std::move(pairs)),
      Strings("text", "u", Texts(first, rows, 0), 5), Strings("blob", "Z", Texts(first, rows, 4)),
      Strings("raw", "z", raw), Bools("flag", Flags(first, rows, 1)),
      Primitive("tiny", "c", Values<std::int8_t>(first, rows, 1)),
      Primitive("small", "s", Values<std::int16_t>(first, rows, 1)),
      Primitive("day", "tdD", Values<std::int32_t>(first, rows, 1)),
      Primitive("time", "tsu:UTC", Values<std::int64_t>(first, rows, 1)),
      Primitive("byte", "C", Values<std::uint8_t>(first, rows, 1)),
      Primitive("real", "g", Values<double>(first, rows, 1)),
      FixedList("pixels", 16, n, Primitive("item", "f", Values<float>(first, rows, 16))),
      List<std::int32_t>("mask", mask_offsets, Bools("item", Flags(first, rows, 3))));
}

inline columnar::testing::TestArrayPtr DenseBatch(std::uint64_t first, std::size_t rows) {
  using namespace columnar::testing;  // NOLINT: the builders
  return RecordBatch(static_cast<std::int64_t>(rows),
                     FixedList("x", 16, static_cast<std::int64_t>(rows),
                               Primitive("item", "f", Values<float>(first, rows, 16))),
                     Primitive("y", "l", Values<std::int64_t>(first, rows, 1)));
}

/// The bytes that rows [first, first + rows) of a fixed-width column must have.
inline std::vector<std::byte> Expected(const columnar::Column& column, std::uint64_t first,
                                       std::size_t rows) {
  const std::size_t k = column.row_elements();
  const auto bytes = [](const auto& values) {
    std::vector<std::byte> out(values.size() * sizeof(values[0]));
    if (!out.empty()) std::memcpy(out.data(), values.data(), out.size());
    return out;
  };
  switch (column.dtype) {
    case DType::kFloat32:
      return bytes(Values<float>(first, rows, k));
    case DType::kFloat64:
      return bytes(Values<double>(first, rows, k));
    case DType::kInt8:
      return bytes(Values<std::int8_t>(first, rows, k));
    case DType::kUInt8:
      return bytes(Values<std::uint8_t>(first, rows, k));
    case DType::kInt16:
      return bytes(Values<std::int16_t>(first, rows, k));
    case DType::kInt32:
      return bytes(Values<std::int32_t>(first, rows, k));
    case DType::kInt64:
      return bytes(Values<std::int64_t>(first, rows, k));
    case DType::kBool: {
      std::vector<std::uint8_t> flags;
      for (bool b : Flags(first, rows, k)) flags.push_back(b ? 1 : 0);
      return bytes(flags);
    }
    case DType::kString:
      break;
  }
  return {};
}

/// "" when "bag" is as it should be; rows of padding have what the last real one has.
inline std::string CompareBag(const Batch& batch, const columnar::Schema& schema, std::size_t c,
                              std::uint64_t first) {
  RaggedRows got;
  if (Status s = RaggedColumn(batch, schema, c, &got); !s.ok()) return s.ToString();
  std::vector<std::int64_t> splits{0};
  std::vector<std::int32_t> want;
  const std::size_t real = batch.real_rows();
  for (std::size_t i = 0; i < batch.rows(); ++i) {
    const std::uint64_t row = first + (i < real ? i : real - 1);
    const std::size_t pairs = real == 0 ? 0 : BagSize(row);
    for (std::size_t e = 0; e < 2 * pairs; ++e) want.push_back(Value(row, e));
    splits.push_back(static_cast<std::int64_t>(want.size() / 2));
  }
  if (got.splits != splits) return "splits of bag";
  std::vector<std::int32_t> items(got.bytes / sizeof(std::int32_t));
  CopyItems(got, reinterpret_cast<std::byte*>(items.data()));
  return items == want ? "" : "items of bag";
}

/// "" when the batch holds rows [first, first + real_rows) and padding that repeats the last of
/// them (or zeros); else what is wrong.
inline std::string Compare(const Batch& batch, const columnar::Schema& schema,
                           std::uint64_t first) {
  const std::size_t real = batch.real_rows();
  for (std::size_t c = 0; c < schema.columns.size(); ++c) {
    const columnar::Column& column = schema.columns[c];
    if (column.dtype == DType::kString) {
      std::vector<std::string_view> got;
      if (Status s = StringColumn(batch, c, &got); !s.ok()) return s.ToString();
      std::vector<std::string> want = Texts(first, real, column.name == "blob" ? 4 : 0);
      want.resize(batch.rows(), want.empty() ? std::string() : want.back());
      if (!std::equal(got.begin(), got.end(), want.begin(), want.end()))
        return "strings of " + column.name;
      continue;
    }
    if (column.variable()) {
      if (std::string wrong = CompareBag(batch, schema, c, first); !wrong.empty()) return wrong;
      continue;
    }
    std::vector<std::byte> got(batch.rows() * column.row_bytes());
    if (Status s = CopyColumn(batch, schema, c, got); !s.ok()) return s.ToString();
    std::vector<std::byte> want = Expected(column, first, real);
    const auto last = real == 0 ? std::vector<std::byte>(column.row_bytes())
                                : Expected(column, first + real - 1, 1);
    for (std::size_t i = 0; i < batch.padding; ++i)
      want.insert(want.end(), last.begin(), last.end());
    if (got != want) return "bytes of " + column.name;
    const auto view = DenseView(batch, c);
    if (!view.empty() && !std::equal(view.begin(), view.end(), want.begin(), want.end()))
      return "view of " + column.name;
  }
  return "";
}

}  // namespace arcflow::feed::testing
