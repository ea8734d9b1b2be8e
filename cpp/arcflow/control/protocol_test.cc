// SPDX-License-Identifier: Apache-2.0
// Messages survive the way there and back, and wrong ones are refused with the field's name.
#include "arcflow/control/protocol.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "arcflow/control/control_testing.h"
#include "arcflow/control/text.h"

namespace arcflow::control {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

Failure AFailure() {
  Failure f;
  f.rank = 2;
  f.role = "worker";
  f.host = "h";
  f.cause = cause::kException;
  f.type = "ValueError";
  f.message = "bad";
  f.traceback = "Traceback\n  line";
  f.exit_code = 1;
  f.log_tail = {"one", "two"};
  f.peer_loss = true;
  f.time_s = 12.5;
  return f;
}

TEST(ProtocolTest, FailureSurvives) {
  const auto sut = Failure::FromJson(AFailure().ToJson());
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_EQ(sut->ToJson(), AFailure().ToJson());
  EXPECT_EQ(sut->Summary(), "rank 2 (worker on h): exception 1: ValueError: bad");
}

TEST(ProtocolTest, FailureTextsAreBounded) {
  Failure f = AFailure();
  f.message = std::string(1 << 20, '"');
  f.traceback = std::string(1 << 20, '\x01') + "end";
  f.log_tail.assign(5000, std::string(100, '\\'));
  f.log_tail.push_back("the last line");
  const std::string text = f.ToJson().dump();
  EXPECT_LT(text.size(), 80u * 1024);  // fits a packet whatever the program printed
  const auto sut = Failure::FromJson(json::parse(text));
  ASSERT_TRUE(sut.ok());
  EXPECT_EQ(sut->log_tail.back(), "the last line");
  EXPECT_EQ(sut->traceback, "end");
}

TEST(ProtocolTest, FailureOfWrongTypeNamesTheField) {
  json object = AFailure().ToJson();
  object["rank"] = "two";
  EXPECT_THAT(Failure::FromJson(object).status().ToString(), HasSubstr("failure.rank"));
  object = AFailure().ToJson();
  object.erase("cause");
  EXPECT_THAT(Failure::FromJson(object).status().ToString(), HasSubstr("failure.cause is missing"));
  EXPECT_FALSE(Failure::FromJson(json::array()).ok());
}

TEST(ProtocolTest, VerdictSurvives) {
  const Verdict verdict{Code::kAborted, "why", AFailure()};
  const auto sut = Verdict::FromJson(verdict.ToJson());
  ASSERT_TRUE(sut.ok());
  EXPECT_EQ(sut->code, Code::kAborted);
  EXPECT_EQ(sut->Name(), "failed");
  EXPECT_EQ(sut->failure->type, "ValueError");
  EXPECT_EQ((Verdict{Code::kOk, "", std::nullopt}.Name()), "ok");
  EXPECT_EQ((Verdict{Code::kCancelled, "", std::nullopt}.Name()), "stopped");
}

TEST(ProtocolTest, JoinSurvivesAndRefusesNonsense) {
  Join join;
  join.run_id = "r";
  join.rank = 3;
  join.role = "worker";
  join.index = 2;
  join.host = "h";
  join.port = 65535;
  join.versions = {{"python", "3.11"}};
  const auto sut = Join::FromJson(join.ToJson());
  ASSERT_TRUE(sut.ok());
  EXPECT_EQ(sut->ToJson(), join.ToJson());
  for (const auto& [key, value] : std::map<std::string, json>{{"rank", -1},
                                                              {"rank", 1e9},
                                                              {"port", 65536},
                                                              {"port", 1.5},
                                                              {"role", 5},
                                                              {"versions", json::array({1})},
                                                              {"host", std::string(300, 'h')}}) {
    json object = join.ToJson();
    object[key] = value;
    EXPECT_THAT(Join::FromJson(object).status().ToString(), HasSubstr("join." + key));
  }
}

json GoodConfig() {
  json config = testing_support::AgentConfigJson(1, 2, "/bin/true", "ok");
  config["coordinator"] = {{"host", "127.0.0.1"}, {"port", 1234}};
  return config;
}

TEST(ProtocolTest, AgentConfigIsRead) {
  const auto sut = AgentConfig::FromJson(GoodConfig());
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_EQ(sut->secret, testing_support::Secret());
  EXPECT_EQ(sut->coordinator.port, 1234);
  EXPECT_EQ(sut->python.size(), 3u);
  EXPECT_EQ(sut->feeds.at("train").schema.columns.size(), 1u);
  EXPECT_EQ(json::parse(sut->job_json), json({{"epochs", 3}}));
  EXPECT_FALSE(sut->host_coordinator);
}

TEST(ProtocolTest, AgentConfigHostsACoordinator) {
  json config = GoodConfig();
  config.erase("coordinator");
  config["host_coordinator"] = {{"bind", "127.0.0.1"},
                                {"port", 0},
                                {"settle_s", 0.25},
                                {"expected_versions", {{"keras", "3"}}}};
  const auto sut = AgentConfig::FromJson(config);
  ASSERT_TRUE(sut.ok()) << sut.status().ToString();
  EXPECT_EQ(sut->host_coordinator->tuning.settle_s, 0.25);
  EXPECT_EQ(sut->host_coordinator->tuning.expected_versions.at("keras"), "3");
}

TEST(ProtocolTest, AgentConfigRefusesEachWrongField) {
  const std::vector<std::pair<std::string, json>> wrong = {
      {"secret", "5a"},
      {"secret", std::string(64, 'g')},
      {"rank", 2},
      {"size", 0},
      {"role", ""},
      {"python", json::array()},
      {"env", {{"A=B", "x"}}},
      {"coordinator", {{"host", ""}, {"port", 1}}},
      {"coordinator", {{"host", "h"}, {"port", 0}}},
      {"heartbeat_s", 0},
      {"grace_s", -1},
      {"jvm_pid", -5},
      {"feeds", {{"train", {{"cache", "auto"}}}}},
      {"feeds",
       {{"train", {{"schema", GoodConfig()["feeds"]["train"]["schema"]}, {"cache", "sometimes"}}}}},
      {"local_dirs", "here"},
      {"log_tail_lines", 1e6},
      {"run_id", nullptr}};
  for (const auto& [key, value] : wrong) {
    json config = GoodConfig();
    config[key] = value;
    EXPECT_THAT(AgentConfig::FromJson(config).status().ToString(), HasSubstr(key))
        << key << " = " << value.dump();
  }
}

TEST(ProtocolTest, VersionConflictListsEveryRank) {
  const std::vector<std::map<std::string, std::string>> ranks = {
      {{"python", "3.11.2"}, {"keras", "3.15.1"}}, {{"python", "3.11.9"}, {"keras", "3.14.0"}}};
  const std::string sut = VersionConflict(ranks, {{"python", "3.11.4"}});
  EXPECT_THAT(sut, HasSubstr("keras differs: rank 0 3.15.1, rank 1 3.14.0"));
  EXPECT_THAT(sut, HasSubstr("install the same keras"));
  EXPECT_THAT(sut, Not(HasSubstr("python differs")));  // the patch level does not count
  EXPECT_THAT(VersionConflict(ranks, {{"python", "3.12.0"}}), HasSubstr("driver 3.12.0"));
  EXPECT_EQ(VersionConflict({ranks[0], ranks[0]}, {}), "");
  EXPECT_THAT(VersionConflict({ranks[0], {}}, {}), HasSubstr("rank 1 missing"));
}

TEST(ProtocolTest, BeatsOfALargeRunAreSeldomButNeverNearTheSilenceLimit) {
  EXPECT_DOUBLE_EQ(BeatInterval(1, 2, 15), 1);
  EXPECT_DOUBLE_EQ(BeatInterval(1, 1000, 15), 2);
  EXPECT_DOUBLE_EQ(BeatInterval(1, kMaxSize, 15), 3);
  EXPECT_DOUBLE_EQ(BeatInterval(1, kMaxSize, 0.5), 1);  // as asked for, at least
  EXPECT_DOUBLE_EQ(RowsInterval(2), 0.02);
  EXPECT_DOUBLE_EQ(RowsInterval(1000), 1);
}

TEST(TextTest, HexAndBase64GoThereAndBack) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) {
    bytes += static_cast<char>(i);
    EXPECT_EQ(HexDecode(HexEncode(bytes)).value(), bytes);
    EXPECT_EQ(Base64Decode(Base64Encode(bytes)).value(), bytes);
  }
  EXPECT_EQ(Base64Encode("foob"), "Zm9vYg==");  // RFC 4648, section 10
  for (const char* bad : {"Zg=", "Zg", "Z===", "Zh==", "Z=g=", "Zm9v!mFy", "Zg==Zg=="})
    EXPECT_FALSE(Base64Decode(bad).ok()) << bad;
  EXPECT_FALSE(HexDecode("5").ok());
  EXPECT_FALSE(HexDecode("5x").ok());
}

TEST(TextTest, CleanTextIsValidAndBounded) {
  EXPECT_EQ(CleanText("a\x1b[31mred\x1b[0m\x07\tb\n", 100), "ared\tb\n");
  EXPECT_EQ(CleanText("\xff\xc3\xa4\xe2\x82", 100), "?ä??");
  EXPECT_EQ(CleanText("ééé", 3), "é");
  const std::string cut = CleanText("begin" + std::string(1000, 'x') + "end", 100);
  EXPECT_LE(cut.size(), 100u);
  EXPECT_THAT(cut, ::testing::StartsWith("begin"));
  EXPECT_THAT(cut, ::testing::EndsWith("end"));
}

}  // namespace
}  // namespace arcflow::control
