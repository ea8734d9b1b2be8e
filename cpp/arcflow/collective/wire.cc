// SPDX-License-Identifier: Apache-2.0
// Packing, a block at a time, so that compilers see aligned arrays.
#include "arcflow/collective/wire.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "arcflow/collective/float_bits.h"

namespace arcflow::collective {
namespace {

constexpr std::size_t kWireBlock = 256;

template <auto Convert, typename From, typename To>
void ConvertEach(const std::byte* from, std::byte* to, std::size_t count) {
  From in[kWireBlock];
  To out[kWireBlock];
  for (std::size_t at = 0; at < count; at += kWireBlock) {
    const std::size_t n = std::min(kWireBlock, count - at);
    std::memcpy(in, from + at * sizeof(From), n * sizeof(From));
    for (std::size_t i = 0; i < n; ++i) out[i] = Convert(in[i]);
    std::memcpy(to + at * sizeof(To), out, n * sizeof(To));
  }
}

}  // namespace

void PackWire(Wire wire, const std::byte* from, std::byte* to, std::size_t count) {
  if (wire == Wire::kFloat16) return ConvertEach<ToFloat16, float, std::uint16_t>(from, to, count);
  ConvertEach<ToBFloat16, float, std::uint16_t>(from, to, count);
}

void UnpackWire(Wire wire, const std::byte* from, std::byte* to, std::size_t count) {
  if (wire == Wire::kFloat16)
    return ConvertEach<FromFloat16, std::uint16_t, float>(from, to, count);
  ConvertEach<FromBFloat16, std::uint16_t, float>(from, to, count);
}

}  // namespace arcflow::collective
