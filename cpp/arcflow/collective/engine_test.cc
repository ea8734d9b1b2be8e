// SPDX-License-Identifier: Apache-2.0
// Conformance of all engines, ranks in threads: every kind, type and size gives what it should,
// whatever the order in which ranks submit, on one host and on several.
#include "arcflow/collective/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/collective/group_testing.h"
#include "arcflow/collective/reduce.h"
#include "arcflow/collective/wide_testing.h"

namespace arcflow::collective {
namespace {

using namespace testing;  // NOLINT: group_testing.h

using testing_support::UnlessThreadSanitizer;

/// float32: above one block a rank, with a short last one.
constexpr std::size_t kBig = UnlessThreadSanitizer<std::size_t>(500'000, 140'000);

/// By rank: its host.
using Hosts = std::vector<int>;

class EngineTest : public ::testing::TestWithParam<Hosts> {
 protected:
  int ranks() const { return static_cast<int>(GetParam().size()); }
  std::size_t Ranks() const { return GetParam().size(); }
  std::vector<std::shared_ptr<Engine>> Make() const { return MakeEngines(GetParam()); }
};
std::string HostsName(const ::testing::TestParamInfo<Hosts>& one) {
  std::string text = "Hosts";
  for (const int host : one.param) text += std::to_string(host);
  return text;
}
const auto kOnOneHost = UnlessThreadSanitizer<std::vector<Hosts>>(
    {Hosts(2, 0), Hosts(3, 0), Hosts(4, 0), Hosts(8, 0)}, {Hosts(2, 0), Hosts(4, 0)});
const auto kOnSeveralHosts = UnlessThreadSanitizer<std::vector<Hosts>>(
    {{0, 1}, {0, 1, 2}, {0, 0, 1, 1}, {0, 1, 0, 1}, {0, 1, 1}, {0, 0, 0, 1, 1, 2}},
    {{0, 1, 1}, {0, 0, 1, 1}});
INSTANTIATE_TEST_SUITE_P(OneHost, EngineTest, ::testing::ValuesIn(kOnOneHost), HostsName);
INSTANTIATE_TEST_SUITE_P(SeveralHosts, EngineTest, ::testing::ValuesIn(kOnSeveralHosts), HostsName);

TEST_P(EngineTest, AllReduceAddsAllSizes) {
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count :
         {std::size_t{0}, std::size_t{1}, std::size_t{1000}, std::size_t{16384}, std::size_t{16385},
          std::size_t{70001}, kBig, 2 * kBig + 3}) {
      const auto in = InputOf<float>(r, count);
      std::vector<float> out(count, -1);
      const Status status = groups[static_cast<std::size_t>(r)]->Run(AddFloats(count + 1, in, out));
      ASSERT_TRUE(status.ok()) << status.ToString();
      ASSERT_EQ(out, SumOf(ranks(), count)) << "rank " << r << " count " << count;
    }
  });
}

TEST_P(EngineTest, AllReduceInPlaceAndDivided) {
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{77}, kBig}) {
      auto values = InputOf<float>(r, count);
      Operation operation = AddFloats(count, values, values);
      operation.what.divide = 1;
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      auto want = SumOf(ranks(), count);
      for (float& v : want) v /= static_cast<float>(ranks());
      ASSERT_EQ(values, want);
    }
  });
}

TEST_P(EngineTest, PiecesAreReducedWhereTheyLie) {
  auto groups = Make();
  const std::vector<std::size_t> sizes = {3, 0, 100'001, 1, 64, 250'000, 17};
  OnEachRank(ranks(), [&](int r) {
    for (const bool small : {true, false}) {
      std::vector<std::vector<float>> in, out;
      std::vector<Piece> pieces;
      std::size_t total = 0;
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        const std::size_t n = small ? sizes[i] % 1000 : sizes[i];
        in.push_back(InputOf<float>(r, n, static_cast<int>(i)));
        out.emplace_back(n);
        total += n;
      }
      for (std::size_t i = 0; i < sizes.size(); ++i)
        pieces.push_back({In(in[i]), Out(out[i]), in[i].size() * 4});
      Operation operation;
      operation.key = small ? 1 : 2;
      operation.what.count = total;
      operation.pieces = pieces;
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (std::size_t i = 0; i < sizes.size(); ++i) {
        ASSERT_EQ(out[i], SumOf(ranks(), out[i].size(), static_cast<int>(i)));
      }
    }
  });
}

TEST_P(EngineTest, BroadcastFromEveryRoot) {
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    for (int root = 0; root < ranks(); ++root) {
      for (const std::size_t count : {std::size_t{5}, std::size_t{20'000}, kBig}) {
        const auto in = InputOf<std::int64_t>(r, r == root ? count : 0);
        std::vector<std::int64_t> out(count, -77);
        Operation operation;
        operation.key = count + static_cast<std::size_t>(root);
        operation.what = {Kind::kBroadcast,
                          Element::kInt64,
                          Merge::kAdd,
                          0,
                          static_cast<std::uint32_t>(root),
                          Wire::kSame,
                          count,
                          0};
        operation.in = r == root ? In(in) : nullptr;
        operation.out = Out(out);
        ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
        ASSERT_EQ(out, InputOf<std::int64_t>(root, count));
      }
    }
  });
}

TEST_P(EngineTest, AllGatherPutsPartsInOrderOfRank) {
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{3}, std::size_t{10'000}, kBig}) {
      const auto in = InputOf<std::uint8_t>(r, count);
      std::vector<std::uint8_t> out(count * Ranks());
      Operation operation;
      operation.key = count;
      operation.what = {Kind::kAllGather, Element::kByte, Merge::kAdd, 0, 0, Wire::kSame, count, 0};
      operation.in = In(in);
      operation.out = Out(out);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (int p = 0; p < ranks(); ++p) {
        const auto want = InputOf<std::uint8_t>(p, count);
        ASSERT_EQ(
            0, std::memcmp(out.data() + static_cast<std::size_t>(p) * count, want.data(), count));
      }
    }
  });
}

TEST_P(EngineTest, AllToAllSendsEachPartToItsRank) {
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{2}, std::size_t{9'000}, std::size_t{150'001}}) {
      const auto in = InputOf<std::int32_t>(r, count * Ranks());
      std::vector<std::int32_t> out(count * Ranks());
      Operation operation;
      operation.key = count;
      operation.what = {Kind::kAllToAll, Element::kInt32, Merge::kAdd, 0, 0, Wire::kSame, count, 0};
      operation.in = In(in);
      operation.out = Out(out);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (int p = 0; p < ranks(); ++p) {
        const auto theirs = InputOf<std::int32_t>(p, count * Ranks());
        ASSERT_EQ(0, std::memcmp(out.data() + static_cast<std::size_t>(p) * count,
                                 theirs.data() + static_cast<std::size_t>(r) * count, count * 4));
      }
    }
  });
}

TEST_P(EngineTest, ReduceScatterGivesEachRankItsPart) {
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    for (const std::size_t count : {std::size_t{3}, std::size_t{9'000}, std::size_t{150'001}}) {
      const auto in = InputOf<double>(r, count * Ranks());
      std::vector<double> out(count);
      Operation operation;
      operation.key = count;
      operation.what = {
          Kind::kReduceScatter, Element::kFloat64, Merge::kMax, 0, 0, Wire::kSame, count, 0};
      operation.in = In(in);
      operation.out = Out(out);
      ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
      for (std::size_t i = 0; i < count; ++i) {
        int want = -100;
        for (int p = 0; p < ranks(); ++p)
          want = std::max(want, ValueAt(p, static_cast<std::size_t>(r) * count + i));
        ASSERT_EQ(out[i], want);
      }
    }
  });
}

TEST_P(EngineTest, EveryTypeMergesInOrderOfRank) {
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    for (std::size_t e = 0; e < kReducible; ++e) {
      for (std::size_t m = 0; m < kMerges; ++m) {
        const auto element = static_cast<Element>(e);
        const std::size_t count = 20'000;
        std::vector<std::vector<std::byte>> all;  // bits of any value but NaN for floats
        for (int p = 0; p < ranks(); ++p) {
          std::vector<std::byte> bytes(count * SizeOf(element));
          std::uint32_t state = static_cast<std::uint32_t>(p) * 977 + static_cast<std::uint32_t>(e);
          for (std::byte& b : bytes) {
            state = state * 1664525 + 1013904223;
            b = static_cast<std::byte>(state >> 24 & 0x3f);
          }
          all.push_back(std::move(bytes));
        }
        std::vector<std::byte> out(all[0].size()), want(all[0].size());
        std::vector<const void*> sources;
        for (const auto& bytes : all) sources.push_back(bytes.data());
        MergeByHost(GetParam(), element, static_cast<Merge>(m), sources, want.data(), count);
        Operation operation;
        operation.key = e * 10 + m;
        operation.what = {
            Kind::kAllReduce, element, static_cast<Merge>(m), 0, 0, Wire::kSame, count, 0};
        operation.in = all[static_cast<std::size_t>(r)].data();
        operation.out = out.data();
        ASSERT_TRUE(groups[static_cast<std::size_t>(r)]->Run(std::move(operation)).ok());
        ASSERT_EQ(out, want) << NameOf(element) << " " << NameOf(static_cast<Merge>(m));
      }
    }
  });
}

TEST_P(EngineTest, RanksMaySubmitInAnyOrderFromManyThreads) {
  constexpr std::size_t kOperations = 25;
  auto groups = Make();
  OnEachRank(ranks(), [&](int r) {
    Engine& sut = *groups[static_cast<std::size_t>(r)];
    std::vector<std::size_t> order(kOperations);
    for (std::size_t i = 0; i < kOperations; ++i) order[i] = i;
    std::mt19937 random(static_cast<unsigned>(r));
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::vector<float>> in(kOperations), out(kOperations);
    for (std::size_t i = 0; i < kOperations; ++i) {
      in[i] = InputOf<float>(r, 1 + i * i * 100, static_cast<int>(i));
      out[i].resize(in[i].size());
    }
    Answers answers(kOperations);
    std::vector<std::thread> threads;  // one for each: whoever works for the group is held up
    for (const std::size_t i : order) {
      threads.emplace_back([&, i] {
        Operation operation = AddFloats(i, in[i], out[i]);
        operation.done = answers.For(i);
        sut.Submit(std::move(operation));
      });
    }
    const auto statuses = answers.Wait();
    for (std::thread& thread : threads) thread.join();
    for (const Status& status : statuses) ASSERT_TRUE(status.ok()) << status.ToString();
    for (std::size_t i = 0; i < kOperations; ++i) {
      ASSERT_EQ(out[i], SumOf(ranks(), in[i].size(), static_cast<int>(i)));
    }
  });
}

}  // namespace
}  // namespace arcflow::collective
