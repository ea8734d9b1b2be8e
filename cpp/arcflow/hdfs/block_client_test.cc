// SPDX-License-Identifier: Apache-2.0
// Tests: reading straight from DataNodes, and falling back to WebHDFS whatever they do.
#include "arcflow/hdfs/block_client.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>

#include "arcflow/hdfs/fake_hdfs_testing.h"

namespace arcflow::hdfs {
namespace {

using testing::FakeHdfs;
using testing::SomeBytes;
using testing::TransferServer;

std::string ReadFrom(FileSystem* fs, const std::string& uri, std::uint64_t offset, std::size_t n) {
  auto reader = fs->Open(uri);
  EXPECT_TRUE(reader.ok()) << reader.status().message();
  std::string out(n, '\0');
  auto got = (*reader)->Read(offset, out);
  EXPECT_TRUE(got.ok()) << got.status().message();
  out.resize(got.ok() ? *got : 0);
  return out;
}

/// A cluster whose DataNodes take requests for blocks, with one file of two and a half blocks.
class DirectReadTest : public ::testing::Test {
 protected:
  DirectReadTest() : fake_(1, 2, true), bytes_(SomeBytes((5 << 19) + 77)) {
    fake_.Put("/f", bytes_);
  }
  std::unique_ptr<FileSystem> Client(const Options& options = FakeHdfs::Quick()) {
    return FakeHdfs::Client({}, options);
  }
  void SetFaults(const TransferServer::Fault& fault) {
    for (const auto& one : fake_.transfer) one->SetFault(fault);
  }
  int HttpReads() { return fake_.Count(" GET OPEN "); }
  int Requests() {
    int n = 0;
    for (const auto& one : fake_.transfer) n += one->requests();
    return n;
  }
  void ExpectWhole(FileSystem* fs) {
    EXPECT_TRUE(ReadFrom(fs, fake_.Uri("/f"), 0, bytes_.size() + 1) == bytes_);
  }

  FakeHdfs fake_;
  const std::string bytes_;
};

TEST_F(DirectReadTest, AllBytesComeFromDataNodesWithoutWebHdfs) {
  const auto before = BlockClient::bytes_read();
  const auto sut = Client();
  ExpectWhole(sut.get());
  EXPECT_EQ(HttpReads(), 0);
  EXPECT_EQ(BlockClient::bytes_read() - before, bytes_.size());
}

TEST_F(DirectReadTest, RangesAnywhereAreExact) {
  const auto sut = Client();
  auto reader = *sut->Open(fake_.Uri("/f"));
  std::mt19937 random(3);
  for (int i = 0; i < 200; ++i) {
    const std::size_t n = 1 + random() % 20'000;
    const std::size_t offset = random() % (bytes_.size() - n);
    std::string out(n, '\0');
    ASSERT_EQ(*reader->Read(offset, out), n);
    ASSERT_TRUE(out == bytes_.substr(offset, n)) << offset << " " << n;
  }
  EXPECT_EQ(HttpReads(), 0);
}

TEST_F(DirectReadTest, ConnectionsAreKept) {
  const auto sut = Client();
  auto reader = *sut->Open(fake_.Uri("/f"));
  std::string out(1000, '\0');
  for (int i = 0; i < 50; ++i)
    ASSERT_TRUE(reader->Read(std::uint64_t{50'000} - 1000 * i, out).ok());
  EXPECT_LE(fake_.transfer[0]->connections(), 2);
  EXPECT_GE(Requests(), 50);
}

TEST_F(DirectReadTest, ConnectionsToManyDataNodesAreNotKeptForEver) {
  const std::string data = SomeBytes(1000);
  const Options options = FakeHdfs::Quick();
  BlockClient sut(options);
  LocatedBlock block;
  block.length = data.size();
  std::vector<std::unique_ptr<TransferServer>> nodes;
  for (int i = 0; i < 100; ++i) {
    nodes.push_back(std::make_unique<TransferServer>([&](std::uint64_t) { return data; }));
    std::string out(data.size(), '\0');
    std::size_t done = 0;
    ASSERT_TRUE(sut.Read(block, "127.0.0.1", nodes.back()->port(), 0, out, &done, nullptr).ok());
  }
  EXPECT_LE(sut.kept_connections(), 64u);
  EXPECT_GT(sut.kept_connections(), 0u);
}

TEST_F(DirectReadTest, AConnectionThatTheDataNodeHasClosedIsReplaced) {
  const auto sut = Client();
  ExpectWhole(sut.get());
  for (const auto& one : fake_.transfer) one->DropConnections();
  ExpectWhole(sut.get());
  EXPECT_EQ(HttpReads(), 0);
}

TEST_F(DirectReadTest, TheTokenOfTheBlockIsShown) {
  const auto sut = Client();
  ExpectWhole(sut.get());
  EXPECT_EQ(fake_.transfer[0]->identifier(), "secret of the block");
}

TEST_F(DirectReadTest, ADeadDataNodeIsReplacedByAnother) {
  fake_.transfer[0]->Stop();
  const auto sut = Client();
  ExpectWhole(sut.get());
  EXPECT_EQ(HttpReads(), 0);
  EXPECT_GT(fake_.transfer[1]->requests(), 0);
}

TEST_F(DirectReadTest, WithoutDataNodesWebHdfsGoesOn) {
  for (const auto& one : fake_.transfer) one->Stop();
  const auto sut = Client();
  ExpectWhole(sut.get());
  EXPECT_GT(HttpReads(), 0);
}

TEST_F(DirectReadTest, DataNodesThatWantSaslAreLeftAlone) {
  TransferServer::Fault sasl;
  sasl.hang_up = true;
  SetFaults(sasl);
  const auto sut = Client();
  ExpectWhole(sut.get());
  const int asked = Requests();
  EXPECT_GT(asked, 0);
  const int questions = fake_.Count("GET_BLOCK_LOCATIONS");
  ExpectWhole(sut.get());
  EXPECT_EQ(Requests(), asked);
  EXPECT_LE(fake_.Count("GET_BLOCK_LOCATIONS"), questions + 1);  // one a file, not one a range
}

/// What a DataNode does, and whether all bytes come all the same.
class FaultyDataNodeTest : public DirectReadTest,
                           public ::testing::WithParamInterface<TransferServer::Fault> {};

TEST_P(FaultyDataNodeTest, OneOfTwoIsReplaced) {
  fake_.transfer[0]->SetFault(GetParam());
  const auto sut = Client();
  ExpectWhole(sut.get());
}

TEST_P(FaultyDataNodeTest, AllOfThemAreReplacedByWebHdfs) {
  SetFaults(GetParam());
  const auto sut = Client();
  ExpectWhole(sut.get());
  EXPECT_EQ(HttpReads() > 0, !GetParam().close_after);
}

INSTANTIATE_TEST_SUITE_P(Faults, FaultyDataNodeTest,
                         ::testing::Values(TransferServer::Fault{.hang_up = true},
                                           TransferServer::Fault{.status = 1},
                                           TransferServer::Fault{.status = 5},
                                           TransferServer::Fault{.bad_checksum = true},
                                           TransferServer::Fault{.break_off_after = 0},
                                           TransferServer::Fault{.break_off_after = 3},
                                           TransferServer::Fault{.skip_a_packet = true},
                                           TransferServer::Fault{.odd_numbers = true},
                                           TransferServer::Fault{.close_after = true}),
                         [](const auto& param) {
                           const TransferServer::Fault& f = param.param;
                           if (f.hang_up) return std::string("HangsUp");
                           if (f.status != 0) return "Refuses" + std::to_string(f.status);
                           if (f.bad_checksum) return std::string("BadChecksum");
                           if (f.break_off_after)
                             return "BreaksOffAfter" + std::to_string(*f.break_off_after);
                           if (f.skip_a_packet) return std::string("SkipsAPacket");
                           return std::string(f.odd_numbers ? "OddNumbers" : "ClosesAfterwards");
                         });

TEST_F(DirectReadTest, WrongBytesAreNoneOfThoseGiven) {
  const std::string data = SomeBytes(100'000);
  TransferServer server([&](std::uint64_t) { return data; });
  TransferServer::Fault wrong;
  wrong.bad_checksum = true;
  server.SetFault(wrong);
  const Options options = FakeHdfs::Quick();
  BlockClient sut(options);
  LocatedBlock block;
  block.length = data.size();
  std::string out(data.size(), '\0');
  std::size_t done = 0;
  const Status status = sut.Read(block, "127.0.0.1", server.port(), 0, out, &done, nullptr);
  EXPECT_EQ(status.code(), Code::kDataLoss);
  EXPECT_NE(std::string(status.message()).find("wrong checksum"), std::string::npos);
  EXPECT_LT(done, data.size());
  EXPECT_TRUE(out.substr(0, done) == data.substr(0, done));
}

TEST_F(DirectReadTest, EveryKindOfChecksumIsChecked) {
  const std::string data = SomeBytes(100'000);
  for (const auto kind : {ChecksumKind::kNull, ChecksumKind::kCrc32, ChecksumKind::kCrc32c}) {
    TransferServer server([&](std::uint64_t) { return data; }, kind);
    const Options options = FakeHdfs::Quick();
    BlockClient sut(options);
    LocatedBlock block;
    block.length = data.size();
    std::string out(70'001, '\0');
    std::size_t done = 0;
    ASSERT_TRUE(sut.Read(block, "127.0.0.1", server.port(), 333, out, &done, nullptr).ok());
    EXPECT_TRUE(out == data.substr(333, out.size()));
  }
}

TEST_F(DirectReadTest, ReadingEndsWhenItIsCancelled) {
  const std::string data = SomeBytes(1000);
  std::atomic<bool> cancelled{false};
  TransferServer server([&](std::uint64_t) {
    cancelled = true;  // and never answers in time
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return std::optional<std::string>();
  });
  const Options options = FakeHdfs::Quick();
  BlockClient sut(options);
  LocatedBlock block;
  std::string out(1000, '\0');
  std::size_t done = 0;
  EXPECT_EQ(sut.Read(block, "127.0.0.1", server.port(), 0, out, &done, &cancelled).code(),
            Code::kCancelled);
}

TEST_F(DirectReadTest, ATokenThatIsTooOldIsAskedForAgain) {
  const auto sut = Client();
  auto reader = *sut->Open(fake_.Uri("/f"));
  std::string out(1000, '\0');
  ASSERT_TRUE(reader->Read(5000, out).ok());
  TransferServer::Fault old;
  old.status = 5;
  fake_.transfer[0]->SetFault(old);
  const int before = fake_.Count("GET_BLOCK_LOCATIONS");
  fake_.transfer[1]->SetFault(old);
  ASSERT_TRUE(reader->Read(900'000, out).ok());
  EXPECT_TRUE(out == bytes_.substr(900'000, 1000));
  EXPECT_EQ(fake_.Count("GET_BLOCK_LOCATIONS"), before + 1);
}

TEST_F(DirectReadTest, EncryptedAndStripedFilesGoByWebHdfs) {
  for (const char* bit : {"encBit", "ecBit"}) {
    fake_.more_status = {{bit, true}};
    const auto sut = Client();
    ExpectWhole(sut.get());
  }
  EXPECT_EQ(Requests(), 0);
  EXPECT_GT(HttpReads(), 0);
}

TEST_F(DirectReadTest, AFileThatIsBeingWrittenGoesByWebHdfs) {
  fake_.under_construction = true;
  const auto sut = Client();
  ExpectWhole(sut.get());
  EXPECT_EQ(Requests(), 0);
}

TEST_F(DirectReadTest, AFileThatHasGrownIsReadToItsNewEnd) {
  const auto sut = Client();
  auto reader = *sut->Open(fake_.Uri("/f"));
  std::string out(100, '\0');
  ASSERT_TRUE(reader->Read(bytes_.size() - 100, out).ok());
  const std::string more = SomeBytes(3000);
  fake_.Put("/f", bytes_ + more);
  std::string tail(3000, '\0');
  ASSERT_EQ(*reader->Read(bytes_.size(), tail), 3000u);
  EXPECT_TRUE(tail == more);
  EXPECT_EQ(HttpReads(), 0);
}

TEST_F(DirectReadTest, AGatewayThatTellsNoBlocksIsAskedOnce) {
  FakeHdfs gateway(1, 2);
  gateway.Put("/a", bytes_);
  gateway.Put("/b", bytes_);
  const auto sut = FakeHdfs::Client();
  EXPECT_TRUE(ReadFrom(sut.get(), gateway.Uri("/a"), 0, bytes_.size()) == bytes_);
  EXPECT_TRUE(ReadFrom(sut.get(), gateway.Uri("/b"), 0, bytes_.size()) == bytes_);
  EXPECT_EQ(gateway.Count("GET_BLOCK_LOCATIONS"), 1);
}

TEST_F(DirectReadTest, WhereBlocksAreIsAskedOnceAndNotTriedForLong) {
  fake_.SetFault(
      [](const std::string&, const testing::Request& r) -> std::optional<testing::Reply> {
        if (r.Get("op") != "GET_BLOCK_LOCATIONS") return std::nullopt;
        return testing::Reply{500, "broken", {}, {}, {}, {}, false};
      });
  const auto sut = Client();
  EXPECT_TRUE(ReadFrom(sut.get(), fake_.Uri("/f"), 0, 1000) == bytes_.substr(0, 1000));
  EXPECT_EQ(fake_.Count("GET_BLOCK_LOCATIONS"), 1);
}

TEST_F(DirectReadTest, ItCanBeSwitchedOff) {
  Options options = FakeHdfs::Quick();
  options.direct = false;
  const auto sut = Client(options);
  ExpectWhole(sut.get());
  EXPECT_EQ(Requests(), 0);
  EXPECT_EQ(fake_.Count("GET_BLOCK_LOCATIONS"), 0);
}

TEST_F(DirectReadTest, ManyThreadsReadAtOnce) {
  const auto sut = Client();
  auto reader = *sut->Open(fake_.Uri("/f"));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 30; ++i) {
        const std::size_t offset = random() % (bytes_.size() - 5000);
        std::string out(5000, '\0');
        if (!reader->Read(offset, out).ok() || out != bytes_.substr(offset, 5000)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace arcflow::hdfs
