// SPDX-License-Identifier: Apache-2.0
// Casts of elements: one loop a pair of types, simple enough for the compiler to vectorise.
#include "arcflow/columnar/arrow_cast.h"

#include <cstring>
#include <type_traits>

namespace arcflow::columnar {
namespace {

bool IsFloat(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kFloat64; }

/// Calls f with a value of the C++ type of `dtype`; booleans are bytes.
template <typename F>
auto WithType(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat64:
      return f(double{});
    case DType::kInt8:
      return f(std::int8_t{});
    case DType::kInt16:
      return f(std::int16_t{});
    case DType::kInt32:
      return f(std::int32_t{});
    case DType::kInt64:
      return f(std::int64_t{});
    default:
      return f(std::uint8_t{});
  }
}

// Blocks that fit the first cache, so that an aligned copy of either side costs nothing and the
// loop over it is what compilers vectorise best.
constexpr std::size_t kBlock = 512;

template <typename From, typename To>
void CastBlock(const From* in, To* out, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<To>(in[i]);
}

template <typename From, typename To>
void CastAll(const std::byte* data, std::size_t n, std::byte* out) {
  From in[kBlock];
  To converted[kBlock];
  for (std::size_t done = 0; done < n; done += kBlock) {
    const std::size_t m = n - done < kBlock ? n - done : kBlock;
    std::memcpy(in, data + done * sizeof(From), m * sizeof(From));
    CastBlock(in, converted, m);
    std::memcpy(out + done * sizeof(To), converted, m * sizeof(To));
  }
}

/// All bits that a way there and back changes in any of the elements.
template <typename From, typename To>
bool AllFit(const From* in, std::size_t n) {
  From lost = 0;
  for (std::size_t i = 0; i < n; ++i) {
    lost = static_cast<From>(lost | (in[i] ^ static_cast<From>(static_cast<To>(in[i]))));
    // There and back keeps the bits of a negative number in an unsigned type of the same size.
    if constexpr (std::is_signed_v<From> && std::is_unsigned_v<To> && sizeof(From) == sizeof(To)) {
      lost = static_cast<From>(lost | (in[i] < 0 ? 1 : 0));
    }
    if constexpr (std::is_unsigned_v<From> && std::is_signed_v<To> && sizeof(From) == sizeof(To)) {
      lost = static_cast<From>(lost | (static_cast<To>(in[i]) < 0 ? 1 : 0));
    }
  }
  return lost == 0;
}

template <typename From, typename To>
std::optional<std::size_t> FindMisfit(const std::byte* data, std::size_t n) {
  From in[kBlock];
  for (std::size_t done = 0; done < n; done += kBlock) {
    const std::size_t m = n - done < kBlock ? n - done : kBlock;
    std::memcpy(in, data + done * sizeof(From), m * sizeof(From));
    if (AllFit<From, To>(in, m)) continue;
    std::size_t i = 0;
    while (AllFit<From, To>(in + i, 1)) ++i;
    return done + i;
  }
  return std::nullopt;
}

}  // namespace

bool CanCast(DType from, DType to) {
  if (from == to) return true;
  if (from == DType::kString || to == DType::kString || to == DType::kBool) return false;
  return !IsFloat(from) || IsFloat(to);
}

std::optional<std::size_t> FirstMisfit(DType from, DType to, const std::byte* data, std::size_t n) {
  if (from == to || from == DType::kBool || IsFloat(from) || IsFloat(to)) return std::nullopt;
  return WithType(from, [&](auto f) -> std::optional<std::size_t> {
    return WithType(to, [&](auto t) -> std::optional<std::size_t> {
      using From = decltype(f);
      using To = decltype(t);
      if constexpr (std::is_integral_v<From> && std::is_integral_v<To>) {
        return FindMisfit<From, To>(data, n);
      }
      return std::nullopt;
    });
  });
}

void CastElements(DType from, DType to, const std::byte* data, std::size_t n, std::byte* out) {
  if (from == to) {
    if (n > 0) std::memcpy(out, data, n * SizeOf(to));
    return;
  }
  WithType(from, [&](auto f) {
    WithType(to, [&](auto t) {
      using From = decltype(f);
      using To = decltype(t);
      // Floats to integers do not exist (CanCast), and must not be compiled into something
      // undefined.
      if constexpr (std::is_floating_point_v<To> || std::is_integral_v<From>) {
        CastAll<From, To>(data, n, out);
      }
    });
  });
}

}  // namespace arcflow::columnar
