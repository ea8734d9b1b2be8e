// SPDX-License-Identifier: Apache-2.0
// StreamCopy: whole cache lines by non-temporal stores, the rest by memcpy.
#include "arcflow/base/stream_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace arcflow {

#if defined(__x86_64__)
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kStreams = 4;
constexpr std::size_t kStride = kStreams * kPage;
constexpr std::size_t kAhead = 512;  // bytes; prefetching over the end of the source is harmless

/// `to` begins a cache line; `from` may lie anywhere.
void StreamLines(std::byte* to, const std::byte* from, std::size_t lines) {
  for (; lines > 0; --lines, to += kLine, from += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(from + kAhead), _MM_HINT_NTA);
    const auto* in = reinterpret_cast<const __m128i*>(from);
    auto* out = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(in);
    const __m128i b = _mm_loadu_si128(in + 1);
    const __m128i c = _mm_loadu_si128(in + 2);
    const __m128i d = _mm_loadu_si128(in + 3);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
  }
}

/// As StreamLines, four pages at a time, a line of each in turn: the hardware prefetcher follows
/// one stream a page, so four of them keep more reads under way than one does.
/// Returns how many bytes it has copied: whole strides only.
__attribute__((target("avx2"))) std::size_t StreamPages(std::byte* to, const std::byte* from,
                                                        std::size_t n) {
  std::size_t done = 0;
  for (; n - done >= kStride; done += kStride) {
    for (std::size_t line = 0; line < kPage; line += kLine) {
      for (std::size_t page = 0; page < kStride; page += kPage) {
        const auto* in = reinterpret_cast<const __m256i*>(from + done + page + line);
        auto* out = reinterpret_cast<__m256i*>(to + done + page + line);
        const __m256i a = _mm256_loadu_si256(in);
        const __m256i b = _mm256_loadu_si256(in + 1);
        _mm256_stream_si256(out, a);
        _mm256_stream_si256(out + 1, b);
      }
    }
  }
  return done;
}

}  // namespace

void StreamCopy(std::byte* to, const std::byte* from, std::size_t n) {
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (n >= kStreamCopyBytes) {
    const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
    std::memcpy(to, from, head);
    std::size_t done = head;
    if (has_avx2) done += StreamPages(to + done, from + done, n - done);
    const std::size_t lines = (n - done) / kLine;
    StreamLines(to + done, from + done, lines);
    _mm_sfence();  // the stores before any later one
    done += lines * kLine;
    to += done;
    from += done;
    n -= done;
  }
  if (n > 0) std::memcpy(to, from, n);
}
#else
void StreamCopy(std::byte* to, const std::byte* from, std::size_t n) {
  if (n > 0) std::memcpy(to, from, n);
}
#endif

}  // namespace arcflow
