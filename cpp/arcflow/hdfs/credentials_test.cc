// SPDX-License-Identifier: Apache-2.0
// Token files of both versions, made by Hadoop's own tools (testdata/MakeTokenFiles.java).
#include "arcflow/hdfs/credentials.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

namespace arcflow::hdfs {
namespace {

std::string Golden(const std::string& name) {
  std::ifstream file(std::string(ARC_TESTDATA "/token_file_fuzz/") + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void ExpectTokens(const std::string& bytes) {
  const auto tokens = ParseTokenFile(bytes);
  ASSERT_TRUE(tokens.ok()) << tokens.status().ToString();
  ASSERT_EQ(tokens->size(), 2u);
  const DelegationToken* ha = FindToken(*tokens, "ns1");
  ASSERT_NE(ha, nullptr);
  EXPECT_EQ(ha->service, "ha-hdfs:ns1");
  EXPECT_EQ(ha->identifier, std::string(200, 'i'));
  EXPECT_EQ(ha->password, "secret");
  EXPECT_EQ(FindToken(*tokens, "elsewhere:8020"), ha);  // the only one of HDFS
}

TEST(CredentialsTest, WritableFilesAreRead) { ExpectTokens(Golden("writable.bin")); }
TEST(CredentialsTest, ProtocolBufferFilesAreRead) { ExpectTokens(Golden("protobuf.bin")); }

TEST(CredentialsTest, UrlFormIsHadoops) {
  const auto tokens = ParseTokenFile(Golden("writable.bin"));
  ASSERT_TRUE(tokens.ok());
  std::string url = Golden("url_string.txt");
  while (!url.empty() && url.back() == '\n') url.pop_back();
  EXPECT_EQ(FindToken(*tokens, "ns1")->ToUrlString(), url);
}

TEST(CredentialsTest, EveryTruncationIsRefused) {
  for (const char* name : {"writable.bin", "protobuf.bin"}) {
    const std::string whole = Golden(name);
    ASSERT_FALSE(whole.empty());
    // The writable form ends with a count of secrets, which are not read.
    for (std::size_t n = 0; n + 2 < whole.size(); ++n) {
      EXPECT_FALSE(ParseTokenFile(whole.substr(0, n)).ok()) << name << " " << n;
    }
  }
}

TEST(CredentialsTest, SeveralTokensOfOtherServicesAreNoAnswer) {
  std::vector<DelegationToken> tokens(2);
  tokens[0].kind = tokens[1].kind = "HDFS_DELEGATION_TOKEN";
  tokens[0].service = "a:1";
  tokens[1].service = "b:1";
  EXPECT_EQ(FindToken(tokens, "c:1"), nullptr);
  EXPECT_EQ(FindToken(tokens, "b:1"), &tokens[1]);
  EXPECT_EQ(FindToken({}, "b:1"), nullptr);
}

}  // namespace
}  // namespace arcflow::hdfs
