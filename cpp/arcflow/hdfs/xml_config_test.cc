// SPDX-License-Identifier: Apache-2.0
// Hadoop's XML: values, variables, final ones, and files that are refused.
#include "arcflow/hdfs/xml_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace arcflow::hdfs {
namespace {

using ::testing::HasSubstr;

std::string Xml(const std::string& inside) {
  return "<?xml version=\"1.0\"?><?xml-stylesheet type=\"text/xsl\" href=\"configuration.xsl\"?>"
         "<configuration>" +
         inside + "</configuration>";
}
std::string Property(const std::string& name, const std::string& value,
                     const std::string& more = "") {
  return "<property><name>" + name + "</name><value>" + value + "</value>" + more + "</property>";
}

TEST(PropertiesTest, ReadsNamesAndValues) {
  Properties sut;
  ASSERT_TRUE(sut.Add(Xml(Property(" a ", " 1 &amp; 2\n", "<description>d</description>") +
                          Property("b", "<![CDATA[<x>]]>")),
                      "f")
                  .ok());
  EXPECT_EQ(sut.Get("a"), "1 & 2");
  EXPECT_EQ(sut.Get("b"), "<x>");
  EXPECT_EQ(sut.Get("c"), std::nullopt);
}

TEST(PropertiesTest, LaterFilesWinUnlessFinal) {
  Properties sut;
  ASSERT_TRUE(
      sut.Add(Xml(Property("a", "1") + Property("b", "1", "<final>true</final>")), "f").ok());
  ASSERT_TRUE(sut.Add(Xml(Property("a", "2") + Property("b", "2")), "g").ok());
  EXPECT_EQ(sut.Get("a"), "2");
  EXPECT_EQ(sut.Get("b"), "1");
}

TEST(PropertiesTest, VariablesAreReplaced) {
  ::setenv("ARC_XML_TEST", "env", 1);
  Properties sut;
  sut.Set("host", "h");
  sut.Set("which", "host");
  sut.Set("a", "${host}:1/${${which}}/${unknown}/${env.ARC_XML_TEST}/${env.ARC_NONE:-d}");
  EXPECT_EQ(sut.Get("a"), "h:1/h/${unknown}/env/d");
  sut.Set("user", "${user.name}");
  EXPECT_NE(sut.Get("user"), "${user.name}");
  ::unsetenv("ARC_XML_TEST");
}

TEST(PropertiesTest, CirclesOfVariablesEnd) {
  Properties sut;
  sut.Set("a", "${b}${b}");
  sut.Set("b", "${a}${a}");
  EXPECT_LT(sut.Get("a")->size(), 200'000u);
}

TEST(PropertiesTest, Booleans) {
  Properties sut;
  sut.Set("t", " TRUE ");
  sut.Set("x", "yes");
  EXPECT_TRUE(sut.GetBool("t", false));
  EXPECT_TRUE(sut.GetBool("x", true));
  EXPECT_FALSE(sut.GetBool("none", false));
}

TEST(PropertiesTest, MalformedFilesNameLineAndColumnAndAddNothing) {
  Properties sut;
  const Status status = sut.Add("<configuration>\n" + Property("a", "1") + "\n<property></name>",
                                "/etc/core-site.xml");
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/etc/core-site.xml:3:"));
  EXPECT_EQ(sut.size(), 0u);
  EXPECT_FALSE(sut.Add("", "f").ok());
  EXPECT_FALSE(sut.Add("not xml", "f").ok());
  EXPECT_FALSE(sut.Add("<html></html>", "f").ok());
}

TEST(PropertiesTest, EntitiesAndIncludesAreRefused) {
  Properties sut;
  const Status doctype =
      sut.Add("<!DOCTYPE c [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><configuration>" +
                  Property("a", "&x;") + "</configuration>",
              "f");
  EXPECT_THAT(std::string(doctype.message()), HasSubstr("DOCTYPE"));
  const Status include = sut.Add(
      Xml("\n<xi:include xmlns:xi=\"http://www.w3.org/2001/XInclude\" href=\"/etc/passwd\"/>"),
      "f");
  EXPECT_THAT(std::string(include.message()), HasSubstr("f:2: xi:include"));
  EXPECT_EQ(sut.size(), 0u);
}

}  // namespace
}  // namespace arcflow::hdfs
