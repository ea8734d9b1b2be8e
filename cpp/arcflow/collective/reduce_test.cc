// SPDX-License-Identifier: Apache-2.0
// Kernels of every instruction set give what a slow reference gives, to the last bit.
#include "arcflow/collective/reduce.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "arcflow/collective/float_bits.h"
#include "arcflow/collective/wire.h"

namespace arcflow::collective {
namespace {

/// The value of a float16, by its definition and nothing clever.
double SlowFromHalf(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  double value =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) {
    value = mantissa == 0 ? std::numeric_limits<double>::infinity()
                          : std::numeric_limits<double>::quiet_NaN();
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

/// The nearest float16, ties to the even one.
std::uint16_t SlowToHalf(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (magnitude >= 65520.0) return sign | 0x7c00;
  int exponent = magnitude == 0 ? -14 : std::max(std::ilogb(magnitude), -14);
  const double steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));
  const auto units = static_cast<int>(steps);  // a carry moves into the exponent by itself
  return static_cast<std::uint16_t>(sign | (((exponent + 14) << 10) + units));
}

TEST(FloatBitsTest, EveryFloat16IsReadAsDefined) {
  for (int bits = 0; bits < 65536; ++bits) {
    const float fast = FromFloat16(static_cast<std::uint16_t>(bits));
    const double slow = SlowFromHalf(static_cast<std::uint16_t>(bits));
    if (std::isnan(slow)) {
      ASSERT_TRUE(std::isnan(fast)) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(fast), slow) << bits;
      ASSERT_EQ(ToFloat16(fast), bits);
    }
  }
}

TEST(FloatBitsTest, FloatsRoundToTheNearestFloat16) {
  std::mt19937 random(1);
  for (int i = 0; i < 300000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isnan(value)) continue;
    ASSERT_EQ(ToFloat16(value), SlowToHalf(value)) << value;
  }
  for (int bits = 0; bits < 0x7c00; ++bits) {  // ties, and their neighbours
    const double middle =
        (SlowFromHalf(static_cast<std::uint16_t>(bits)) +
         (bits == 0x7bff ? 65536.0 : SlowFromHalf(static_cast<std::uint16_t>(bits + 1)))) /
        2;
    for (const float value :
         {static_cast<float>(middle), std::nextafterf(static_cast<float>(middle), 0.f),
          std::nextafterf(static_cast<float>(middle), 1e9f)}) {
      ASSERT_EQ(ToFloat16(value), SlowToHalf(value)) << value;
    }
  }
}

TEST(FloatBitsTest, BFloat16IsTheUpperHalfRoundedToEven) {
  EXPECT_EQ(ToBFloat16(1.0f), 0x3f80);
  EXPECT_EQ(ToBFloat16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie to even
  EXPECT_EQ(ToBFloat16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(ToBFloat16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(ToBFloat16(-std::numeric_limits<float>::infinity()), 0xff80);
  EXPECT_EQ(ToBFloat16(std::bit_cast<float>(0xff800001u)), 0xffc0);  // NaN stays one
}

template <typename T>
T SlowApply(Merge merge, T a, T b) {
  using U = std::conditional_t<std::is_integral_v<T>, std::uint64_t, T>;
  switch (merge) {
    case Merge::kAdd:
      return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
    case Merge::kMul:
      return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
    case Merge::kMin:
      return a < b ? a : b;
    case Merge::kMax:
      return a > b ? a : b;
  }
  return a;
}

/// One element as bits: merged, or divided when `divisor` is not 0.
std::uint64_t SlowElement(Element e, Merge merge, std::uint64_t a, std::uint64_t b, int divisor) {
  const auto run = [&](auto x, auto y) {
    return divisor == 0 ? SlowApply(merge, x, y)
                        : static_cast<decltype(x)>(x / static_cast<decltype(x)>(divisor));
  };
  const auto u16 = [](std::uint64_t v) { return static_cast<std::uint16_t>(v); };
  switch (e) {
    case Element::kFloat16:
      return ToFloat16(run(FromFloat16(u16(a)), FromFloat16(u16(b))));
    case Element::kBFloat16:
      return ToBFloat16(run(FromBFloat16(u16(a)), FromBFloat16(u16(b))));
    case Element::kFloat32:
      return std::bit_cast<std::uint32_t>(run(std::bit_cast<float>(static_cast<std::uint32_t>(a)),
                                              std::bit_cast<float>(static_cast<std::uint32_t>(b))));
    case Element::kFloat64:
      return std::bit_cast<std::uint64_t>(run(std::bit_cast<double>(a), std::bit_cast<double>(b)));
    case Element::kInt32:
      return static_cast<std::uint32_t>(
          run(static_cast<std::int32_t>(a), static_cast<std::int32_t>(b)));
    default:
      return static_cast<std::uint64_t>(
          run(static_cast<std::int64_t>(a), static_cast<std::int64_t>(b)));
  }
}

bool IsNan(Element e, std::uint64_t v) {
  switch (e) {
    case Element::kFloat16:
      return (v & 0x7fff) > 0x7c00;
    case Element::kBFloat16:
      return (v & 0x7fff) > 0x7f80;
    case Element::kFloat32:
      return (v & 0x7fffffff) > 0x7f800000;
    case Element::kFloat64:
      return std::isnan(std::bit_cast<double>(v));
    default:
      return false;
  }
}

std::uint64_t Load(const std::vector<std::byte>& bytes, std::size_t size, std::size_t i) {
  std::uint64_t v = 0;
  std::memcpy(&v, bytes.data() + i * size, size);
  return v;
}

class KernelTest : public ::testing::TestWithParam<std::tuple<Isa, Element>> {
 protected:
  void SetUp() override {
    if (!Supported(isa())) GTEST_SKIP() << "this processor does not run these kernels";
  }
  Isa isa() const { return std::get<0>(GetParam()); }
  Element element() const { return std::get<1>(GetParam()); }
  std::size_t size() const { return SizeOf(element()); }
  /// Any bits at all, so NaN, infinities and subnormals too; every other vector holds tame values.
  std::vector<std::byte> Random(std::size_t count) {
    std::vector<std::byte> bytes(count * size() + 64);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random_());
    return bytes;
  }
  void ExpectElement(std::uint64_t got, std::uint64_t want, std::size_t i) {
    if (IsNan(element(), want)) {
      ASSERT_TRUE(IsNan(element(), got)) << i;
    } else {
      ASSERT_EQ(got, want) << i;
    }
  }
  std::mt19937 random_{7};
};

TEST_P(KernelTest, MergesAsTheReference) {
  const Kernels& sut = KernelsFor(isa());
  for (const std::size_t count : {0, 1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 67, 1000, 4099}) {
    for (std::size_t m = 0; m < kMerges; ++m) {
      const auto a = Random(count);
      const auto b = Random(count);
      auto out = Random(count);
      const auto before = out;
      sut.binary[static_cast<std::size_t>(element())][m](a.data(), b.data(), out.data(), count);
      for (std::size_t i = 0; i < count; ++i) {
        const auto want = SlowElement(element(), static_cast<Merge>(m), Load(a, size(), i),
                                      Load(b, size(), i), 0);
        ASSERT_NO_FATAL_FAILURE(ExpectElement(Load(out, size(), i), want, i));
      }
      EXPECT_EQ(0, std::memcmp(out.data() + count * size(), before.data() + count * size(), 64));
    }
  }
}

TEST_P(KernelTest, MergesInPlace) {
  const Kernels& sut = KernelsFor(isa());
  constexpr std::size_t kCount = 1003;
  for (std::size_t m = 0; m < kMerges; ++m) {
    const auto a = Random(kCount);
    const auto b = Random(kCount);
    auto left = a;
    auto right = b;
    const auto binary = sut.binary[static_cast<std::size_t>(element())][m];
    binary(left.data(), b.data(), left.data(), kCount);
    binary(a.data(), right.data(), right.data(), kCount);
    for (std::size_t i = 0; i < kCount; ++i) {
      const auto want =
          SlowElement(element(), static_cast<Merge>(m), Load(a, size(), i), Load(b, size(), i), 0);
      ASSERT_NO_FATAL_FAILURE(ExpectElement(Load(left, size(), i), want, i));
      ASSERT_NO_FATAL_FAILURE(ExpectElement(Load(right, size(), i), want, i));
    }
  }
}

TEST_P(KernelTest, DividesAsTheReference) {
  const Kernels& sut = KernelsFor(isa());
  for (const int divisor : {2, 3, 7}) {
    const auto values = Random(1001);
    auto out = values;
    sut.divide[static_cast<std::size_t>(element())](out.data(), divisor, 1001);
    for (std::size_t i = 0; i < 1001; ++i) {
      const auto want = SlowElement(element(), Merge::kAdd, Load(values, size(), i), 0, divisor);
      ASSERT_NO_FATAL_FAILURE(ExpectElement(Load(out, size(), i), want, i));
    }
  }
}

std::string KernelName(const ::testing::TestParamInfo<std::tuple<Isa, Element>>& info) {
  const char* const isas[] = {"Base", "Avx2", "Avx512"};
  return isas[static_cast<int>(std::get<0>(info.param))] +
         std::string(NameOf(std::get<1>(info.param)));
}

INSTANTIATE_TEST_SUITE_P(All, KernelTest,
                         ::testing::Combine(::testing::Values(Isa::kBase, Isa::kAvx2, Isa::kAvx512),
                                            ::testing::Values(Element::kFloat16, Element::kBFloat16,
                                                              Element::kFloat32, Element::kFloat64,
                                                              Element::kInt32, Element::kInt64)),
                         KernelName);

TEST(ReduceIntoTest, GoesFromLeftToRightAndMayWriteIntoAnySource) {
  constexpr std::size_t kCount = 5001;  // over several chunks
  constexpr std::size_t kSources = 5;
  std::mt19937 random(3);
  std::vector<std::vector<float>> values(kSources, std::vector<float>(kCount));
  for (auto& row : values) {
    for (float& v : row) v = static_cast<float>(random()) * 1e-9f;
  }
  std::vector<float> want(kCount);
  for (std::size_t i = 0; i < kCount; ++i) {
    float sum = values[0][i];
    for (std::size_t s = 1; s < kSources; ++s) sum += values[s][i];
    want[i] = sum / 5.0f;
  }
  for (std::size_t target = 0; target < kSources; ++target) {
    auto copy = values;
    std::vector<const void*> sources;
    for (auto& row : copy) sources.push_back(row.data());
    ReduceInto(Element::kFloat32, Merge::kAdd, 5, sources.data(), kSources, copy[target].data(),
               kCount);
    EXPECT_EQ(copy[target], want) << target;
  }
}

TEST(CopyPastCachesTest, CopiesAnyAlignmentAndLength) {
  std::vector<std::byte> from(1000);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7);
  for (std::size_t begin = 0; begin < 70; begin += 3) {
    for (const std::size_t n : {0, 1, 63, 64, 65, 200, 700}) {
      std::vector<std::byte> to(1000, std::byte{0xee});
      CopyPastCaches(to.data() + begin, from.data() + 5, n);
      StreamFence();
      EXPECT_EQ(0, std::memcmp(to.data() + begin, from.data() + 5, n));
      EXPECT_EQ(to[begin + n], std::byte{0xee});
    }
  }
}

TEST(WireTest, PacksByTheTypesRoundingAndUnpacksExactlyAtAnyAlignment) {
  std::vector<float> values;
  for (int i = 0; i < 1000; ++i)
    values.push_back(std::ldexp(1.0f + static_cast<float>(i) / 997, i % 40 - 20));
  values.push_back(std::numeric_limits<float>::infinity());
  values.push_back(-0.0f);
  const std::size_t n = values.size();
  std::vector<std::byte> packed(2 * n + 1), back(4 * n + 3);
  for (const Wire wire : {Wire::kFloat16, Wire::kBFloat16}) {
    PackWire(wire, reinterpret_cast<const std::byte*>(values.data()), packed.data() + 1, n);
    UnpackWire(wire, packed.data() + 1, back.data() + 3, n);
    for (std::size_t i = 0; i < n; ++i) {
      std::uint16_t bits = 0;
      float value = 0;
      std::memcpy(&bits, packed.data() + 1 + 2 * i, 2);
      std::memcpy(&value, back.data() + 3 + 4 * i, 4);
      EXPECT_EQ(bits, wire == Wire::kFloat16 ? ToFloat16(values[i]) : ToBFloat16(values[i]));
      EXPECT_EQ(value, wire == Wire::kFloat16 ? FromFloat16(bits) : FromBFloat16(bits));
    }
  }
}

}  // namespace
}  // namespace arcflow::collective
