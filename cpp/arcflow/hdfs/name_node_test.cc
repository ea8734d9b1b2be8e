// SPDX-License-Identifier: Apache-2.0
// Finding the active NameNode, trying again, who we are, and redirects to strangers.
#include "arcflow/hdfs/name_node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "arcflow/hdfs/credentials.h"
#include "arcflow/hdfs/fake_hdfs_testing.h"

namespace arcflow::hdfs {
namespace {

using testing::Exception;
using testing::FakeHdfs;
using ::testing::HasSubstr;
using testing::Json;
using testing::Reply;
using testing::Request;

std::optional<Reply> Standby(const std::string& server, const std::string& active) {
  if (server[0] != 'n' || server == active) return std::nullopt;
  return Exception(403, "StandbyException",
                   "Operation category READ is not supported in state standby");
}

TEST(NameNodeTest, TheActiveOneIsFoundAndRemembered) {
  FakeHdfs fake(2);
  fake.Put("/a", "x");
  fake.SetFault([](const std::string& server, const Request&) { return Standby(server, "nn1"); });
  const auto sut = FakeHdfs::Client(fake.HaConfig());
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(sut->Stat("hdfs://ns/a").ok());
  EXPECT_EQ(fake.Count("nn0 "), 1);
  EXPECT_EQ(fake.Count("nn1 "), 3);
}

TEST(NameNodeTest, FailoverWhileNoneIsActiveIsWaitedFor) {
  FakeHdfs fake(2);
  fake.Put("/a", "x");
  std::atomic<int> asked{0};
  fake.SetFault([&](const std::string& server, const Request&) {
    return Standby(server, ++asked < 7 ? "" : "nn1");
  });
  EXPECT_TRUE(FakeHdfs::Client(fake.HaConfig())->Stat("hdfs://ns/a").ok());
}

TEST(NameNodeTest, ADeadNameNodeIsPassedOver) {
  FakeHdfs fake(2);
  fake.Put("/a", "x");
  fake.nn[0]->Stop();
  EXPECT_TRUE(FakeHdfs::Client(fake.HaConfig())->Stat("hdfs://ns/a").ok());
}

TEST(NameNodeTest, StandbyForEverIsAnErrorWithTheService) {
  FakeHdfs fake(2);
  fake.SetFault([](const std::string& server, const Request&) { return Standby(server, ""); });
  Options options = FakeHdfs::Quick();
  options.failover_rounds = 3;
  const Status status = FakeHdfs::Client(fake.HaConfig(), options)->Stat("hdfs://ns/a").status();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GETFILESTATUS /a on ns"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("StandbyException"));
}

TEST(NameNodeTest, TransientTroubleIsTriedAgainUntilTheDeadline) {
  FakeHdfs fake;
  fake.Put("/a", "x");
  std::atomic<int> asked{0};
  fake.SetFault([&](const std::string&, const Request&) -> std::optional<Reply> {
    switch (++asked) {
      case 1:
        return Exception(403, "RetriableException", "safe mode");
      case 2:
        return Reply{503, "<html>busy", {}, {}, {}, {}, false};
      case 3: {
        Reply reply;
        reply.hang_up = true;
        return reply;
      }
      default:
        return std::nullopt;
    }
  });
  EXPECT_TRUE(FakeHdfs::Client()->Stat(fake.Uri("/a")).ok());
  EXPECT_EQ(asked, 4);
}

TEST(NameNodeTest, ErrorsThatStayAreNotTriedAgain) {
  FakeHdfs fake;
  EXPECT_EQ(FakeHdfs::Client()->Stat(fake.Uri("/none")).status().code(), Code::kNotFound);
  EXPECT_EQ(fake.Log().size(), 1u);
}

TEST(NameNodeTest, ASlowNameNodeMeetsTheTimeLimit) {
  FakeHdfs fake;
  fake.SetFault([](const std::string&, const Request&) -> std::optional<Reply> {
    Reply reply;
    reply.delay = std::chrono::minutes(5);
    return reply;
  });
  Options options = FakeHdfs::Quick();
  options.operation_timeout = std::chrono::milliseconds(300);
  EXPECT_EQ(FakeHdfs::Client({}, options)->Stat(fake.Uri("/a")).status().code(),
            Code::kDeadlineExceeded);
}

TEST(NameNodeTest, MalformedJsonIsDataLossWithThePath) {
  FakeHdfs fake;
  fake.SetFault([](const std::string&, const Request&) -> std::optional<Reply> {
    return Reply{200, "{\"FileStatus\":", {}, {}, {}, {}, false};
  });
  const Status status = FakeHdfs::Client()->Stat(fake.Uri("/a")).status();
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(fake.Uri("/a")));
}

TEST(NameNodeTest, UserProxyUserAndTokenAreSent) {
  FakeHdfs fake;
  fake.Put("/a", "x");
  Options options = FakeHdfs::Quick();
  options.proxy_user = "alice";
  ASSERT_TRUE(FakeHdfs::Client({}, options)->Stat(fake.Uri("/a")).ok());
  EXPECT_EQ(fake.Count("user.name=tester&doas=alice"), 1);
  options.delegation_token = "tok/en";
  ASSERT_TRUE(FakeHdfs::Client({}, options)->Stat(fake.Uri("/a")).ok());
  EXPECT_EQ(fake.Count("delegation=tok%2Fen"), 1);
  EXPECT_EQ(fake.Count("user.name="), 1);  // a token says who we are
}

TEST(NameNodeTest, ARenewedTokenFileIsReadAgain) {
  const std::string path = ::testing::TempDir() + "arc-token-" + std::to_string(::getpid());
  const auto write = [&](char mark) {  // Hadoop's Writable form, one token
    const std::string id(3, mark);
    std::ofstream(path, std::ios::binary) << std::string("HDTS\0\1\1a\3", 9) << id
                                          << std::string("\1p\25HDFS_DELEGATION_TOKEN\1s\0", 27);
  };
  write('o');
  FakeHdfs fake;
  fake.Put("/a", "x");
  const std::string fresh = [&] {
    write('n');
    return *LoadToken(path, "s");
  }();
  write('o');
  fake.SetFault([&](const std::string&, const Request& r) -> std::optional<Reply> {
    if (r.Get("delegation") == fresh) return std::nullopt;
    return Exception(403, "InvalidToken", "token (expired) can't be found in cache");
  });
  Options options = FakeHdfs::Quick();
  options.token_file = path;
  const auto sut = FakeHdfs::Client({}, options);
  const Status expired = sut->Stat(fake.Uri("/a")).status();
  EXPECT_EQ(expired.code(), Code::kUnauthenticated);
  EXPECT_THAT(std::string(expired.message()), HasSubstr("expired"));
  write('n');
  EXPECT_TRUE(sut->Stat(fake.Uri("/a")).ok());
  std::remove(path.c_str());
}

TEST(NameNodeTest, RedirectsToStrangersAreRefused) {
  FakeHdfs fake;
  fake.Put("/a", "x");
  fake.SetFault([](const std::string& server, const Request& r) -> std::optional<Reply> {
    if (server != "nn0" || r.Get("op") != "OPEN") return std::nullopt;
    return Json({{"Location", "http://evil.example.com:80/webhdfs/v1/a?op=OPEN"}});
  });
  const Status json = FakeHdfs::Client()->ReadAll(fake.Uri("/a"), 100).status();
  EXPECT_EQ(json.code(), Code::kPermissionDenied);
  EXPECT_THAT(std::string(json.message()), HasSubstr("/a at offset 0"));
  EXPECT_THAT(std::string(json.message()), HasSubstr("evil.example.com:80 is a stranger"));
  fake.SetFault([](const std::string& server, const Request& r) -> std::optional<Reply> {
    if (server != "nn0" || r.Get("op") != "OPEN") return std::nullopt;
    return Reply{307,  "", {{"Location", "http://evil.example.com:80/webhdfs/v1/a?op=OPEN"}},
                 {},   {}, {},
                 false};
  });
  EXPECT_EQ(FakeHdfs::Client()->ReadAll(fake.Uri("/a"), 100).status().code(),
            Code::kPermissionDenied);
}

TEST(NameNodeTest, ARedirectWhereNoneBelongsIsRefused) {
  FakeHdfs fake;
  fake.SetFault([](const std::string&, const Request&) -> std::optional<Reply> {
    return Reply{307,  "", {{"Location", "http://127.0.0.1:1/webhdfs/v1/a?op=GETFILESTATUS"}},
                 {},   {}, {},
                 false};
  });
  EXPECT_EQ(FakeHdfs::Client()->Stat(fake.Uri("/a")).status().code(), Code::kPermissionDenied);
}

}  // namespace
}  // namespace arcflow::hdfs
