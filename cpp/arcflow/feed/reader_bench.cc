// SPDX-License-Identifier: Apache-2.0
// Reader: batches per second without touching them, with every byte read, and copied out; opening
// over a full log.
#include <benchmark/benchmark.h>

#include <cstring>
#include <memory>
#include <vector>

#include "arcflow/feed/fake_agent_testing.h"
#include "arcflow/feed/reader.h"
#include "arcflow/feed/rows_testing.h"

namespace arcflow::feed {
namespace {

using columnar::DType;
using columnar::Schema;
using columnar::Source;

constexpr std::size_t kSegmentBytes = std::size_t{16} << 20;
constexpr std::size_t kRows = 65536;

const Schema& Floats() {
  static const Schema schema{{{"x", DType::kFloat32, Source::kList, {784}}}};
  return schema;
}

/// A log of 65536 rows of 784 float32, 205 MB, kept for the whole program.
testing::FakeAgent& FullLog() {
  static const std::unique_ptr<testing::FakeAgent> agent = [] {
    using namespace columnar::testing;  // NOLINT
    auto made = std::make_unique<testing::FakeAgent>(Floats());
    Writer writer({"train", Floats(), kSegmentBytes}, *made);
    const auto batch = RecordBatch(
        4096,
        FixedList("x", 784, 4096, Primitive("item", "f", std::vector<float>(4096 * 784, 0.5F))));
    for (std::size_t row = 0; row < kRows; row += 4096) {
      (void)writer.Append(batch->type, batch->array, Deadline::Infinite());
    }
    (void)writer.Finish();
    made->End();
    return made;
  }();
  return *agent;
}

std::uint64_t SumWords(std::span<const std::byte> bytes) {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i + 64 <= bytes.size(); i += 64) {
    for (std::size_t j = 0; j < 8; ++j) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data() + i + j * 8, 8);
      sums[j] += word;
    }
  }
  return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

/// Passes over the log; `use(batch)` per batch.
template <typename Use>
void Pass(benchmark::State& state, Use use) {
  const auto batch_size = static_cast<std::size_t>(state.range(0));
  auto reader =
      Reader::Open(FullLog().broker_fd(), {"train", batch_size, Remainder::kPartial, nullptr},
                   Deadline::Infinite());
  if (!reader.ok()) return state.SkipWithError("open");
  for (auto _ : state) {
    auto batch = (*reader)->Next(Deadline::Infinite());
    if (batch.ok() && !*batch) {
      (void)(*reader)->Seek(0);
      batch = (*reader)->Next(Deadline::Infinite());
    }
    if (!batch.ok()) return state.SkipWithError("next");
    use(**batch);
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * state.range(0));
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * state.range(0) * 3136);
}

void BM_Next(benchmark::State& state) {
  Pass(state, [](const Batch& batch) { benchmark::DoNotOptimize(DenseView(batch, 0).data()); });
}
BENCHMARK(BM_Next)->Arg(64)->Arg(1024)->UseRealTime();

void BM_NextReadingEveryByte(benchmark::State& state) {
  Pass(state, [](const Batch& batch) { benchmark::DoNotOptimize(SumWords(DenseView(batch, 0))); });
}
BENCHMARK(BM_NextReadingEveryByte)->Arg(64)->Arg(1024)->UseRealTime();

void BM_NextCopying(benchmark::State& state) {
  std::vector<std::byte> out(static_cast<std::size_t>(state.range(0)) * 3136);
  Pass(state, [&out](const Batch& batch) {
    if (batch.rows() * 3136 == out.size()) (void)CopyColumn(batch, Floats(), 0, out);
    benchmark::ClobberMemory();
  });
}
BENCHMARK(BM_NextCopying)->Arg(64)->Arg(1024)->UseRealTime();

/// A new reader for one pass, as Keras opens one an epoch: pays for mapping every segment.
void BM_OpenAndPass(benchmark::State& state) {
  for (auto _ : state) {
    auto reader = Reader::Open(FullLog().broker_fd(), {"train", 1024, Remainder::kPartial, nullptr},
                               Deadline::Infinite());
    for (;;) {
      auto batch = (*reader)->Next(Deadline::Infinite());
      if (!batch.ok() || !*batch) break;
      benchmark::DoNotOptimize(SumWords(DenseView(**batch, 0)));
    }
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kRows) * 3136);
}
BENCHMARK(BM_OpenAndPass)->UseRealTime()->Unit(benchmark::kMillisecond);

/// The yardstick: the same sum over private memory.
void BM_ReadPrivateMemory(benchmark::State& state) {
  const std::vector<std::byte> bytes(kRows * 3136, std::byte{1});
  const auto size = static_cast<std::size_t>(state.range(0)) * 3136;
  std::size_t at = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(SumWords({bytes.data() + at, size}));
    at = at + 2 * size <= bytes.size() ? at + size : 0;
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * size));
}
BENCHMARK(BM_ReadPrivateMemory)->Arg(1024)->UseRealTime();

}  // namespace
}  // namespace arcflow::feed
