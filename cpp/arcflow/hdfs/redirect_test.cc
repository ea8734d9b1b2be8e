// SPDX-License-Identifier: Apache-2.0
// Redirects: DataNodes are followed, strangers are not.
#include "arcflow/hdfs/redirect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace arcflow::hdfs {
namespace {

using ::testing::HasSubstr;

Status Check(const std::string& from, const std::string& to,
             const std::vector<std::string>& allowed = {}) {
  return CheckRedirect(*ParseHttpUrl(from), to, allowed).status();
}
const std::string kFrom = "http://nn1.cl.example.org:9870/webhdfs/v1/a%20b?op=OPEN&noredirect=true";

TEST(RedirectTest, DataNodesOfTheSameDomainAreFollowed) {
  EXPECT_TRUE(
      Check(kFrom, "http://DN7.cl.example.org:9864/webhdfs/v1/a%20b?op=open&offset=0").ok());
  EXPECT_TRUE(Check(kFrom, "https://dn7.cl.example.org:9865/webhdfs/v1/a%20b?op=OPEN").ok());
  EXPECT_TRUE(Check("http://10.0.0.1:9870/webhdfs/v1/a?op=OPEN",
                    "http://10.0.0.9:9864/webhdfs/v1/a?op=OPEN")
                  .ok());
  EXPECT_TRUE(
      Check("http://nn:9870/webhdfs/v1/a?op=OPEN", "http://dn1:9864/webhdfs/v1/a?op=OPEN").ok());
  EXPECT_TRUE(Check("http://localhost:9870/webhdfs/v1/a?op=OPEN",
                    "http://127.0.0.2:9864/webhdfs/v1/a?op=OPEN")
                  .ok());
}

TEST(RedirectTest, StrangersAreRefusedWithTheSetting) {
  const Status status = Check(kFrom, "http://evil.example.com/webhdfs/v1/a%20b?op=OPEN");
  EXPECT_EQ(status.code(), Code::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ARCFLOW_HDFS_ALLOWED_HOSTS"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("evil.example.com:80"));
  EXPECT_FALSE(Check(kFrom, "http://10.0.0.1/webhdfs/v1/a%20b?op=OPEN").ok());
  EXPECT_FALSE(Check(kFrom, "http://xcl.example.org/webhdfs/v1/a%20b?op=OPEN").ok());
  EXPECT_FALSE(Check(kFrom, "http://127.0.0.1/webhdfs/v1/a%20b?op=OPEN").ok());
  EXPECT_FALSE(
      Check("http://example.org:9870/webhdfs/v1/a?op=OPEN", "http://evil.org/webhdfs/v1/a?op=OPEN")
          .ok());
  EXPECT_FALSE(Check("http://localhost:9870/webhdfs/v1/a?op=OPEN",
                     "http://127.evil.org/webhdfs/v1/a?op=OPEN")
                   .ok());
}

TEST(RedirectTest, NamedHostsAndDomainsAreFollowed) {
  const std::string to = "http://dn.other.net:1/webhdfs/v1/a%20b?op=OPEN";
  EXPECT_TRUE(Check(kFrom, to, {"DN.other.net"}).ok());
  EXPECT_TRUE(Check(kFrom, to, {".other.net"}).ok());
  EXPECT_TRUE(Check(kFrom, to, {"*"}).ok());
  EXPECT_FALSE(Check(kFrom, to, {"other.net"}).ok());
}

TEST(RedirectTest, NeverFromHttpsToHttp) {
  const Status status = Check("https://nn1.cl.example.org:9871/webhdfs/v1/a?op=OPEN",
                              "http://dn1.cl.example.org:9864/webhdfs/v1/a?op=OPEN", {"*"});
  EXPECT_THAT(std::string(status.message()), HasSubstr("https"));
  EXPECT_EQ(status.code(), Code::kPermissionDenied);
}

TEST(RedirectTest, OtherPathsOperationsAndSchemesAreRefused) {
  for (const char* to : {"http://dn1.cl.example.org/login?op=OPEN",
                         "http://dn1.cl.example.org/webhdfs/v1/other?op=OPEN",
                         "http://dn1.cl.example.org/webhdfs/v1/a%20b?op=DELETE",
                         "http://dn1.cl.example.org/webhdfs/v1/a%20b", "file:///etc/passwd", "",
                         "gopher://dn1.cl.example.org/webhdfs/v1/a%20b?op=OPEN"}) {
    EXPECT_EQ(Check(kFrom, to, {"*"}).code(), Code::kPermissionDenied) << to;
  }
}

}  // namespace
}  // namespace arcflow::hdfs
