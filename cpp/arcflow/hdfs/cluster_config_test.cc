// SPDX-License-Identifier: Apache-2.0
// Names to NameNodes: plain, HA, HTTPS, mount tables, and files of a folder.
#include "arcflow/hdfs/cluster_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace arcflow::hdfs {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ClusterConfig Config(const std::vector<std::pair<std::string, std::string>>& values) {
  Properties p;
  for (const auto& [name, value] : values) p.Set(name, value);
  return ClusterConfig(std::move(p));
}
std::string First(const ClusterConfig& config, const std::string& uri) {
  auto place = config.Resolve(*ParseUri(uri));
  if (!place.ok()) return place.status().ToString();
  return place->service.namenodes.at(0).ToString() + "|" + place->path;
}

TEST(ClusterConfigTest, PlainNames) {
  const ClusterConfig sut =
      Config({{"fs.defaultFS", "hdfs://nn:8020"}, {"dfs.namenode.http-address", "0.0.0.0:50070"}});
  EXPECT_EQ(First(sut, "hdfs://nn:8020/a"), "http://nn:50070|/a");
  EXPECT_EQ(First(sut, "hdfs:///a"), "http://nn:50070|/a");
  EXPECT_EQ(First(sut, "hdfs://other/a"), "http://other:9870|/a");  // not this configuration's
  EXPECT_EQ(First(sut, "webhdfs://x:1234/a"), "http://x:1234|/a");
  EXPECT_EQ(First(sut, "swebhdfs://x/a"), "https://x:9871|/a");
}

TEST(ClusterConfigTest, HttpsOnlyClusters) {
  const ClusterConfig sut = Config({{"fs.defaultFS", "hdfs://nn"},
                                    {"dfs.http.policy", "HTTPS_ONLY"},
                                    {"dfs.namenode.https-address", "tls:9871"}});
  EXPECT_EQ(First(sut, "hdfs://nn/a"), "https://tls:9871|/a");
}

TEST(ClusterConfigTest, HaPairs) {
  const ClusterConfig sut = Config({{"dfs.nameservices", "ns, other"},
                                    {"dfs.ha.namenodes.ns", "n1, n2"},
                                    {"dfs.namenode.http-address.ns.n1", "a:1"},
                                    {"dfs.namenode.rpc-address.ns.n2", "b:8020"}});
  const auto place = sut.Resolve(*ParseUri("hdfs://ns/x"));
  ASSERT_TRUE(place.ok()) << place.status().ToString();
  ASSERT_EQ(place->service.namenodes.size(), 2u);
  EXPECT_EQ(place->service.namenodes[0].ToString(), "http://a:1");
  EXPECT_EQ(place->service.namenodes[1].ToString(), "http://b:9870");
  EXPECT_EQ(place->service.name, "ns");
  EXPECT_THAT(First(sut, "hdfs://other/x"), HasSubstr("dfs.namenode.http-address.other"));
}

TEST(ClusterConfigTest, NamesWithoutAClusterSayWhatToSet) {
  EXPECT_THAT(First(Config({}), "hdfs:///a"), HasSubstr("HADOOP_CONF_DIR"));
  EXPECT_THAT(First(Config({{"fs.defaultFS", "file:///"}}), "hdfs:///a"),
              HasSubstr("fs.defaultFS"));
  EXPECT_THAT(First(Config({}), "s3://b/a"), HasSubstr("scheme"));
  EXPECT_THAT(First(Config({}), "hdfs://bad host/a"), HasSubstr("INVALID_ARGUMENT"));
}

TEST(ClusterConfigTest, MountTables) {
  const std::string t = "fs.viewfs.mounttable.cl.link.";
  const ClusterConfig sut = Config({{t + "/data", "hdfs://a/warehouse"},
                                    {t + "/data/hot", "hdfs://b/"},
                                    {t + "/home/u", "webhdfs://c:1/u"}});
  EXPECT_EQ(First(sut, "viewfs://cl/data/x/y"), "http://a:9870|/warehouse/x/y");
  EXPECT_EQ(First(sut, "viewfs://cl/data/hot/z"), "http://b:9870|/z");
  EXPECT_EQ(First(sut, "viewfs://cl/database"),
            "NOT_FOUND: viewfs://cl/database lies outside the mount table \"cl\"");
  const auto top = sut.Resolve(*ParseUri("viewfs://cl/"));
  ASSERT_TRUE(top.ok());
  EXPECT_TRUE(top->is_mount_folder);
  EXPECT_THAT(top->children, ElementsAre("data", "home"));
  EXPECT_THAT(First(sut, "viewfs://none/a"), HasSubstr("no mount table"));
}

TEST(ClusterConfigTest, MountTablesWithFallbackAndCircles) {
  const ClusterConfig sut = Config({{"fs.viewfs.mounttable.cl.linkFallback", "hdfs://f/base"},
                                    {"fs.viewfs.mounttable.cl.link./me", "viewfs://cl/me"}});
  EXPECT_EQ(First(sut, "viewfs://cl/a"), "http://f:9870|/base/a");
  EXPECT_THAT(First(sut, "viewfs://cl/me/a"), HasSubstr("circle"));
}

TEST(ClusterConfigTest, ReadsTheFilesOfAFolder) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("arc-hdfs-conf-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "core-site.xml")
      << "<configuration><property><name>fs.defaultFS</name><value>hdfs://nn</value></property></"
         "configuration>";
  EXPECT_EQ(First(*ClusterConfig::Load(folder), "hdfs:///a"), "http://nn:9870|/a");
  std::ofstream(folder / "hdfs-site.xml") << "<configuration><property>";
  const auto bad = ClusterConfig::Load(folder);
  EXPECT_EQ(bad.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(std::string(bad.status().message()), HasSubstr((folder / "hdfs-site.xml").string()));
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(ClusterConfig::Load(folder).ok());  // no files: empty
}

}  // namespace
}  // namespace arcflow::hdfs
