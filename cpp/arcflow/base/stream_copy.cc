// SPDX-License-Identifier: Apache-2.0
// StreamCopy: whole cache lines by non-temporal stores, the rest by memcpy.
#include "arcflow/base/stream_copy.h"

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace arcflow {

#if defined(__SSE2__)
namespace {

constexpr std::size_t kLine = 64;
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
  _mm_sfence();  // the stores before any later one
}

}  // namespace

void StreamCopy(std::byte* to, const std::byte* from, std::size_t n) {
  if (n >= kStreamCopyBytes) {
    const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
    std::memcpy(to, from, head);
    const std::size_t lines = (n - head) / kLine;
    StreamLines(to + head, from + head, lines);
    const std::size_t done = head + lines * kLine;
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
