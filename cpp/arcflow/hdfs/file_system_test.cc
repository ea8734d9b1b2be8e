// SPDX-License-Identifier: Apache-2.0
// Operations on names.
#include "arcflow/hdfs/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "arcflow/hdfs/fake_hdfs_testing.h"
#include "arcflow/hdfs/glob.h"

namespace arcflow::hdfs {
namespace {

using ::testing::ElementsAre;
using testing::Exception;
using testing::FakeHdfs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Reply;
using testing::Request;

class FileSystemTest : public ::testing::Test {
 protected:
  std::vector<std::string> Glob(const std::string& pattern) {
    auto found = sut->Glob(fake.Uri(pattern));
    if (!found.ok()) return {found.status().ToString()};
    for (std::string& one : *found) one.erase(0, fake.Uri("").size());
    return *found;
  }
  FakeHdfs fake;
  std::unique_ptr<FileSystem> sut = FakeHdfs::Client();
};

TEST_F(FileSystemTest, StatListAndDelete) {
  fake.Put("/d/a b", "12345");
  fake.Put("/d/e/f", "");
  EXPECT_EQ(sut->Stat(fake.Uri("/d/a b"))->length, 5u);
  EXPECT_TRUE(sut->Stat(fake.Uri("/d"))->is_directory);
  const auto entries = sut->List(fake.Uri("/d"));
  ASSERT_TRUE(entries.ok());
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ((*entries)[0].name, "a b");
  EXPECT_EQ(sut->List(fake.Uri("/d/a b")).status().code(), Code::kFailedPrecondition);
  EXPECT_EQ(sut->List(fake.Uri("/none")).status().code(), Code::kNotFound);
  EXPECT_EQ(sut->Delete(fake.Uri("/d"), false).code(), Code::kFailedPrecondition);
  EXPECT_TRUE(sut->Delete(fake.Uri("/d"), true).ok());
  EXPECT_EQ(sut->Delete(fake.Uri("/d"), true).code(), Code::kNotFound);
}

TEST_F(FileSystemTest, OddNamesAreEscaped) {
  const std::string odd = "/d/a%20b?c#d&e=f+g größe";
  ASSERT_TRUE(sut->WriteAll(fake.Uri(odd), "x").ok());
  EXPECT_EQ(fake.Content(odd), "x");
  EXPECT_EQ(*sut->ReadAll(fake.Uri(odd), 10), "x");
  EXPECT_EQ(sut->ReadAll(fake.Uri(odd), 0).status().code(), Code::kResourceExhausted);
}

TEST_F(FileSystemTest, MakesFolders) {
  ASSERT_TRUE(sut->MakeDirectories(fake.Uri("/x/y/z")).ok());
  EXPECT_TRUE(sut->MakeDirectories(fake.Uri("/x/y/z")).ok());
  EXPECT_THAT(fake.Names(), ElementsAre("/x", "/x/y", "/x/y/z"));
  fake.Put("/f", "");
  EXPECT_EQ(sut->MakeDirectories(fake.Uri("/f")).code(), Code::kAlreadyExists);
}

TEST_F(FileSystemTest, RenamesFilesAndFolders) {
  fake.Put("/d/a", "a");
  fake.Put("/d/b", "b");
  EXPECT_EQ(sut->Rename(fake.Uri("/d/a"), fake.Uri("/d/b"), false).code(), Code::kAlreadyExists);
  ASSERT_TRUE(sut->Rename(fake.Uri("/d/a"), fake.Uri("/d/b"), true).ok());
  EXPECT_EQ(fake.Content("/d/b"), "a");
  ASSERT_TRUE(sut->Rename(fake.Uri("/d"), fake.Uri("/e"), true).ok());
  EXPECT_THAT(fake.Names(), ElementsAre("/e", "/e/b"));
  EXPECT_EQ(sut->Rename(fake.Uri("/none"), fake.Uri("/e"), true).code(), Code::kNotFound);
  EXPECT_EQ(sut->Rename(fake.Uri("/e"), "webhdfs://127.0.0.1:1/e", true).code(),
            Code::kFailedPrecondition);
}

TEST_F(FileSystemTest, ARenameWhoseAnswerIsLostWasDone) {
  fake.Put("/d/a", "a");
  std::atomic<int> calls{0};
  fake.SetFault([&](const std::string&, const Request& r) -> std::optional<Reply> {
    if (r.Get("op") != "RENAME" || calls++ > 0) return std::nullopt;
    fake.Put("/d/b", "a");
    fake.Remove("/d/a");
    Reply lost;
    lost.hang_up = true;
    return lost;
  });
  const Status status = sut->Rename(fake.Uri("/d/a"), fake.Uri("/d/b"), true);
  EXPECT_TRUE(status.ok()) << status.ToString();
}

TEST_F(FileSystemTest, ADeleteWhoseAnswerIsLostWasDone) {
  fake.Put("/d/a", "a");
  std::atomic<int> calls{0};
  fake.SetFault([&](const std::string&, const Request& r) -> std::optional<Reply> {
    if (r.Get("op") != "DELETE" || calls++ > 0) return std::nullopt;
    fake.Remove("/d/a");
    Reply lost;
    lost.hang_up = true;
    return lost;
  });
  EXPECT_TRUE(sut->Delete(fake.Uri("/d/a"), false).ok());
}

TEST_F(FileSystemTest, ListingAnswersTheQuestionsThatFollow) {
  fake.Put("/d/a", "a");
  fake.Put("/d/e/f", "");
  ASSERT_TRUE(sut->List(fake.Uri("/d")).ok());
  const std::size_t requests = fake.Log().size();
  EXPECT_FALSE(*sut->IsDirectory(fake.Uri("/d/a")));
  EXPECT_TRUE(*sut->IsDirectory(fake.Uri("/d/e")));
  EXPECT_EQ(fake.Log().size(), requests);
  ASSERT_TRUE(sut->Delete(fake.Uri("/d/e"), true).ok());
  EXPECT_EQ(sut->IsDirectory(fake.Uri("/d/e")).status().code(), Code::kNotFound);
  ASSERT_TRUE(sut->List(fake.Uri("/d")).ok());
  sut->ForgetListings();
  const std::size_t before = fake.Log().size();
  EXPECT_FALSE(*sut->IsDirectory(fake.Uri("/d/a")));
  EXPECT_EQ(fake.Log().size(), before + 1);
}

TEST_F(FileSystemTest, LengthsAreAlwaysAskedFor) {
  fake.Put("/d/a", "1");
  ASSERT_TRUE(sut->List(fake.Uri("/d")).ok());
  fake.Put("/d/a", "12");
  EXPECT_EQ(sut->Stat(fake.Uri("/d/a"))->length, 2u);
}

TEST_F(FileSystemTest, GlobMatchesFolderByFolder) {
  for (const char* path :
       {"/t/2024/a.rec", "/t/2024/b.rec", "/t/2025/a.rec", "/t/2025/x.txt", "/t/other"})
    fake.Put(path, "");
  EXPECT_THAT(Glob("/t/*/a.rec"), ElementsAre("/t/2024/a.rec", "/t/2025/a.rec"));
  EXPECT_THAT(Glob("/t/202[4]/?.rec"), ElementsAre("/t/2024/a.rec", "/t/2024/b.rec"));
  EXPECT_THAT(Glob("/t/2025/x.txt"), ElementsAre("/t/2025/x.txt"));
  EXPECT_THAT(Glob("/none/*"), IsEmpty());
  EXPECT_THAT(Glob("/t/other/*"), IsEmpty());
  EXPECT_THAT(Glob("/t/*/*/*"), IsEmpty());
  EXPECT_TRUE(HasWildcard("/a/*"));
  EXPECT_FALSE(HasWildcard("/a/\\*"));
}

TEST_F(FileSystemTest, GlobReportsOtherErrors) {
  fake.SetFault([](const std::string&, const Request&) -> std::optional<Reply> {
    return Exception(403, "AccessControlException", "Permission denied");
  });
  EXPECT_EQ(sut->Glob(fake.Uri("/t/*")).status().code(), Code::kPermissionDenied);
}

TEST_F(FileSystemTest, MountFoldersAreListed) {
  fake.Put("/w/a", "x");
  Properties p;
  p.Set("fs.viewfs.mounttable.cl.link./data/w", fake.Uri("/w"));
  const auto view = FakeHdfs::Client(ClusterConfig(std::move(p)));
  EXPECT_TRUE(view->Stat("viewfs://cl/data")->is_directory);
  EXPECT_EQ(view->List("viewfs://cl/")->at(0).name, "data");
  EXPECT_EQ(view->List("viewfs://cl/data/w")->at(0).name, "a");
  EXPECT_EQ(*view->ReadAll("viewfs://cl/data/w/a", 10), "x");
  EXPECT_EQ(view->Delete("viewfs://cl/data", true).code(), Code::kPermissionDenied);
  EXPECT_TRUE(view->MakeDirectories("viewfs://cl/data").ok());
  ASSERT_TRUE(view->WriteAll("viewfs://cl/data/w/b", "y").ok());
  EXPECT_EQ(fake.Content("/w/b"), "y");
}

TEST_F(FileSystemTest, TokensAreFetched) {
  EXPECT_EQ(*sut->NewDelegationToken(fake.Uri("/"), "yarn"), "dG9rZW4");
  EXPECT_EQ(fake.Count("renewer=yarn"), 1);
}

TEST_F(FileSystemTest, ErrorsNameThePath) {
  const Status status = sut->Stat(fake.Uri("/gone/x")).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("/gone/x"));
  EXPECT_EQ(status.code(), Code::kNotFound);
}

}  // namespace
}  // namespace arcflow::hdfs
