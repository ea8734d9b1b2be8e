// SPDX-License-Identifier: Apache-2.0
// Append against memcpy of the same bytes: rows of 784 float32, of 1 KB binary, of short strings;
// fresh and recycled memory.
#include <benchmark/benchmark.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "arcflow/columnar/arrow_testing.h"
#include "arcflow/feed/writer.h"

namespace arcflow::feed {
namespace {

using columnar::DType;
using columnar::Schema;
using columnar::Source;
using columnar::testing::TestArrayPtr;

constexpr std::size_t kSegmentBytes = std::size_t{16} << 20;

/// Grants the same few buffers in turn, or a fresh one every time.
class TurnSource : public SegmentSource {
 public:
  explicit TurnSource(std::size_t buffers) : buffers_(buffers) {}
  Result<Grant> Acquire(const std::string&, std::size_t min_bytes, Deadline) override {
    const std::uint64_t n = next_++;
    if (buffers_ == 0) return Grant{n, min_bytes, true, {n - 1}};
    return Grant{n % buffers_, min_bytes, n < buffers_, {}};
  }
  Status Publish(const std::string&, const Grant&, std::size_t, bool, int) override {
    return Status::Ok();
  }

 private:
  std::size_t buffers_;
  std::uint64_t next_ = 0;
};

TestArrayPtr Floats(std::size_t rows) {
  using namespace columnar::testing;  // NOLINT
  const auto n = static_cast<std::int64_t>(rows);
  return RecordBatch(
      n, FixedList("x", 784, n, Primitive("item", "f", std::vector<float>(rows * 784, 0.5F))));
}
TestArrayPtr Binaries(std::size_t rows, std::size_t bytes) {
  using namespace columnar::testing;  // NOLINT
  return RecordBatch(static_cast<std::int64_t>(rows),
                     Strings("x", "z", std::vector<std::string>(rows, std::string(bytes, 'b'))));
}

const Schema kFloats{{{"x", DType::kFloat32, Source::kList, {784}}}};
const Schema kRaw{{{"x", DType::kUInt8, Source::kRaw, {1024}}}};
const Schema kStrings{{{"x", DType::kString, Source::kScalar, {}}}};

void Append(benchmark::State& state, const Schema& schema, const TestArrayPtr& batch,
            std::size_t buffers) {
  TurnSource source(buffers);
  Writer writer({"train", schema, kSegmentBytes}, source);
  const auto append = [&] {
    return writer.Append(batch->type, batch->array, Deadline::Infinite());
  };
  // Every buffer is in use before the clock runs.
  for (std::size_t i = 0; buffers > 0 && i < 40; ++i) {
    if (!append().ok()) state.SkipWithError("append");
  }
  const std::uint64_t rows = writer.rows();
  const std::uint64_t bytes = writer.bytes();
  for (auto _ : state) {
    if (!append().ok()) state.SkipWithError("append");
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(writer.bytes() - bytes));
  state.SetItemsProcessed(static_cast<std::int64_t>(writer.rows() - rows));
}

void BM_AppendFloats(benchmark::State& state) {
  Append(state, kFloats, Floats(static_cast<std::size_t>(state.range(0)) / 3136), 4);
}
BENCHMARK(BM_AppendFloats)->Arg(1 << 20)->Arg(8 << 20)->Arg(32 << 20)->UseRealTime();

void BM_AppendFloatsFreshMemory(benchmark::State& state) {
  Append(state, kFloats, Floats(static_cast<std::size_t>(state.range(0)) / 3136), 0);
}
BENCHMARK(BM_AppendFloatsFreshMemory)->Arg(8 << 20)->UseRealTime();

void BM_AppendRaw(benchmark::State& state) {
  Append(state, kRaw, Binaries(static_cast<std::size_t>(state.range(0)) / 1024, 1024), 4);
}
BENCHMARK(BM_AppendRaw)->Arg(8 << 20)->UseRealTime();

void BM_AppendStrings(benchmark::State& state) {
  Append(state, kStrings, Binaries(static_cast<std::size_t>(state.range(0)) / 36, 36), 4);
}
BENCHMARK(BM_AppendStrings)->Arg(1 << 20)->Arg(8 << 20)->UseRealTime();

/// The yardstick: memcpy of a block into one of four 16 MiB blocks, as Append does.
void BM_Memcpy(benchmark::State& state) {
  const auto size = static_cast<std::size_t>(state.range(0));
  const std::vector<std::byte> from(size, std::byte{1});
  std::vector<std::byte> to(4 * kSegmentBytes + size, std::byte{2});
  std::size_t at = 0;
  for (auto _ : state) {
    std::memcpy(to.data() + at, from.data(), size);
    benchmark::ClobberMemory();
    at = (at + size) % (4 * kSegmentBytes);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * state.range(0));
}
BENCHMARK(BM_Memcpy)->Arg(1 << 20)->Arg(8 << 20)->Arg(32 << 20)->UseRealTime();

}  // namespace
}  // namespace arcflow::feed
