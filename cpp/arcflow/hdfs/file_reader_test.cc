// SPDX-License-Identifier: Apache-2.0
// Reading: in order, at random, at the end, and through every fault of a DataNode.
#include "arcflow/hdfs/file_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "arcflow/base/sanitizer_testing.h"
#include "arcflow/hdfs/fake_hdfs_testing.h"

namespace arcflow::hdfs {
namespace {

using testing::Exception;
using testing::FakeHdfs;
using ::testing::HasSubstr;
using testing::Reply;
using testing::Request;
using testing::SomeBytes;

Options SmallChunks() {
  Options o = FakeHdfs::Quick();
  o.chunk_bytes = std::size_t{300} * 1024;
  return o;
}

std::string ReadInOrder(FileReader* reader, std::size_t step) {
  std::string all;
  std::string piece(step, '\0');
  for (;;) {
    auto n = reader->Read(all.size(), piece);
    if (!n.ok()) return n.status().ToString();
    if (*n == 0) return all;
    all.append(piece, 0, *n);
  }
}

class FileReaderTest : public ::testing::Test {
 protected:
  FileReaderTest() {
    fake.Put("/a", content);
    Open();
  }
  void Open() {
    auto opened = client->Open(fake.Uri("/a"));
    ASSERT_TRUE(opened.ok()) << opened.status().ToString();
    sut = std::move(*opened);
  }
  Status ReadAt(std::uint64_t offset, std::size_t n) {
    std::string out(n, '\0');
    auto got = sut->Read(offset, out);
    if (!got.ok()) return got.status();
    out.resize(*got);
    return out == content.substr(offset, n) ? Status::Ok() : Internal("other bytes");
  }

  const std::string content = SomeBytes(3'500'000);
  FakeHdfs fake;
  std::unique_ptr<FileSystem> client = FakeHdfs::Client({}, SmallChunks());
  std::unique_ptr<FileReader> sut;
};

TEST_F(FileReaderTest, ReadsInOrderWithAnyStep) {
  for (const std::size_t step :
       {std::size_t{100'000}, std::size_t{262'144}, std::size_t{1'000'003}}) {
    Open();
    EXPECT_EQ(ReadInOrder(sut.get(), step), content) << step;
  }
}

TEST_F(FileReaderTest, FetchesAheadOnlyWhatIsReadInOrder) {
  std::string piece(1000, '\0');
  ASSERT_TRUE(sut->Read(0, piece).ok());  // somebody looks at the beginning
  EXPECT_EQ(fake.Count("dn"), 1);
  ASSERT_EQ(ReadInOrder(sut.get(), 100'000), content);
  EXPECT_LE(fake.Count(" OPEN /webhdfs/v1/a?op=OPEN&offset="), 40);
}

TEST_F(FileReaderTest, ReadsAtRandom) {
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t offset = random() % content.size();
    ASSERT_TRUE(ReadAt(offset, 65'536).ok()) << offset;
  }
  // Each block's DataNode was asked for once.
  EXPECT_LE(fake.Count("nn0 GET OPEN"), 4);
}

TEST_F(FileReaderTest, ManyThreadsShareAReader) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < testing_support::UnlessThreadSanitizer(40, 10); ++i) {
        const std::size_t n = 1 + random() % 900'000;
        if (!ReadAt(t % 2 == 0 ? random() % content.size() : static_cast<std::uint64_t>(i) * 80'000,
                    n)
                 .ok())
          ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(FileReaderTest, TheEndIsNoError) {
  std::string out(100, '\0');
  EXPECT_EQ(*sut->Read(content.size() - 10, out), 10u);
  EXPECT_EQ(*sut->Read(content.size(), out), 0u);
  EXPECT_EQ(*sut->Read(content.size() + 1'000'000, out), 0u);
}

TEST_F(FileReaderTest, AFileThatGrewIsReadToItsNewEnd) {
  ASSERT_EQ(ReadInOrder(sut.get(), 500'000), content);
  fake.Put("/a", content + "more");
  std::string out(100, '\0');
  EXPECT_EQ(*sut->Read(content.size(), out), 4u);
  EXPECT_EQ(out.substr(0, 4), "more");
}

TEST_F(FileReaderTest, AnEmptyFile) {
  fake.Put("/a", "");
  Open();
  std::string out(10, '\0');
  EXPECT_EQ(*sut->Read(0, out), 0u);
}

TEST_F(FileReaderTest, ABodyThatBreaksOffIsGoneOnWith) {
  std::atomic<int> broken{0};
  fake.SetFault([&](const std::string& server, const Request& r) -> std::optional<Reply> {
    if (server[0] != 'd' || broken++ % 3 != 0) return std::nullopt;
    const std::string part =
        content.substr(std::stoul(r.Get("offset")), std::stoul(r.Get("length")));
    return Reply{200, part, {}, {}, part.size() / 2, {}, false};
  });
  EXPECT_EQ(ReadInOrder(sut.get(), 200'000), content);
  EXPECT_GT(broken, 3);
}

TEST_F(FileReaderTest, ADataNodeThatDiesMidReadIsReplaced) {
  std::string first(400'000, '\0');
  ASSERT_TRUE(sut->Read(0, first).ok());
  fake.SetFault([](const std::string& server, const Request& r) -> std::optional<Reply> {
    Reply dead;
    dead.hang_up = true;
    if (server == "dn0") return dead;
    if (server == "nn0" && r.Get("op") == "OPEN" && r.Get("excludedatanodes").empty())
      return std::nullopt;
    return std::nullopt;
  });
  EXPECT_EQ(ReadInOrder(sut.get(), 300'000), content);
}

TEST_F(FileReaderTest, NameNodeFailoverMidReadIsSurvived) {
  FakeHdfs pair(2);
  pair.Put("/a", content);
  std::atomic<bool> switched{false};
  pair.SetFault([&](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server != (switched ? "nn0" : "nn1")) return std::nullopt;
    return Exception(403, "StandbyException", "standby");
  });
  const auto ha = FakeHdfs::Client(pair.HaConfig(), SmallChunks());
  auto reader = ha->Open("hdfs://ns/a");
  ASSERT_TRUE(reader.ok()) << reader.status().ToString();
  std::string piece(500'000, '\0');
  ASSERT_TRUE((*reader)->Read(0, piece).ok());
  switched = true;
  EXPECT_EQ(ReadInOrder(reader->get(), 500'000), content);
  pair.nn[0]->Stop();
  EXPECT_EQ(ReadInOrder(reader->get(), 500'000), content);
}

TEST_F(FileReaderTest, TruncationThatStaysIsDataLossWithPathAndOffset) {
  fake.SetFault([&](const std::string& server, const Request& r) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    return Reply{200, content.substr(0, std::stoul(r.Get("length")) - 1), {}, {}, {}, {}, false};
  });
  const Status status = ReadAt(1'000'000, 5000);
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/a at offset 1000000"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("announces 4999 bytes instead of the 5000"));
}

TEST_F(FileReaderTest, AnotherRangeThanAskedForIsNeverTaken) {
  fake.SetFault([&](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    return Reply{200, content, {}, {}, {}, {}, false};  // a server that knows no ranges
  });
  EXPECT_EQ(ReadAt(1'000'000, 5000).code(), Code::kDataLoss);
  fake.SetFault([&](const std::string& server, const Request& r) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    return Reply{206,
                 content.substr(0, std::stoul(r.Get("length"))),
                 {{"Content-Range", "bytes 0-4999/3500000"}},
                 {},
                 {},
                 {},
                 false};
  });
  const Status status = ReadAt(1'000'000, 5000);
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another range"));
}

TEST_F(FileReaderTest, AFileThatVanishesIsNotFoundWithPathAndOffset) {
  std::string piece(1000, '\0');
  ASSERT_TRUE(sut->Read(0, piece).ok());
  fake.Remove("/a");
  const Status status = ReadAt(2'000'000, 5000);
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/a at offset 2000000"));
}

TEST_F(FileReaderTest, ASmallReadElsewhereBringsWhatFollowsIt) {
  std::string byte(1, '\0');
  std::string piece(64 * 1024, '\0');
  for (const std::uint64_t offset : {800'000u, 3'000'000u, 500'000u}) {
    const int before = fake.Count("dn");
    ASSERT_EQ(*sut->Read(offset - 1, byte), 1u);  // as TensorFlow's streams seek
    ASSERT_EQ(*sut->Read(offset, piece), piece.size());
    EXPECT_TRUE(byte + piece == content.substr(offset - 1, piece.size() + 1));
    EXPECT_EQ(fake.Count("dn"), before + 1);
  }
}

TEST_F(FileReaderTest, ALookElsewhereKeepsWhatWasFetchedAhead) {
  std::string piece(300'000, '\0');
  ASSERT_TRUE(sut->Read(0, piece).ok());
  ASSERT_TRUE(sut->Read(300'000, piece).ok());  // it streams: several chunks are ahead
  std::string byte(1, '\0');
  ASSERT_TRUE(sut->Read(3'400'000, byte).ok());
  const int before = fake.Count("dn");
  std::string next(10'000, '\0');
  ASSERT_TRUE(sut->Read(600'000, next).ok());
  EXPECT_TRUE(next == content.substr(600'000, next.size()));
  EXPECT_EQ(fake.Count("offset=600000"), 0) << "it is there";
  EXPECT_LE(fake.Count("dn"), before + 2);
}

TEST_F(FileReaderTest, ADeniedReadIsNotTriedForLong) {
  fake.SetFault([](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    return Exception(403, "AccessControlException", "Permission denied: user=tester");
  });
  EXPECT_EQ(ReadAt(0, 100).code(), Code::kPermissionDenied);
  EXPECT_EQ(fake.Count("dn"), 1);
}

TEST_F(FileReaderTest, ClosingEndsWhatIsFetchedAhead) {
  std::string piece(200'000, '\0');
  ASSERT_TRUE(sut->Read(0, piece).ok());
  fake.SetFault([](const std::string& server, const Request&) -> std::optional<Reply> {
    if (server[0] != 'd') return std::nullopt;
    Reply slow;
    slow.delay = std::chrono::minutes(5);
    return slow;
  });
  std::thread reader([&] { (void)sut->Read(200'000, piece); });
  while (fake.Count("dn") < 2) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  fake.dn[0]->Stop();
  fake.dn[1]->Stop();
  reader.join();
  sut.reset();
  client.reset();  // does not wait for minutes
}

TEST_F(FileReaderTest, FoldersAndMissingFilesCannotBeOpened) {
  EXPECT_EQ(client->Open(fake.Uri("/")).status().code(), Code::kFailedPrecondition);
  EXPECT_EQ(client->Open(fake.Uri("/none")).status().code(), Code::kNotFound);
}

}  // namespace
}  // namespace arcflow::hdfs
