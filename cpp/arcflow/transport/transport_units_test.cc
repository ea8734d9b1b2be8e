// SPDX-License-Identifier: Apache-2.0
// Parts of the transport that need no second process: descriptors, frames, the choice of a backend,
// gates, pooled and cached registrations.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "arcflow/transport/buffer_pool.h"
#include "arcflow/transport/gate.h"
#include "arcflow/transport/greeting.h"
#include "arcflow/transport/inet.h"
#include "arcflow/transport/registry.h"
#include "arcflow/transport/wire.h"

namespace arcflow::transport {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ContextOptions TestOptions(std::vector<std::string> backends = {"tcp"}) {
  ContextOptions options;
  options.secret = "0123456789abcdef0123456789abcdef";
  options.backends = std::move(backends);
  return options;
}

std::unique_ptr<Context> MakeContext(const ContextOptions& options = TestOptions()) {
  auto context = Context::Create(options);
  EXPECT_TRUE(context.ok()) << context.status().ToString();
  return context.ok() ? std::move(*context) : nullptr;
}

TEST(RemoteRegionTest, SurvivesItsBytes) {
  RemoteRegion region;
  region.owner.bytes[3] = 7;
  region.key = 0x1122334455667788;
  region.size_bytes = 12345;
  region.access = Access::kWrite;
  const std::string bytes = region.Serialize();
  EXPECT_EQ(bytes.size(), RemoteRegion::kBytes);
  const auto back = RemoteRegion::Parse(bytes);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(*back, region);
}

TEST(RemoteRegionTest, RefusesEverythingElse) {
  RemoteRegion region;
  region.key = 1;
  region.size_bytes = 1;
  const std::string good = region.Serialize();
  ASSERT_TRUE(RemoteRegion::Parse(good).ok());
  EXPECT_FALSE(RemoteRegion::Parse("").ok());
  EXPECT_FALSE(RemoteRegion::Parse(good + "x").ok());
  for (const std::size_t at : {0, 4, 6, 8}) {  // magic, version, access, zeros
    std::string bad = good;
    bad[at] = 9;
    EXPECT_FALSE(RemoteRegion::Parse(bad).ok()) << at;
  }
  region.key = 0;
  EXPECT_FALSE(RemoteRegion::Parse(region.Serialize()).ok());
}

TEST(WireTest, HeadersAreCheckedFieldByField) {
  FrameHeader good;
  good.type = FrameType::kPutData;
  good.total = 100;
  good.payload_bytes = 60;
  good.offset = 1000;
  const auto decode = [](const FrameHeader& h) {
    std::array<std::byte, sizeof(FrameHeader)> raw;
    EncodeHeader(h, raw.data());
    return DecodeHeader(raw).ok();
  };
  EXPECT_TRUE(decode(good));
  EXPECT_FALSE(DecodeHeader(std::span<const std::byte>()).ok());
  const auto bad = [&](auto change) {
    FrameHeader h = good;
    change(h);
    return !decode(h);
  };
  EXPECT_TRUE(bad([](FrameHeader& h) { h.magic = 0; }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.type = static_cast<FrameType>(0); }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.type = static_cast<FrameType>(kLastFrameType + 1); }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.status = 17; }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.zero = 1; }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.inline_bytes = 1; }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.payload_bytes = 0; }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.payload_bytes = 101; }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.total = kMaxTotalBytes + 1; }));
  EXPECT_TRUE(bad([](FrameHeader& h) { h.offset = ~std::uint64_t{0} - 10; }));
  EXPECT_TRUE(bad([](FrameHeader& h) {
    h.type = FrameType::kGetData;
    h.offset = 41;
  }));
  EXPECT_TRUE(bad([](FrameHeader& h) {
    h.type = FrameType::kPut;
    h.payload_bytes = 0;
    h.inline_bytes = 99;
  }));
  EXPECT_TRUE(bad([](FrameHeader& h) {
    h.type = FrameType::kPutRef;
    h.payload_bytes = 0;
    h.inline_bytes = 15;
  }));
}

TEST(WireTest, AddressesAndHellosSurvive) {
  Address address;
  address.node.bytes[0] = 1;
  address.entries = {{"tcp", "127.0.0.1:80"}, {"shm", "name"}};
  const std::string bytes = address.Serialize();
  const auto back = Address::Parse(bytes);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->node, address.node);
  ASSERT_EQ(back->entries.size(), 2U);
  EXPECT_EQ(back->entries[1].where, "name");
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(Address::Parse(std::string_view(bytes).substr(0, n)).ok()) << n;
  }
  Hello hello;
  hello.session = 5;
  hello.lane = 1;
  hello.lanes = 2;
  hello.extra = "more";
  const auto said = Hello::Parse(std::string_view(hello.Serialize()).substr(4));
  ASSERT_TRUE(said.ok());
  EXPECT_EQ(said->extra, "more");
  hello.lane = 2;
  EXPECT_FALSE(Hello::Parse(std::string_view(hello.Serialize()).substr(4)).ok());
}

TEST(RegistryTest, NamesDecideAndAreChecked) {
  EXPECT_THAT(ChooseBackends({}, nullptr)->names, ElementsAre("shm", "rdma", "tcp"));
  EXPECT_FALSE(ChooseBackends({}, "")->forced);
  EXPECT_THAT(ChooseBackends({}, "tcp")->names, ElementsAre("tcp"));
  EXPECT_TRUE(ChooseBackends({}, "tcp")->forced);
  EXPECT_THAT(ChooseBackends({}, "tcp, shm")->names, ElementsAre("tcp", "shm"));
  EXPECT_THAT(ChooseBackends({"shm"}, "tcp")->names, ElementsAre("shm"));
  EXPECT_THAT(std::string(ChooseBackends({}, "tpc").status().message()),
              HasSubstr("ARC_TRANSPORTS"));
  EXPECT_FALSE(ChooseBackends({"tcp", "tcp"}, nullptr).ok());
}

TEST(RegistryTest, TheEnvironmentForcesAChoice) {
  ContextOptions options = TestOptions({});
  const auto free_a = MakeContext(options);
  const auto free_b = MakeContext(options);
  ASSERT_NE(free_b, nullptr);
  const auto best = free_a->Connect(free_b->address(), Deadline::AfterSeconds(30));
  ASSERT_TRUE(best.ok()) << best.status().ToString();
  EXPECT_EQ((*best)->backend(), "shm");  // both are on this host
  ::setenv("ARC_TRANSPORTS", "tcp", 1);
  const auto forced_a = MakeContext(options);
  const auto forced_b = MakeContext(options);
  ::unsetenv("ARC_TRANSPORTS");
  ASSERT_NE(forced_b, nullptr);
  const auto forced = forced_a->Connect(forced_b->address(), Deadline::AfterSeconds(30));
  ASSERT_TRUE(forced.ok()) << forced.status().ToString();
  EXPECT_EQ((*forced)->backend(), "tcp");
  ASSERT_EQ(forced_a->backends().size(), 1U);
  // Nothing in common is told, with what each side has.
  const auto none =
      forced_a->Connect(MakeContext(TestOptions({"shm"}))->address(), Deadline::AfterSeconds(5));
  EXPECT_THAT(none.status().ToString(), HasSubstr("this side has tcp, the peer shm"));
}

TEST(InetTest, APortOfTheRangeIsTakenThatIsFree) {
  std::string where;
  const auto taken = ListenTcp("127.0.0.1", 0, 0, &where);
  ASSERT_TRUE(taken.ok());
  const int port = std::stoi(where.substr(where.rfind(':') + 1));
  const auto same = ListenTcp("127.0.0.1", port, port, &where);
  EXPECT_EQ(same.status().code(), Code::kUnavailable);
  const int last = std::min(port + 50, 65535);
  const auto next = ListenTcp("127.0.0.1", std::min(port, last - 50), last, &where);
  ASSERT_TRUE(next.ok()) << next.status().ToString();
  const int found = std::stoi(where.substr(where.rfind(':') + 1));
  EXPECT_NE(found, port);
  EXPECT_GE(found, std::min(port, last - 50));
  EXPECT_LE(found, last);
}

TEST(ContextTest, ChecksItsOptions) {
  ContextOptions options = TestOptions();
  options.secret = "short";
  EXPECT_EQ(Context::Create(options).status().code(), Code::kInvalidArgument);
  options = TestOptions();
  options.host = "no such host.invalid";
  EXPECT_EQ(Context::Create(options).status().code(), Code::kInvalidArgument);
  options = TestOptions();
  options.tcp_connections = 0;
  EXPECT_EQ(Context::Create(options).status().code(), Code::kInvalidArgument);
  const auto context = MakeContext();
  EXPECT_EQ(context->Connect(context->address(), Deadline::AfterSeconds(1)).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(context->Connect("nonsense", Deadline::AfterSeconds(1)).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(context->Register({}, Access::kRead).status().code(), Code::kInvalidArgument);
}

TEST(ContextTest, RefusesPortsThatAreNoRange) {
  ContextOptions options = TestOptions();
  options.first_port = 4000;
  options.last_port = 3999;
  EXPECT_EQ(Context::Create(options).status().code(), Code::kInvalidArgument);
  options.last_port = 70000;
  EXPECT_EQ(Context::Create(options).status().code(), Code::kInvalidArgument);
}

TEST(ContextTest, RdmaSaysWhatIsMissing) {
  if (std::filesystem::exists("/sys/class/infiniband/rxe0")) GTEST_SKIP() << "there is a device";
  const auto context = Context::Create(TestOptions({"rdma"}));
  ASSERT_FALSE(context.ok());
  const std::string said = context.status().ToString();
  EXPECT_TRUE(said.find("no RDMA device") != std::string::npos ||
              said.find("built without UCX") != std::string::npos ||
              said.find("port") != std::string::npos)
      << said;
}

TEST(ContextTest, StrangersCostNothingAndGetNothing) {
  const auto context = MakeContext();
  const auto address = Address::Parse(context->address());
  ASSERT_TRUE(address.ok());
  for (int i = 0; i < 5; ++i) {
    auto socket = DialTcp(address->entries.front().where, Deadline::AfterSeconds(5));
    ASSERT_TRUE(socket.ok());
    std::string garbage(8192, static_cast<char>('a' + i));
    (void)SendBytes(socket->get(), garbage, -1, Deadline::AfterSeconds(5));
    // The magic and a nonce, then the end.
    const auto answer = ReceiveBytes(socket->get(), 1000, nullptr, Deadline::AfterSeconds(30));
    EXPECT_EQ(answer.status().code(), Code::kUnavailable) << answer.status().ToString();
  }
  EXPECT_EQ(context->counters().rejected, 5U);
  const auto friendly = MakeContext();
  EXPECT_TRUE(friendly->Connect(context->address(), Deadline::AfterSeconds(30)).ok());
}

TEST(GateTest, CloseWaitsForThoseInside) {
  auto gate = std::make_shared<Gate>();
  ASSERT_TRUE(gate->Enter());
  std::atomic<bool> left{false};
  std::thread inside([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    left = true;
    gate->Leave();
  });
  gate->Close();
  EXPECT_FALSE(gate->Enter());
  gate->Wait();
  EXPECT_TRUE(left);
  EXPECT_TRUE(gate->drained());
  inside.join();
}

TEST(ValidityTableTest, NumbersAreNeverUsedTwice) {
  ValidityTable table;
  auto* first = table.Take();
  const std::uint64_t before = *first;
  EXPECT_NE(before, 0U);
  table.Give(first);
  EXPECT_EQ(*first, 0U);
  auto* second = table.Take();
  EXPECT_EQ(second, first);  // the word is used again
  EXPECT_NE(*second, before);
}

TEST(BufferPoolTest, BuffersAreAllocatedAndRegisteredOnce) {
  const auto context = MakeContext();
  const auto pool = BufferPool::Create(*context);
  std::uint64_t key = 0;
  for (int step = 0; step < 100; ++step) {
    auto a = pool->Take(100'000);
    auto b = pool->Take(5000);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_GE(a->bytes().size(), 100'000U);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a->bytes().data()) % 4096, 0U);
    if (step == 0) key = a->remote().key;
    EXPECT_EQ(a->remote().key, key);
  }
  EXPECT_EQ(context->counters().pool_allocations, 2U);
  EXPECT_EQ(context->counters().registrations, 2U);
  auto failed = pool->Take(100'000);
  ASSERT_TRUE(failed.ok());
  failed->ReturnRevoked();
  auto fresh = pool->Take(100'000);
  ASSERT_TRUE(fresh.ok());
  EXPECT_NE(fresh->remote().key, key);  // nothing in flight for the old one can land
  EXPECT_EQ(context->counters().pool_allocations, 2U);
  EXPECT_EQ(pool->Take(std::size_t{1} << 60).status().code(), Code::kResourceExhausted);
}

TEST(RegistrationCacheTest, FindsWhatCoversAndForgetsWhatIsInvalidated) {
  const auto context = MakeContext();
  RegistrationCache cache(*context);
  std::vector<std::byte> memory(10'000);
  const std::span<std::byte> all(memory);
  const auto whole = cache.Find(all, Access::kRead);
  ASSERT_TRUE(whole.ok());
  const auto part = cache.Find(all.subspan(100, 50), Access::kRead);
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(part->region, whole->region);
  EXPECT_EQ(part->offset_bytes, 100U);
  EXPECT_EQ(context->counters().cache_hits, 1U);
  const auto other_access = cache.Find(all.subspan(100, 50), Access::kReadWrite);
  ASSERT_TRUE(other_access.ok());
  EXPECT_NE(other_access->region, whole->region);
  const auto apart = cache.Find(all.subspan(9000, 10), Access::kReadWrite);
  ASSERT_TRUE(apart.ok());
  EXPECT_EQ(cache.size(), 3U);
  cache.Invalidate(all.subspan(120, 1));
  EXPECT_EQ(cache.size(), 1U);  // only the one that does not touch it
  EXPECT_EQ(context->counters().regions, 1U);
  cache.Invalidate(all);
  EXPECT_EQ(cache.size(), 0U);
  EXPECT_EQ(context->counters().regions, 0U);
}

}  // namespace
}  // namespace arcflow::transport
