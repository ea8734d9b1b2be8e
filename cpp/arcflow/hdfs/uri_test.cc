// SPDX-License-Identifier: Apache-2.0
// Names and addresses: what is accepted, what is refused, and how it is escaped.
#include "arcflow/hdfs/uri.h"

#include <gtest/gtest.h>

namespace arcflow::hdfs {
namespace {

TEST(UriTest, KeepsAuthorityAndCleansPath) {
  const auto uri = ParseUri("hdfs://nn.example.org:8020//a/./b/../c/");
  ASSERT_TRUE(uri.ok()) << uri.status().ToString();
  EXPECT_EQ(uri->ToString(), "hdfs://nn.example.org:8020/a/c");
  EXPECT_EQ(ParseUri("hdfs:///x")->ToString(), "hdfs:///x");
  EXPECT_EQ(ParseUri("viewfs://c")->path, "/");
}

TEST(UriTest, RefusesWhatIsNoName) {
  for (const char* text :
       {"/a/b", "hdfs:/a", "://h/p", "9x://h/p", "hdfs://me@h/p", "hdfs://h/a\nb"}) {
    EXPECT_EQ(ParseUri(text).status().code(), Code::kInvalidArgument) << text;
  }
}

TEST(UriTest, CleanPathStaysBelowTheTop) {
  EXPECT_EQ(CleanPath("/../../etc"), "/etc");
  EXPECT_EQ(CleanPath(""), "/");
  EXPECT_EQ(CleanPath("a/b"), "/a/b");
}

TEST(UriTest, ParentNameAndWithin) {
  EXPECT_EQ(ParentPath("/a/b"), "/a");
  EXPECT_EQ(ParentPath("/a"), "/");
  EXPECT_EQ(BaseName("/a/b"), "b");
  EXPECT_TRUE(IsWithin("/a/b", "/a"));
  EXPECT_TRUE(IsWithin("/a", "/a"));
  EXPECT_FALSE(IsWithin("/ab", "/a"));
  EXPECT_TRUE(IsWithin("/ab", "/"));
}

TEST(HttpUrlTest, ParsesAndPrints) {
  const auto url = ParseHttpUrl("HTTP://[::1]:9864/webhdfs/v1/a%20b?op=OPEN&offset=0#x");
  ASSERT_TRUE(url.ok()) << url.status().ToString();
  EXPECT_EQ(url->host, "::1");
  EXPECT_EQ(url->ToString(), "http://[::1]:9864/webhdfs/v1/a%20b?op=OPEN&offset=0");
  EXPECT_EQ(ParseHttpUrl("https://h")->port, 443);
}

TEST(HttpUrlTest, RefusesWhatIsNoAddress) {
  for (const char* text :
       {"ftp://h/", "http:///p", "http://h:0/", "http://h:70000/", "http://h:1x/", "http://u@h/",
        "http://h/a b", "//h/", "http://h/\r\nX: y"}) {
    EXPECT_EQ(ParseHttpUrl(text).status().code(), Code::kInvalidArgument) << text;
  }
}

TEST(HttpUrlTest, QueryValuesAreFoundAndReplaced) {
  EXPECT_EQ(QueryValue("op=OPEN&Offset=7&path=%2Fa%26b", "offset"), "7");
  EXPECT_EQ(QueryValue("op=OPEN&path=%2Fa%26b", "path"), "/a&b");
  EXPECT_EQ(QueryValue("xoffset=7", "offset"), std::nullopt);
  EXPECT_EQ(WithQueryValue("op=OPEN&offset=7&x=1", "offset", "9"), "op=OPEN&offset=9&x=1");
  EXPECT_EQ(WithQueryValue("op=OPEN", "length", "1&2"), "op=OPEN&length=1%262");
  EXPECT_EQ(WithQueryValue("", "a", "b"), "a=b");
}

TEST(HttpUrlTest, EscapingIsUndone) {
  const std::string odd = "/größe &?#%20+\x01";
  EXPECT_EQ(Unescape(EscapePath(odd)), odd);
  EXPECT_EQ(EscapePath("/a b%"), "/a%20b%25");
  EXPECT_EQ(EscapeQuery("/"), "%2F");
  EXPECT_EQ(Unescape("%zz%4"), "%zz%4");
}

}  // namespace
}  // namespace arcflow::hdfs
