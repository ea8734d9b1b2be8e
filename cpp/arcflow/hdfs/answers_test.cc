// SPDX-License-Identifier: Apache-2.0
// Answers: good ones, malformed ones, and what exceptions become.
#include "arcflow/hdfs/answers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace arcflow::hdfs {
namespace {

using ::testing::HasSubstr;

std::string Remote(const std::string& exception, const std::string& message) {
  return R"({"RemoteException":{"exception":")" + exception + R"(","message":")" + message +
         R"("}})";
}

TEST(AnswersTest, FileStatus) {
  const auto status = ParseFileStatus(
      R"({"FileStatus":{"pathSuffix":"","type":"FILE","length":5000000000,"blockSize":134217728,"modificationTime":1700000000123,"owner":"o","permission":"644"}})");
  ASSERT_TRUE(status.ok()) << status.status().ToString();
  EXPECT_EQ(status->length, 5'000'000'000u);
  EXPECT_EQ(status->modified_ms, 1700000000123);
  EXPECT_FALSE(status->is_directory);
}

TEST(AnswersTest, MalformedAnswersAreDataLoss) {
  for (const char* body :
       {"", "nonsense", "[]", "{}", R"({"FileStatus":[]})", R"({"FileStatus":{"type":"FILE"}})",
        R"({"FileStatus":{"type":"FILE","length":-1}})",
        R"({"FileStatus":{"type":"FILE","length":"5"}})",
        R"({"FileStatus":{"type":"FILE","length":1e30}})",
        R"({"FileStatus":{"type":"PIPE","length":1}})",
        R"({"FileStatus":{"type":"FILE","length":18446744073709551615}})",
        R"({"FileStatus":{"pathSuffix":"../x","type":"FILE","length":1}})"}) {
    EXPECT_EQ(ParseFileStatus(body).status().code(), Code::kDataLoss) << body;
  }
  EXPECT_EQ(ParseFileStatuses(
                R"({"FileStatuses":{"FileStatus":[{"pathSuffix":"..","type":"FILE","length":1}]}})")
                .status()
                .code(),
            Code::kDataLoss);
  EXPECT_EQ(ParseFileStatuses(R"({"FileStatuses":null})").status().code(), Code::kDataLoss);
  EXPECT_EQ(ParseBoolean(R"({"boolean":1})").status().code(), Code::kDataLoss);
  EXPECT_EQ(ParseToken(R"({"Token":{"urlString":7}})").status().code(), Code::kDataLoss);
}

TEST(AnswersTest, ExceptionsBecomeCodes) {
  EXPECT_EQ(ErrorOf(404, Remote("FileNotFoundException", "f"), "").code(), Code::kNotFound);
  EXPECT_EQ(ErrorOf(403, Remote("AccessControlException", "p"), "").code(),
            Code::kPermissionDenied);
  EXPECT_EQ(ErrorOf(403, Remote("StandbyException", "s"), "").code(), Code::kUnavailable);
  EXPECT_EQ(ErrorOf(403, Remote("DSQuotaExceededException", "q"), "").code(),
            Code::kResourceExhausted);
  EXPECT_EQ(ErrorOf(403, Remote("SafeModeException", "q"), "").code(), Code::kUnavailable);
  EXPECT_EQ(ErrorOf(403, Remote("SecretManager$InvalidToken", "t"), "").code(),
            Code::kUnauthenticated);
  EXPECT_EQ(ErrorOf(403,
                    Remote("IOException",
                           "File /a could only be written to 0 of the 1 minReplication nodes"),
                    "")
                .code(),
            Code::kResourceExhausted);
  EXPECT_EQ(ErrorOf(403, Remote("IOException", "No active nodes contain this block"), "").code(),
            Code::kUnavailable);
  EXPECT_EQ(ErrorOf(403, Remote("IOException", "x"), "").code(), Code::kUnknown);
  EXPECT_EQ(ErrorOf(403, Remote("Odd", "x"), "").code(), Code::kPermissionDenied);
  EXPECT_EQ(ErrorOf(500, "<html>", "").code(), Code::kUnavailable);
  EXPECT_EQ(ErrorOf(418, "", "").code(), Code::kUnknown);
}

TEST(AnswersTest, MissingTicketsSayWhatToDo) {
  const Status status = ErrorOf(401, "<html>", "Negotiate");
  EXPECT_EQ(status.code(), Code::kUnauthenticated);
  EXPECT_THAT(std::string(status.message()), HasSubstr("kinit"));
}

TEST(AnswersTest, StandbyIsRecognised) {
  EXPECT_TRUE(IsStandby(Remote("StandbyException", "Operation category READ is not supported")));
  EXPECT_TRUE(IsStandby(Remote("RemoteException", "org.apache.hadoop.ipc.StandbyException: x")));
  EXPECT_FALSE(IsStandby(Remote("AccessControlException", "x")));
  EXPECT_FALSE(IsStandby("StandbyException"));
}

TEST(AnswersTest, MessagesShowNoControlCharacters) {
  EXPECT_EQ(std::string(ErrorOf(500, std::string("a\x1b[31m\nb"), "").message()).find('\x1b'),
            std::string::npos);
}

std::string Located(const std::string& block, const std::string& more = "") {
  return R"({"LocatedBlocks": {"isUnderConstruction": false, "locatedBlocks": [{"isCorrupt": false,
    "startOffset": 0, "locations": [{"ipAddr": "10.0.0.1", "hostName": "dn", "xferPort": 9866}],
    "blockToken": {"urlString": "AAAAAA"}, "block": )" +
         block + "}]" + more + "}}";
}
constexpr char kBlock[] =
    R"({"blockPoolId": "BP", "blockId": 7, "generationStamp": 1001, "numBytes": 10})";

TEST(AnswersTest, BlocksAreRead) {
  const auto blocks = ParseBlockLocations(Located(kBlock));
  ASSERT_TRUE(blocks.ok()) << blocks.status().message();
  ASSERT_EQ(blocks->size(), 1u);
  const LocatedBlock& one = blocks->front();
  EXPECT_EQ(one.id, 7u);
  EXPECT_EQ(one.length, 10u);
  EXPECT_EQ(one.pool, "BP");
  ASSERT_EQ(one.places.size(), 1u);
  EXPECT_EQ(one.places[0].ip, "10.0.0.1");
  EXPECT_EQ(one.places[0].port, 9866);
}

TEST(AnswersTest, StripedBlocksAreLeftOut) {
  const auto blocks = ParseBlockLocations(Located(
      R"({"blockPoolId": "BP", "blockId": -9223372036854775792, "generationStamp": 1, "numBytes": 1})"));
  ASSERT_TRUE(blocks.ok()) << blocks.status().message();
  EXPECT_TRUE(blocks->empty());
}

TEST(AnswersTest, MalformedBlocksAreDataLossWithoutTheToken) {
  for (const std::string& body :
       {std::string("[]"), std::string("{}"), std::string(R"({"LocatedBlocks": {}})"),
        Located("{}"), Located("7"),
        Located(R"({"blockPoolId": "", "blockId": 7, "generationStamp": 1, "numBytes": 10})"),
        Located(R"({"blockPoolId": "BP", "blockId": "7", "generationStamp": 1, "numBytes": 10})"),
        Located(R"({"blockPoolId": "BP", "blockId": 7, "generationStamp": 1, "numBytes": -1})")}) {
    const auto blocks = ParseBlockLocations(body);
    ASSERT_FALSE(blocks.ok()) << body;
    EXPECT_EQ(blocks.status().code(), Code::kDataLoss);
    EXPECT_EQ(std::string(blocks.status().message()).find("AAAAAA"), std::string::npos);
  }
}

}  // namespace
}  // namespace arcflow::hdfs
