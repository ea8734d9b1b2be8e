// SPDX-License-Identifier: Apache-2.0
// Depots: what is offered is fetched whole or not at all, and let go when it was, or its peer went.
#include "arcflow/transport/depot.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "arcflow/base/sanitizer_testing.h"

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

/// A ticket for `peer`, which is connected first.
std::string OfferTo(Depot& peer, Depot& owner, const std::shared_ptr<Bytes>& bytes) {
  const auto reached = peer.Reach(owner.address(), Deadline::AfterSeconds(20));
  EXPECT_TRUE(reached.ok()) << reached.status().ToString();
  EXPECT_EQ(*reached, owner.name());
  auto ticket = owner.Offer(*bytes, bytes, peer.name());
  EXPECT_TRUE(ticket.ok()) << ticket.status().ToString();
  return ticket.ok() ? *ticket : "";
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
    const std::string ticket = OfferTo(*peer, *owner, bytes);
    const Bytes want = *bytes;
    bytes.reset();
    EXPECT_FALSE(alive.expired());
    Bytes into(n);
    const Status status = FetchAll(*peer, ticket, &into);
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_EQ(into, want);
    while (!alive.expired()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_EQ(FetchAll(*peer, ticket, &into).code(), Code::kNotFound);
  }
  EXPECT_EQ(peer->counters().fetched, 3u);
  EXPECT_EQ(peer->counters().bytes_fetched, owner->counters().bytes_offered);
  EXPECT_EQ(peer->BackendTo(owner->name()), GetParam());
}

/// AddressSanitizer is the witness: the memory is freed as soon as Cancel has returned.
TEST_P(DepotBackendTest, NothingIsWrittenAfterCancel) {
  const auto owner = Make(GetParam());
  const auto peer = Make(GetParam());
  const auto bytes = Filled(8 << 20);
  for (int round = 0; round < 30; ++round) {
    const std::string ticket = OfferTo(*peer, *owner, bytes);
    auto into = std::make_unique<Bytes>(bytes->size());
    std::promise<Status> promise;
    const auto fetch = std::make_shared<Depot::Fetch>();
    if (round == 0) fetch->Cancel();  // before it starts
    peer->Start(fetch, ticket, *into, [&](const Status& status) { promise.set_value(status); });
    std::this_thread::sleep_for(std::chrono::microseconds(100 * round));
    fetch->Cancel();
    into.reset();
    const Status status = promise.get_future().get();
    EXPECT_TRUE((status.ok() && round > 0) || status.code() == Code::kCancelled)
        << status.ToString();
  }
  WaitUntilNothingIsHeld(*owner);
}

/// The owner frees what it offered as soon as it is told so, and overwrites it before.
TEST_P(DepotBackendTest, WhatIsHeldIsNotFreedWhileItIsFetched) {
  const auto owner = Make(GetParam());
  const auto peer = Make(GetParam());
  for (int round = 0; round < testing_support::UnlessThreadSanitizer(20, 8); ++round) {
    auto bytes =
        std::shared_ptr<Bytes>(new Bytes(3 << 20, static_cast<std::byte>(round)), [](Bytes* gone) {
          std::fill(gone->begin(), gone->end(), std::byte{0xff});
          delete gone;
        });
    const std::string ticket = OfferTo(*peer, *owner, bytes);
    bytes.reset();
    Bytes into(3 << 20);
    ASSERT_TRUE(FetchAll(*peer, ticket, &into).ok());
    EXPECT_EQ(std::count(into.begin(), into.end(), static_cast<std::byte>(round)), 3 << 20);
  }
}

TEST_P(DepotBackendTest, AnOwnerThatGoesIsUnavailable) {
  auto owner = Make(GetParam());
  const auto peer = Make(GetParam());
  const auto bytes = Filled(testing_support::UnlessThreadSanitizer(64 << 20, 16 << 20));
  const std::string first = OfferTo(*peer, *owner, bytes);
  const std::string second = OfferTo(*peer, *owner, bytes);
  Bytes into(bytes->size());
  std::promise<Status> promise;
  peer->Start(std::make_shared<Depot::Fetch>(), first, into,
              [&](const Status& status) { promise.set_value(status); });
  owner.reset();
  const Status status = promise.get_future().get();
  // It gives back its memory before its connection ends.
  EXPECT_TRUE(status.ok() || status.code() == Code::kUnavailable ||
              status.code() == Code::kNotFound)
      << status.ToString();
  EXPECT_EQ(FetchAll(*peer, second, &into).code(), Code::kUnavailable);
}

TEST(DepotTest, WhatIsNoTicketOrOfAnotherLengthIsRefused) {
  const auto owner = Make();
  const auto peer = Make();
  const auto bytes = Filled(100);
  const std::string ticket = OfferTo(*peer, *owner, bytes);
  Bytes into(101);
  EXPECT_EQ(FetchAll(*peer, "no ticket", &into).code(), Code::kInvalidArgument);
  EXPECT_EQ(FetchAll(*peer, ticket.substr(0, 59), &into).code(), Code::kInvalidArgument);
  EXPECT_EQ(FetchAll(*peer, "X" + ticket.substr(1), &into).code(), Code::kInvalidArgument);
  EXPECT_EQ(FetchAll(*peer, ticket, &into).code(), Code::kInvalidArgument);
  WaitUntilNothingIsHeld(*owner);  // the last one was ours, and nobody will come again
  EXPECT_EQ(owner->Offer(*bytes, bytes, "somebody").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(owner->Offer({}, nullptr, peer->name()).status().code(), Code::kInvalidArgument);
}

TEST(DepotTest, NothingIsHeldForWhoIsNotConnected) {
  const auto owner = Make();
  const auto peer = Make();
  auto bytes = Filled(100);
  const std::weak_ptr<Bytes> alive = bytes;
  EXPECT_EQ(owner->Offer(*bytes, bytes, peer->name()).status().code(), Code::kUnavailable);
  bytes.reset();
  EXPECT_TRUE(alive.expired());
  EXPECT_EQ(owner->counters().offered, 0u);
  EXPECT_EQ(owner->BackendTo(peer->name()), "");
}

TEST(DepotTest, AThirdOneCannotLetGoOfWhatIsAnothers) {
  const auto owner = Make();
  const auto peer = Make();
  const auto thief = Make();
  const auto bytes = Filled(100);
  const std::string ticket = OfferTo(*peer, *owner, bytes);
  ASSERT_TRUE(thief->Reach(owner->address(), Deadline::AfterSeconds(20)).ok());
  Bytes wrong(99);
  EXPECT_EQ(FetchAll(*thief, ticket, &wrong).code(), Code::kInvalidArgument);  // asks to let go
  Bytes into(100);
  const std::string other = OfferTo(*thief, *owner, bytes);
  ASSERT_TRUE(FetchAll(*thief, other, &into).ok());  // so what it asked before has been handled
  EXPECT_TRUE(FetchAll(*peer, ticket, &into).ok());
}

TEST(DepotTest, WhatIsHeldForAPeerIsLetGoWhenItGoes) {
  const auto owner = Make();
  auto peer = Make();
  const auto bytes = Filled(100);
  (void)OfferTo(*peer, *owner, bytes);
  EXPECT_EQ(owner->counters().held, 1u);
  peer.reset();
  WaitUntilNothingIsHeld(*owner);
  EXPECT_EQ(owner->counters().expired, 0u);
}

TEST(DepotTest, WhatNobodyFetchesIsLetGoAfterAWhile) {
  const auto owner = Make("tcp", std::chrono::milliseconds(20));
  const auto peer = Make();
  auto bytes = Filled(100);
  const std::weak_ptr<Bytes> alive = bytes;
  (void)OfferTo(*peer, *owner, bytes);
  bytes.reset();
  std::this_thread::sleep_for(std::chrono::milliseconds(40));
  EXPECT_EQ(owner->counters().expired, 1u);
  EXPECT_EQ(owner->counters().held, 0u);
  EXPECT_TRUE(alive.expired());
}

}  // namespace
}  // namespace arcflow::transport
