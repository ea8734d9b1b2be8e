// SPDX-License-Identifier: Apache-2.0
// Elementwise merging of memory: kernels for several instruction sets, chosen when the program
// runs.
#pragma once

#include <array>
#include <cstddef>

#include "arcflow/collective/element.h"

namespace arcflow::collective {

enum class Isa : int { kBase = 0, kAvx2 = 1, kAvx512 = 2 };

/// One set of kernels. Integers wrap around; float16 and bfloat16 are computed in float32 and
/// rounded to nearest even after every merge, NaN becoming the quiet NaN of its sign, as Eigen
/// does. min and max take the second operand when neither compares greater (NaN).
/// Threads: immutable. Never allocates, never blocks.
struct Kernels {
  /// out[i] = a[i] ∘ b[i] for `count` elements; `out` may be `a` or `b`, not overlap them
  /// otherwise.
  using Binary = void (*)(const void* a, const void* b, void* out, std::size_t count);
  /// values[i] /= divisor; integers round toward zero.
  using Divide = void (*)(void* values, int divisor, std::size_t count);

  std::array<std::array<Binary, kMerges>, kReducible> binary;
  std::array<Divide, kReducible> divide;
};

/// Whether this processor runs the kernels of `isa`.
bool Supported(Isa isa);
/// The kernels of one instruction set; only for a supported one.
const Kernels& KernelsFor(Isa isa);
/// The best kernels that this processor runs; chosen once.
const Kernels& BestKernels();

/// out = s[0] ∘ s[1] ∘ … ∘ s[sources-1], from left to right, then divided by `divisor` unless it is
/// 0. `out` may be any of the sources. `Reducible(element)`; at least one source.
void ReduceInto(Element element, Merge merge, int divisor, const void* const* sources,
                std::size_t source_count, void* out, std::size_t count);

/// memcpy by stores that go past the caches, for memory that nobody reads soon. The caller orders
/// them before what it publishes with `StreamFence`.
void CopyPastCaches(std::byte* to, const std::byte* from, std::size_t n);
void StreamFence();

}  // namespace arcflow::collective
