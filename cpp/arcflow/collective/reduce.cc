// SPDX-License-Identifier: Apache-2.0
// Kernels stamped out for each instruction set by function attributes: one object file, no ifunc,
// and no inline function of the standard library compiled for a processor that may not be there.
#include "arcflow/collective/reduce.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "arcflow/collective/float_bits.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Loops below read and write the same index, so vectorising is right even when out is an input.
#if defined(__clang__)
#define ARC_SAME_INDEX _Pragma("clang loop vectorize(assume_safety)")
#else
#define ARC_SAME_INDEX _Pragma("GCC ivdep")
#endif

namespace arcflow::collective {
namespace {

struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
};

/// Type to compute in: unsigned for integers (they wrap), float for the short floats.
template <typename T>
struct Wide {
  using Type = T;
  [[gnu::always_inline]] static Type Up(T v) { return v; }
  [[gnu::always_inline]] static T Down(Type v) { return v; }
};
template <>
struct Wide<BFloat> {
  using Type = float;
  [[gnu::always_inline]] static float Up(BFloat v) { return FromBFloat16(v.bits); }
  [[gnu::always_inline]] static BFloat Down(float v) { return {ToBFloat16(v)}; }
};
template <>
struct Wide<Half> {
  using Type = float;
  [[gnu::always_inline]] static float Up(Half v) { return FromFloat16(v.bits); }
  [[gnu::always_inline]] static Half Down(float v) { return {ToFloat16(v)}; }
};

template <Merge M, typename T>
[[gnu::always_inline]] inline T Apply(T a, T b) {
  if constexpr (M == Merge::kMin) return a < b ? a : b;
  if constexpr (M == Merge::kMax) return a > b ? a : b;
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    const U x = static_cast<U>(a);
    const U y = static_cast<U>(b);
    return static_cast<T>(M == Merge::kAdd ? x + y : x * y);
  } else {
    return M == Merge::kAdd ? a + b : a * b;
  }
}

// The templates of one instruction set; TARGET is its function attribute.
#define ARC_KERNELS(TARGET)                                                                        \
  template <typename T, Merge M>                                                                   \
  TARGET void BinaryLoop(const void* a, const void* b, void* out, std::size_t count) {             \
    const T* x = static_cast<const T*>(a);                                                         \
    const T* y = static_cast<const T*>(b);                                                         \
    T* z = static_cast<T*>(out);                                                                   \
    ARC_SAME_INDEX                                                                                 \
    for (std::size_t i = 0; i < count; ++i)                                                        \
      z[i] = Wide<T>::Down(Apply<M>(Wide<T>::Up(x[i]), Wide<T>::Up(y[i])));                        \
  }                                                                                                \
  template <typename T>                                                                            \
  TARGET void DivideLoop(void* values, int divisor, std::size_t count) {                           \
    using W = typename Wide<T>::Type;                                                              \
    T* z = static_cast<T*>(values);                                                                \
    const W by = static_cast<W>(divisor);                                                          \
    ARC_SAME_INDEX                                                                                 \
    for (std::size_t i = 0; i < count; ++i) z[i] = Wide<T>::Down(Wide<T>::Up(z[i]) / by);          \
  }                                                                                                \
  template <typename T>                                                                            \
  constexpr std::array<Kernels::Binary, kMerges> Row() {                                           \
    return {&BinaryLoop<T, Merge::kAdd>, &BinaryLoop<T, Merge::kMul>, &BinaryLoop<T, Merge::kMin>, \
            &BinaryLoop<T, Merge::kMax>};                                                          \
  }                                                                                                \
  constexpr Kernels kTable = {                                                                     \
      {Row<Half>(), Row<BFloat>(), Row<float>(), Row<double>(), Row<std::int32_t>(),               \
       Row<std::int64_t>()},                                                                       \
      {&DivideLoop<Half>, &DivideLoop<BFloat>, &DivideLoop<float>, &DivideLoop<double>,            \
       &DivideLoop<std::int32_t>, &DivideLoop<std::int64_t>}};

namespace base {
ARC_KERNELS()
}  // namespace base

#if defined(__x86_64__)
#define ARC_AVX2 __attribute__((target("avx2,f16c")))
#define ARC_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,f16c,prefer-vector-width=512")))

namespace avx2 {
ARC_KERNELS(ARC_AVX2)

/// float16 has instructions of its own from here on, eight values at a time.
template <Merge M>
ARC_AVX2 void HalfLoop(const void* a, const void* b, void* out, std::size_t count) {
  const auto* x = static_cast<const std::uint16_t*>(a);
  const auto* y = static_cast<const std::uint16_t*>(b);
  auto* z = static_cast<std::uint16_t*>(out);
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 u = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)));
    const __m256 v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(y + i)));
    __m256 w;
    if constexpr (M == Merge::kAdd) w = _mm256_add_ps(u, v);
    if constexpr (M == Merge::kMul) w = _mm256_mul_ps(u, v);
    if constexpr (M == Merge::kMin) w = _mm256_min_ps(u, v);
    if constexpr (M == Merge::kMax) w = _mm256_max_ps(u, v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(z + i),
                     _mm256_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT));
  }
  base::BinaryLoop<Half, M>(x + i, y + i, z + i, count - i);
}

Kernels Table() {
  Kernels table = kTable;
  table.binary[0] = {&HalfLoop<Merge::kAdd>, &HalfLoop<Merge::kMul>, &HalfLoop<Merge::kMin>,
                     &HalfLoop<Merge::kMax>};
  return table;
}
}  // namespace avx2

namespace avx512 {
ARC_KERNELS(ARC_AVX512)

Kernels Table() {
  Kernels table = kTable;
  table.binary[0] = avx2::Table().binary[0];  // memory is the limit there already
  return table;
}
}  // namespace avx512
#endif

}  // namespace

bool Supported(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("f16c") != 0;
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") != 0 &&
           __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
           __builtin_cpu_supports("avx512dq") != 0;
  }
#endif
  return isa == Isa::kBase;
}

const Kernels& KernelsFor([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  static const Kernels avx2_table = avx2::Table();
  static const Kernels avx512_table = avx512::Table();
  if (isa == Isa::kAvx2) return avx2_table;
  if (isa == Isa::kAvx512) return avx512_table;
#endif
  return base::kTable;
}

const Kernels& BestKernels() {
  static const Kernels& best = KernelsFor(Supported(Isa::kAvx512) ? Isa::kAvx512
                                          : Supported(Isa::kAvx2) ? Isa::kAvx2
                                                                  : Isa::kBase);
  return best;
}

void ReduceInto(Element element, Merge merge, int divisor, const void* const* sources,
                std::size_t source_count, void* out, std::size_t count) {
  const Kernels& kernels = BestKernels();
  const auto row = static_cast<std::size_t>(element);
  const Kernels::Binary binary = kernels.binary[row][static_cast<std::size_t>(merge)];
  const std::size_t size = SizeOf(element);
  constexpr std::size_t kChunkBytes = 8192;  // stays in the first cache with two sources beside it
  alignas(64) std::byte scratch[kChunkBytes];
  const auto at = [&](std::size_t s, std::size_t offset) {
    return static_cast<const std::byte*>(sources[s]) + offset;
  };
  for (std::size_t done = 0; done < count;) {
    const std::size_t n = std::min(count - done, kChunkBytes / size);
    const std::size_t offset = done * size;
    std::byte* const to = static_cast<std::byte*>(out) + offset;
    // With three and more sources `out` may be one that is read later, hence the scratch.
    std::byte* const sum = source_count > 2 ? scratch : to;
    if (source_count == 1) {
      if (to != at(0, offset)) std::memcpy(to, at(0, offset), n * size);
    } else {
      binary(at(0, offset), at(1, offset), sum, n);
    }
    for (std::size_t s = 2; s < source_count; ++s) binary(sum, at(s, offset), sum, n);
    if (divisor != 0) kernels.divide[row](sum, divisor, n);
    if (sum != to) std::memcpy(to, sum, n * size);
    done += n;
  }
}

#if defined(__x86_64__)
void CopyPastCaches(std::byte* to, const std::byte* from, std::size_t n) {
  constexpr std::size_t kLine = 64;
  const std::size_t head =
      std::min(n, (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  std::size_t i = head;
  for (; i + kLine <= n; i += kLine) {
    const auto* in = reinterpret_cast<const __m128i*>(from + i);
    auto* line = reinterpret_cast<__m128i*>(to + i);
    const __m128i a = _mm_loadu_si128(in);
    const __m128i b = _mm_loadu_si128(in + 1);
    const __m128i c = _mm_loadu_si128(in + 2);
    const __m128i d = _mm_loadu_si128(in + 3);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
  }
  std::memcpy(to + i, from + i, n - i);
}
void StreamFence() { _mm_sfence(); }
#else
void CopyPastCaches(std::byte* to, const std::byte* from, std::size_t n) {
  std::memcpy(to, from, n);
}
void StreamFence() {}
#endif

}  // namespace arcflow::collective
