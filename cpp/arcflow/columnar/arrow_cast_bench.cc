// SPDX-License-Identifier: Apache-2.0
// Bench of casts: as many bytes a second as memcpy of what they read and write.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

#include "arcflow/columnar/arrow_cast.h"

namespace arcflow::columnar {
namespace {

constexpr std::size_t kElements = std::size_t{16} << 20;

void Memcpy(benchmark::State& state) {
  std::vector<std::byte> from(kElements * 6, std::byte{1});
  std::vector<std::byte> to(kElements * 6, std::byte{2});
  for (auto _ : state) {
    std::memcpy(to.data(), from.data(), from.size());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * from.size() * 2));
}
BENCHMARK(Memcpy);

void Cast(benchmark::State& state, DType from, DType to) {
  std::vector<std::byte> in(kElements * SizeOf(from), std::byte{0});
  std::vector<std::byte> out(kElements * SizeOf(to), std::byte{2});
  for (auto _ : state) {
    CastElements(from, to, in.data(), kElements, out.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * (in.size() + out.size())));
}
BENCHMARK_CAPTURE(Cast, float64_float32, DType::kFloat64, DType::kFloat32);
BENCHMARK_CAPTURE(Cast, int64_int32, DType::kInt64, DType::kInt32);
BENCHMARK_CAPTURE(Cast, int32_uint8, DType::kInt32, DType::kUInt8);
BENCHMARK_CAPTURE(Cast, int64_float32, DType::kInt64, DType::kFloat32);

void Check(benchmark::State& state, DType from, DType to) {
  std::vector<std::byte> in(kElements * SizeOf(from), std::byte{0});
  for (auto _ : state) {
    benchmark::DoNotOptimize(FirstMisfit(from, to, in.data(), kElements));
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * in.size()));
}
BENCHMARK_CAPTURE(Check, int64_int32, DType::kInt64, DType::kInt32);
BENCHMARK_CAPTURE(Check, int32_uint8, DType::kInt32, DType::kUInt8);

}  // namespace
}  // namespace arcflow::columnar
