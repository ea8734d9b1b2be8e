// SPDX-License-Identifier: Apache-2.0
// One transfer: connections kept, bodies bounded and whole, stalls and cancellation.
#include "arcflow/hdfs/http.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include "arcflow/hdfs/fake_hdfs_testing.h"

namespace arcflow::hdfs {
namespace {

using ::testing::HasSubstr;
using testing::HttpServer;
using testing::Reply;
using testing::Request;

HttpRequest To(const HttpServer& server, const std::string& path = "/x") {
  HttpRequest request;
  request.url = *ParseHttpUrl("http://" + server.authority() + path);
  return request;
}
std::unique_ptr<HttpClient> Client(Options options = testing::FakeHdfs::Quick()) {
  static std::vector<std::unique_ptr<Options>> kept;
  return std::move(HttpClient::Make(options)).value();
}

TEST(HttpTest, ConnectionsAreKept) {
  HttpServer server([](const Request&) {
    return Reply{200, "hello", {{"X", "y"}}, {}, {}, {}, false};
  });
  const auto sut = Client();
  for (int i = 0; i < 5; ++i) {
    const auto response = sut->Perform(To(server));
    ASSERT_TRUE(response.ok()) << response.status().ToString();
    EXPECT_EQ(response->body, "hello");
    EXPECT_EQ(response->content_length, 5u);
  }
  EXPECT_EQ(server.connections(), 1);
}

TEST(HttpTest, RedirectsAreReportedNotFollowed) {
  HttpServer server([](const Request&) {
    return Reply{307, "", {{"Location", "http://elsewhere/"}}, {}, {}, {}, false};
  });
  const auto response = Client()->Perform(To(server));
  ASSERT_TRUE(response.ok());
  EXPECT_EQ(response->status, 307);
  EXPECT_EQ(response->location, "http://elsewhere/");
}

TEST(HttpTest, BodiesArePut) {
  std::string got;
  HttpServer server([&](const Request& r) {
    got = r.method + " " + r.body;
    return Reply{201, "", {}, {}, {}, {}, false};
  });
  const auto sut = Client();
  for (const bool known : {true, false}) {
    HttpRequest request = To(server);
    request.method = "PUT";
    int left = 3;
    request.source = [&](std::span<char> out) -> Result<std::size_t> {
      if (left == 0) return std::size_t{0};
      out[0] = static_cast<char>('a' + --left);
      return std::size_t{1};
    };
    if (known) request.source_bytes = 3;
    const auto response = sut->Perform(request);
    ASSERT_TRUE(response.ok()) << response.status().ToString();
    EXPECT_EQ(response->status, 201);
    EXPECT_EQ(got, "PUT cba");
  }
}

TEST(HttpTest, ABodyThatEndsEarlyIsDataLoss) {
  HttpServer server([](const Request&) { return Reply{200, "half", {}, 8, 4, {}, false}; });
  EXPECT_EQ(Client()->Perform(To(server)).status().code(), Code::kDataLoss);
}

TEST(HttpTest, BodiesAreBounded) {
  HttpServer server(
      [](const Request&) { return Reply{200, std::string(100'000, 'x'), {}, {}, {}, {}, false}; });
  HttpRequest request = To(server);
  request.max_body_bytes = 50'000;
  EXPECT_EQ(Client()->Perform(request).status().code(), Code::kResourceExhausted);
}

TEST(HttpTest, ErrorPagesAreCutNotRefused) {
  HttpServer server(
      [](const Request&) { return Reply{500, std::string(1 << 20, 'x'), {}, {}, {}, {}, false}; });
  const auto response = Client()->Perform(To(server));
  ASSERT_TRUE(response.ok()) << response.status().ToString();
  EXPECT_EQ(response->status, 500);
  EXPECT_LT(response->body.size(), 100'000u);
}

TEST(HttpTest, StallsAreUnavailable) {
  HttpServer server([](const Request&) {
    return Reply{200, "late", {}, {}, {}, std::chrono::minutes(5), false};
  });
  Options options = testing::FakeHdfs::Quick();
  options.stall_timeout = std::chrono::seconds(1);
  const Status status = Client(options)->Perform(To(server)).status();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no byte moved"));
}

TEST(HttpTest, DeadlinesAndCancellationEndATransfer) {
  HttpServer server([](const Request&) {
    return Reply{200, "late", {}, {}, {}, std::chrono::minutes(5), false};
  });
  const auto sut = Client();
  HttpRequest request = To(server);
  request.deadline = Deadline::AfterSeconds(0.2);
  EXPECT_EQ(sut->Perform(request).status().code(), Code::kDeadlineExceeded);
  std::atomic<bool> cancelled{true};
  request.deadline = Deadline::Infinite();
  request.cancelled = &cancelled;
  EXPECT_EQ(sut->Perform(request).status().code(), Code::kCancelled);
}

TEST(HttpTest, NobodyThereIsUnavailable) {
  HttpServer server([](const Request&) { return Reply{}; });
  const HttpRequest request = To(server);
  server.Stop();
  EXPECT_EQ(Client()->Perform(request).status().code(), Code::kUnavailable);
}

TEST(HttpTest, ProxiesOfTheEnvironmentAreIgnored) {
  ::setenv("http_proxy", "http://127.0.0.1:1", 1);
  HttpServer server([](const Request&) { return Reply{200, "direct", {}, {}, {}, {}, false}; });
  const auto response = Client()->Perform(To(server));
  ::unsetenv("http_proxy");
  ASSERT_TRUE(response.ok()) << response.status().ToString();
  EXPECT_EQ(response->body, "direct");
}

TEST(HttpTest, KerberosWithoutATicketIsTheServers401) {
  HttpServer server([](const Request& r) {
    return Reply{r.headers.find("Authorization: Negotiate") == std::string::npos ? 401 : 200,
                 "",
                 {{"WWW-Authenticate", "Negotiate"}},
                 {},
                 {},
                 {},
                 false};
  });
  ::setenv("KRB5CCNAME", "FILE:/nonexistent", 1);
  Options options = testing::FakeHdfs::Quick();
  options.kerberos = true;
  HttpRequest request = To(server);
  request.may_negotiate = true;
  const auto response = Client(options)->Perform(request);
  ::unsetenv("KRB5CCNAME");
  ASSERT_TRUE(response.ok()) << response.status().ToString();
  EXPECT_EQ(response->status, 401);
  EXPECT_EQ(response->authenticate, "Negotiate");
}

}  // namespace
}  // namespace arcflow::hdfs
