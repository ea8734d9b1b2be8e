// SPDX-License-Identifier: Apache-2.0
// Writing: a file appears whole or, after a flush, as far as flushed; never half-written.
#include "arcflow/hdfs/file_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "arcflow/hdfs/fake_hdfs_testing.h"

namespace arcflow::hdfs {
namespace {

using ::testing::ElementsAre;
using testing::Exception;
using testing::FakeHdfs;
using ::testing::HasSubstr;
using testing::Json;
using testing::Reply;
using testing::Request;

Options SmallBuffer() {
  Options o = FakeHdfs::Quick();
  o.write_buffer_bytes = 10'000;
  return o;
}

class FileWriterTest : public ::testing::Test {
 protected:
  std::unique_ptr<FileWriter> Create(const std::string& path = "/d/a") {
    return std::move(client->Create(fake.Uri(path))).value();
  }
  FakeHdfs fake;
  std::unique_ptr<FileSystem> client = FakeHdfs::Client({}, SmallBuffer());
};

TEST_F(FileWriterTest, ASmallFileIsOneRequestAndARename) {
  auto sut = Create();
  for (int i = 0; i < 300; ++i) ASSERT_TRUE(sut->Append("abc").ok());
  EXPECT_EQ(sut->position(), 900u);
  EXPECT_TRUE(fake.Names().empty());
  ASSERT_TRUE(sut->Close().ok());
  EXPECT_EQ(fake.Content("/d/a")->size(), 900u);
  EXPECT_THAT(fake.Names(), ElementsAre("/d", "/d/a"));
  EXPECT_EQ(fake.Count("dn"), 1);
}

TEST_F(FileWriterTest, ALargeFileIsStreamedBesideItsName) {
  auto sut = Create();
  std::string all;
  for (int i = 0; i < 100; ++i) {
    const std::string piece(1 + static_cast<std::size_t>(i) * 37, static_cast<char>('a' + i % 26));
    all += piece;
    ASSERT_TRUE(sut->Append(piece).ok());
  }
  EXPECT_EQ(sut->position(), all.size());
  EXPECT_EQ(fake.Content("/d/a"), std::nullopt);
  ASSERT_TRUE(sut->Close().ok());
  EXPECT_EQ(fake.Content("/d/a"), all);
  EXPECT_THAT(fake.Names(), ElementsAre("/d", "/d/a"));
}

TEST_F(FileWriterTest, ClosingTwiceIsClosingOnce) {
  auto sut = Create();
  ASSERT_TRUE(sut->Append("x").ok());
  ASSERT_TRUE(sut->Close().ok());
  const std::size_t requests = fake.Log().size();
  EXPECT_TRUE(sut->Close().ok());
  EXPECT_TRUE(sut->Flush().ok());
  EXPECT_EQ(sut->Append("y").code(), Code::kFailedPrecondition);
  sut.reset();
  EXPECT_EQ(fake.Log().size(), requests);
}

TEST_F(FileWriterTest, WhatStoodThereIsReplacedInOneStep) {
  fake.Put("/d/a", "old");
  auto sut = Create();
  ASSERT_TRUE(sut->Append(std::string(50'000, 'n')).ok());
  EXPECT_EQ(fake.Content("/d/a"), "old");
  ASSERT_TRUE(sut->Close().ok());
  EXPECT_EQ(fake.Content("/d/a")->size(), 50'000u);
}

TEST_F(FileWriterTest, AnEmptyFile) {
  ASSERT_TRUE(Create()->Close().ok());
  EXPECT_EQ(fake.Content("/d/a"), "");
}

TEST_F(FileWriterTest, FlushShowsWhatWasWritten) {
  auto sut = Create();
  ASSERT_TRUE(sut->Flush().ok());
  EXPECT_TRUE(fake.Names().empty());  // nothing to show yet
  ASSERT_TRUE(sut->Append("one").ok());
  ASSERT_TRUE(sut->Flush().ok());
  EXPECT_EQ(fake.Content("/d/a"), "one");
  ASSERT_TRUE(sut->Flush().ok());
  ASSERT_TRUE(sut->Append(std::string(30'000, 'x')).ok());
  ASSERT_TRUE(sut->Flush().ok());
  EXPECT_EQ(fake.Content("/d/a")->size(), 30'003u);
  ASSERT_TRUE(sut->Append("end").ok());
  ASSERT_TRUE(sut->Close().ok());
  EXPECT_EQ(fake.Content("/d/a")->size(), 30'006u);
  EXPECT_EQ(fake.Count("dn"), 3);
  EXPECT_THAT(fake.Names(), ElementsAre("/d", "/d/a"));
}

TEST_F(FileWriterTest, AppendsToWhatIsThere) {
  fake.Put("/d/a", "old");
  auto sut = std::move(client->OpenForAppend(fake.Uri("/d/a"))).value();
  EXPECT_EQ(sut->position(), 3u);
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(sut->Append("+").ok());
  ASSERT_TRUE(sut->Close().ok());
  EXPECT_EQ(fake.Content("/d/a"), "old" + std::string(1000, '+'));
  EXPECT_EQ(fake.Count("POST APPEND"), 2);  // NameNode, DataNode: small appends are collected
}

TEST_F(FileWriterTest, AppendingToNothingCreates) {
  auto sut = std::move(client->OpenForAppend(fake.Uri("/d/a"))).value();
  ASSERT_TRUE(sut->Append("x").ok());
  ASSERT_TRUE(sut->Close().ok());
  EXPECT_EQ(fake.Content("/d/a"), "x");
}

TEST_F(FileWriterTest, DestroyingClosesAndDiscardingDeletes) {
  ASSERT_TRUE(Create("/d/kept")->Append("x").ok());
  EXPECT_EQ(fake.Content("/d/kept"), "x");
  auto sut = Create("/d/dropped");
  ASSERT_TRUE(sut->Append(std::string(50'000, 'x')).ok());
  sut->Discard();
  sut.reset();
  EXPECT_THAT(fake.Names(), ElementsAre("/d", "/d/kept"));
}

TEST_F(FileWriterTest, ADataNodeThatDiesMidStreamLeavesNothing) {
  fake.SetFault([](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    Reply dead;
    dead.hang_up = true;
    return dead;
  });
  auto sut = Create();
  Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) status = sut->Append(std::string(5'000, 'x'));
  if (status.ok()) status = sut->Close();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("writing /d/a at offset "));
  EXPECT_EQ(sut->Close().code(), Code::kUnavailable);  // the same again
  EXPECT_EQ(sut->Append("y").code(), Code::kUnavailable);
  EXPECT_EQ(fake.Content("/d/a"), std::nullopt);
  EXPECT_EQ(fake.Count("DELETE /webhdfs/v1/d/.a.arcflow-"), 1);
}

TEST_F(FileWriterTest, AStreamBeginsAtAnotherDataNodeWhenOneIsDead) {
  fake.dn[0]->Stop();
  auto sut = Create();
  Status status;
  for (int i = 0; i < 10 && status.ok(); ++i) status = sut->Append(std::string(5'000, 'x'));
  if (status.ok()) status = sut->Close();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(fake.Content("/d/a")->size(), 50'000u);
}

TEST_F(FileWriterTest, ASmallFileSurvivesADyingDataNode) {
  std::atomic<int> calls{0};
  fake.SetFault([&](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server[0] != 'd' || calls++ > 1) return std::nullopt;
    Reply dead;
    dead.hang_up = true;
    return dead;
  });
  auto sut = Create();
  ASSERT_TRUE(sut->Append("x").ok());
  const Status status = sut->Close();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(fake.Content("/d/a"), "x");
}

TEST_F(FileWriterTest, AnAppendWhoseAnswerIsLostIsNotDoneTwice) {
  fake.Put("/d/a", "old");
  std::atomic<int> calls{0};
  fake.SetFault([&](const std::string& server, const Request& r) -> std::optional<Reply> {
    if (server[0] != 'd' || calls++ > 0) return std::nullopt;
    fake.Put("/d/a", "old" + r.body);  // done, but nobody hears of it
    Reply dead;
    dead.hang_up = true;
    return dead;
  });
  auto sut = std::move(client->OpenForAppend(fake.Uri("/d/a"))).value();
  ASSERT_TRUE(sut->Append("+new").ok());
  const Status status = sut->Close();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(fake.Content("/d/a"), "old+new");
}

TEST_F(FileWriterTest, QuotaIsAnErrorWithPathOffsetAndAdvice) {
  fake.SetFault([](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    return Exception(403, "DSQuotaExceededException", "The DiskSpace quota of /d is exceeded");
  });
  auto sut = Create();
  ASSERT_TRUE(sut->Append("x").ok());
  const Status status = sut->Close();
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("writing /d/a at offset 0"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("setSpaceQuota"));
  EXPECT_EQ(fake.Content("/d/a"), std::nullopt);
}

TEST_F(FileWriterTest, AnAnswerBeforeTheEndOfTheBodyIsNoSuccess) {
  fake.SetFault([](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    return Reply{403, "early", {}, {}, {}, {}, false};
  });
  auto sut = Create();
  Status status;
  for (int i = 0; i < 200 && status.ok(); ++i) status = sut->Append(std::string(5'000, 'x'));
  if (status.ok()) status = sut->Close();
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(fake.Content("/d/a"), std::nullopt);
}

TEST_F(FileWriterTest, HttpFsWithoutRenameOptionsStillReplaces) {
  fake.Put("/d/a", "old");
  fake.SetFault([&](const std::string& server, const Request& r) -> std::optional<Reply> {
    if (server != "nn0" || r.Get("op") != "RENAME" || !fake.Content("/d/a")) return std::nullopt;
    return Json({{"boolean", false}});  // knows no options: the target exists
  });
  auto sut = Create();
  ASSERT_TRUE(sut->Append("new").ok());
  const Status status = sut->Close();
  EXPECT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(fake.Content("/d/a"), "new");
}

}  // namespace
}  // namespace arcflow::hdfs
