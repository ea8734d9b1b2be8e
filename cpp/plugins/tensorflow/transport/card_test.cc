// SPDX-License-Identifier: Apache-2.0
// Cards decide how a group exchanges; settings and addresses are read as they are written.
#include "plugins/tensorflow/transport/card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plugins/tensorflow/transport/identity.h"
#include "plugins/tensorflow/transport/settings.h"

namespace arcflow::tf {
namespace {

using ::testing::HasSubstr;
using Kind = Plan::Kind;

Card CardOf(const std::string& mode, const std::string& host) {
  return {kCardVersion, "run", mode, host, "hub-" + host, "lobby-" + host, "", "depot-" + host, ""};
}

TEST(CardTest, SurvivesItsText) {
  const Card card = CardOf("auto", "a");
  const auto read = Card::Parse(card.ToJson());
  ASSERT_TRUE(read);
  EXPECT_EQ(read->lobby, card.lobby);
  EXPECT_EQ(read->ToJson(), card.ToJson());
  EXPECT_FALSE(Card::Parse("{}"));
  EXPECT_FALSE(Card::Parse("no card"));
}

TEST(PlanTest, OneHostSharesMemoryAndSeveralExchange) {
  EXPECT_EQ(PlanFor({{"0", CardOf("auto", "a")}, {"1", CardOf("auto", "a")}}).kind, Kind::kShared);
  EXPECT_EQ(PlanFor({{"0", CardOf("auto", "a")}, {"1", CardOf("auto", "b")}}).kind, Kind::kHosts);
  for (const char* mode : {"tcp", "rdma"}) {
    EXPECT_EQ(PlanFor({{"0", CardOf(mode, "a")}, {"1", CardOf(mode, "a")}}).kind, Kind::kHosts);
  }
}

TEST(PlanTest, WhatStandsInTheWayIsSaid) {
  const auto why = [](const std::optional<Card>& other) {
    const Plan plan = PlanFor({{"0", CardOf("auto", "a")}, {"1", other}});
    EXPECT_EQ(plan.kind, Kind::kStock);
    return plan.why;
  };
  EXPECT_THAT(why(std::nullopt), HasSubstr("1 does not speak grpc+arc"));
  EXPECT_THAT(why(CardOf("grpc", "b")), HasSubstr("transport='grpc'"));
  EXPECT_THAT(why(CardOf("tcp", "b")), HasSubstr("transport='tcp'"));
  EXPECT_THAT(why(CardOf("rdma", "b")), HasSubstr("transport='rdma'"));
  EXPECT_THAT(why(CardOf("shm", "b")), HasSubstr("on several hosts"));
  Card other = CardOf("auto", "b");
  other.version = kCardVersion - 1;
  EXPECT_THAT(why(other), HasSubstr("another version"));
  other = CardOf("auto", "b");
  other.run_id = "another";
  EXPECT_THAT(why(other), HasSubstr("another run"));
  other = CardOf("auto", "b");
  other.lobby = "";
  other.no_lobby = "no port is free";
  EXPECT_THAT(why(other), HasSubstr("no port is free"));
}

TEST(PlanTest, HostsAreThoseOfTheCardsAndEachTaskIsOneForTcp) {
  const auto hosts =
      HostsOf({{"0", CardOf("auto", "a")}, {"1", CardOf("auto", "b")}, {"2", CardOf("auto", "a")}});
  EXPECT_EQ(hosts.at("0"), hosts.at("2"));
  EXPECT_NE(hosts.at("0"), hosts.at("1"));
  const auto alone = HostsOf({{"0", CardOf("tcp", "a")}, {"1", CardOf("tcp", "a")}});
  EXPECT_NE(alone.at("0"), alone.at("1"));
}

TEST(FetchTest, WhatStandsInTheWayIsSaid) {
  const Card own = CardOf("auto", "a");
  EXPECT_FALSE(WhyNotFetched(CardOf("auto", "b"), own));
  const auto why = [&](const std::optional<Card>& other) {
    return WhyNotFetched(other, own).value_or("nothing");
  };
  EXPECT_THAT(why(std::nullopt), HasSubstr("does not speak grpc+arc"));
  Card other = own;
  other.version = kCardVersion + 1;
  EXPECT_THAT(why(other), HasSubstr("another version"));
  other = own;
  other.run_id = "another";
  EXPECT_THAT(why(other), HasSubstr("another run"));
  other = own;
  other.depot = "";
  other.no_depot = "no port is free";
  EXPECT_THAT(why(other), HasSubstr("no port is free"));
}

TEST(IdentityTest, ListensOnTheTasksOwnAddress) {
  EXPECT_EQ(HostIn("10.1.2.3:4000"), "10.1.2.3");
  EXPECT_EQ(HostIn("[fe80::1]:4000"), "fe80::1");
  EXPECT_EQ(HostIn("worker-3.cluster:1"), "worker-3.cluster");
  Settings settings;
  settings.secret = std::string(32, 's');
  const auto reached = Identity::Make(settings, "127.0.0.1:1");
  ASSERT_TRUE(reached.ok());
  EXPECT_FALSE((*reached)->card.lobby.empty());
  EXPECT_FALSE((*reached)->card.depot.empty());
}

TEST(IdentityTest, RdmaIsADeviceOrAnErrorThatNamesWhatIsMissing) {
  Settings settings;
  settings.mode = "rdma";
  settings.secret = std::string(32, 's');
  const auto identity = Identity::Make(settings, "127.0.0.1:1");
  if (identity.ok()) {  // a machine that has one
    EXPECT_EQ((*identity)->card.mode, "rdma");
    return;
  }
  EXPECT_THAT(identity.status().message(), HasSubstr("transport='rdma'"));
  EXPECT_THAT(identity.status().message(),
              ::testing::AnyOf(HasSubstr("RDMA device"), HasSubstr("UCX"), HasSubstr("libucp")));
}

TEST(IdentityTest, AnAddressThatIsNotOursIsNoLobbyAndForTcpAnError) {
  Settings settings;
  settings.secret = std::string(32, 's');
  const std::string elsewhere = "192.0.2.1:1";  // for documentation, so nobody's
  const auto without = Identity::Make(settings, elsewhere);
  ASSERT_TRUE(without.ok());
  EXPECT_EQ((*without)->card.lobby, "");
  EXPECT_THAT((*without)->card.no_lobby, HasSubstr("192.0.2.1"));
  EXPECT_NE((*without)->depot, nullptr);  // those of this host need no address
  settings.mode = "tcp";
  EXPECT_EQ(Identity::Make(settings, elsewhere).status().code(), Code::kUnavailable);
  settings.mode = "shm";  // needs none
  ASSERT_TRUE(Identity::Make(settings, elsewhere).ok());
}

TEST(SettingsTest, AreReadFromJson) {
  const std::string secret(64, 'a');
  const auto settings = ParseSettings(R"({"mode":"tcp","ports":[40000,40100],"secret":")" + secret +
                                      R"(","run_id":"r"})");
  ASSERT_TRUE(settings.ok()) << settings.status().ToString();
  EXPECT_EQ(settings->mode, "tcp");
  EXPECT_EQ(settings->first_port, 40000);
  EXPECT_EQ(settings->last_port, 40100);
  EXPECT_FALSE(ParseSettings(R"({"mode":"tcp","ports":"x","secret":")" + secret + R"("})").ok());
  EXPECT_FALSE(ParseSettings(R"({"mode":"pigeon","secret":")" + secret + R"("})").ok());
  EXPECT_EQ(settings->rdma_backend, "rdma");
  EXPECT_FALSE(ParseSettings(R"({"rdma_backend":"tcp","secret":")" + secret + R"("})").ok());
  EXPECT_FALSE(ParseSettings(R"({"secret":"aa"})").ok());
}

}  // namespace
}  // namespace arcflow::tf
