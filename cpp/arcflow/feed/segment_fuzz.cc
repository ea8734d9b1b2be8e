// SPDX-License-Identifier: Apache-2.0
// Fuzz target: any bytes as a segment in shared memory; attaching and reading must stay within the
// mapping. Input: 2 bytes of published rows, 1 byte that chooses the schema, then the segment.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/feed/reader.h"
#include "arcflow/feed/segment_view.h"

namespace {

using arcflow::columnar::DType;
using arcflow::columnar::Schema;
using arcflow::columnar::Source;

Schema SchemaFor(std::uint8_t choice) {
  switch (choice % 4) {
    case 0:
      return {
          {{"x", DType::kFloat32, Source::kList, {3}}, {"s", DType::kString, Source::kScalar, {}}}};
    case 1:
      return {
          {{"s", DType::kString, Source::kScalar, {}}, {"t", DType::kString, Source::kScalar, {}}}};
    case 3: {
      Schema ragged{
          {{"r", DType::kFloat32, Source::kList, {2}}, {"l", DType::kInt64, Source::kLengths, {}}}};
      ragged.columns[0].levels = {arcflow::columnar::kVariable, 2};
      ragged.columns[1].levels = {arcflow::columnar::kVariable};
      return ragged;
    }
    default:
      return {{{"b", DType::kBool, Source::kScalar, {}}, {"e", DType::kInt64, Source::kList, {0}}}};
  }
}

/// Touches every byte, so that a sanitizer sees what lies outside.
std::uint64_t Sum(const void* data, std::size_t size) {
  std::uint64_t sum = 0;
  const auto* bytes = static_cast<const volatile unsigned char*>(data);
  for (std::size_t i = 0; i < size; ++i) sum += bytes[i];
  return sum;
}

void CheckInside(const arcflow::Mapping& mapping, const void* data, std::size_t size) {
  const auto begin = reinterpret_cast<std::uintptr_t>(mapping.data());
  const auto at = reinterpret_cast<std::uintptr_t>(data);
  if (size > 0 && (at < begin || at - begin > mapping.size_bytes() ||
                   size > mapping.size_bytes() - (at - begin))) {
    std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return 0;
  const std::size_t rows = data[0] | static_cast<std::size_t>(data[1]) << 8;
  const Schema schema = SchemaFor(data[2]);
  const std::size_t bytes = size - 3;
  arcflow::Result<arcflow::Fd> memfd =
      arcflow::MemfdFromBytes("fuzz", {reinterpret_cast<const std::byte*>(data + 3), bytes});
  if (!memfd.ok()) return 0;
  arcflow::Result<arcflow::Mapping> mapping = arcflow::Mapping::Map(*memfd, bytes, false, false);
  if (!mapping.ok()) std::abort();
  auto shared = std::make_shared<const arcflow::Mapping>(std::move(*mapping));
  const auto view = arcflow::feed::SegmentView::Attach(shared, schema, rows, nullptr, nullptr);
  if (!view.ok()) return 0;

  std::uint64_t sum = 0;
  arcflow::feed::Batch batch;
  batch.pieces.push_back({*view, 0, rows});
  batch.padding = 2;
  for (std::size_t c = 0; c < schema.columns.size(); ++c) {
    std::vector<std::string_view> strings;
    if (arcflow::feed::StringColumn(batch, c, &strings).ok()) {
      for (std::string_view s : strings) {
        CheckInside(*shared, s.data(), s.size());
        sum += Sum(s.data(), s.size());
      }
    }
    if ((*view)->RowBytes(c, 0, rows) > bytes) std::abort();
    const auto dense = (*view)->Dense(c, 0, rows);
    CheckInside(*shared, dense.data(), dense.size());
    sum += Sum(dense.data(), dense.size());
    std::vector<std::byte> copy(batch.rows() * schema.columns[c].row_bytes());
    (void)arcflow::feed::CopyColumn(batch, schema, c, copy);
    (void)arcflow::feed::DenseView(batch, c);
    arcflow::feed::RaggedRows ragged;
    if (arcflow::feed::RaggedColumn(batch, schema, c, &ragged).ok()) {
      std::vector<std::byte> items(ragged.bytes);
      arcflow::feed::CopyItems(ragged, items.data());
      for (const auto chunk : ragged.chunks) CheckInside(*shared, chunk.data(), chunk.size());
      sum += Sum(items.data(), items.size());
    }
    (void)arcflow::feed::ArrayStrings(batch, schema, c, (c + 1) % schema.columns.size(), &strings);
  }
  return sum == 0x123456789abcdefULL ? 1 : 0;
}
