// SPDX-License-Identifier: Apache-2.0
// Depots: what is offered is fetched whole or not at all, and let go when it was, or its peer went.
#include "arcflow/transport/depot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace arcflow::transport {
namespace {

using Bytes = std::vector<std::byte>;

ContextOptions OptionsOf(const std::string& backend) {
  ContextOptions options;
  options.secret = "0123456789abcdef0123456789abcdef";
  options.backends = {backend};
  return options;
}

std::unique_ptr<Depot> Make(const std::string& backend = "tcp",
                            std::chrono::nanoseconds patience = std::chrono::minutes(2)) {
  auto depot = Depot::Open(OptionsOf(backend), patience);
  EXPECT_TRUE(depot.ok()) << depot.status().ToString();
  return *std::move(depot);
}

std::shared_ptr<Bytes> Filled(std::size_t n) {
  auto bytes = std::make_shared<Bytes>(n);
  for (std::size_t i = 0; i < n; ++i) (*bytes)[i] = static_cast<std::byte>(i * 7 + i / 256);
  return bytes;
}

/// Fetches and waits; what was fetched comes along.
Status FetchAll(Depot& depot, const std::string& ticket, Bytes* into) {
  std::promise<Status> promise;
  depot.Start(std::make_shared<Depot::Fetch>(), ticket, *into,
              [&](const Status& status) { promise.set_value(status); });
  return promise.get_future().get();
}

void WaitUntilNothingIsHeld(const Depot& depot) {
  while (depot.counters().held > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

class DepotBackendTest : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, DepotBackendTest, ::testing::Values("tcp", "shm"),
                         [](const auto& one) { return one.param; });

TEST_P(DepotBackendTest, WhatIsOfferedIsFetchedAndLetGo) {
  const auto owner = Make(GetParam());
  const auto peer = Make(GetParam());
  for (const std::size_t n : {std::size_t{1}, std::size_t{40'000}, std::size_t{5'000'001}}) {
    auto bytes = Filled(n);
    std::weak_ptr<Bytes> alive = bytes;
    const auto ticket = owner->Offer(*bytes, bytes, peer->name());
    ASSERT_TRUE(ticket.ok()) << ticket.status().ToString();
    const Bytes want = *bytes;
    bytes.reset();
    EXPECT_FALSE(alive.expired());
    Bytes into(n);
    const Status status = FetchAll(*peer, *ticket, &into);
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(into, want);
    WaitUntilNothingIsHeld(*owner);
    EXPECT_TRUE(alive.expired());
    EXPECT_EQ(FetchAll(*peer, *ticket, &into).code(), Code::kNotFound);
  }
  EXPECT_EQ(peer->counters().fetched, 3u);
  EXPECT_EQ(peer->counters().bytes_fetched, owner->counters().bytes_offered);
}

TEST(DepotTest, WhatIsNoTicketOrOfAnotherLengthIsRefused) {
  const auto owner = Make();
  const auto peer = Make();
  const auto bytes = Filled(100);
  const auto ticket = owner->Offer(*bytes, bytes, peer->name());
  Bytes into(101);
  EXPECT_EQ(FetchAll(*peer, *ticket, &into).code(), Code::kInvalidArgument);
  EXPECT_EQ(FetchAll(*peer, "no ticket", &into).code(), Code::kInvalidArgument);
  EXPECT_EQ(FetchAll(*peer, ticket->substr(0, 60), &into).code(), Code::kInvalidArgument);
  EXPECT_FALSE(owner->Offer(*bytes, bytes, "somebody").ok());
  EXPECT_FALSE(owner->Offer({}, nullptr, peer->name()).ok());
}

TEST(DepotTest, WhatIsHeldForAPeerIsLetGoWhenItGoes) {
  const auto owner = Make();
  auto peer = Make();
  const auto bytes = Filled(100);
  Bytes into(100);
  const auto first = owner->Offer(*bytes, bytes, peer->name());
  ASSERT_TRUE(FetchAll(*peer, *first, &into).ok());  // they are connected from here on
  ASSERT_TRUE(owner->Offer(*bytes, bytes, peer->name()).ok());
  peer.reset();
  WaitUntilNothingIsHeld(*owner);
}

TEST(DepotTest, WhatNobodyFetchesIsLetGoAfterAWhile) {
  const auto owner = Make("tcp", std::chrono::milliseconds(20));
  const auto peer = Make();
  const auto bytes = Filled(100);
  ASSERT_TRUE(owner->Offer(*bytes, bytes, peer->name()).ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(40));
  ASSERT_TRUE(owner->Offer(*bytes, bytes, peer->name()).ok());
  EXPECT_EQ(owner->counters().expired, 1u);
  EXPECT_EQ(owner->counters().held, 1u);
}

TEST(DepotTest, AnOwnerThatIsGoneIsUnavailable) {
  auto owner = Make();
  const auto peer = Make();
  const auto bytes = Filled(100);
  const auto ticket = owner->Offer(*bytes, bytes, peer->name());
  owner.reset();
  Bytes into(100);
  EXPECT_EQ(FetchAll(*peer, *ticket, &into).code(), Code::kUnavailable);
}

/// AddressSanitizer is the witness: the memory is freed as soon as Cancel has returned.
TEST_P(DepotBackendTest, NothingIsWrittenAfterCancel) {
  const auto owner = Make(GetParam());
  const auto peer = Make(GetParam());
  const auto bytes = Filled(8 << 20);
  for (int round = 0; round < 30; ++round) {
    const auto ticket = owner->Offer(*bytes, bytes, peer->name());
    ASSERT_TRUE(ticket.ok());
    auto into = std::make_unique<Bytes>(bytes->size());
    std::promise<Status> promise;
    const auto fetch = std::make_shared<Depot::Fetch>();
    peer->Start(fetch, *ticket, *into, [&](const Status& status) { promise.set_value(status); });
    std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
    fetch->Cancel();
    into.reset();
    const Status status = promise.get_future().get();
    EXPECT_TRUE(status.ok() || status.code() == Code::kCancelled) << status.ToString();
  }
  WaitUntilNothingIsHeld(*owner);
}

}  // namespace
}  // namespace arcflow::transport
