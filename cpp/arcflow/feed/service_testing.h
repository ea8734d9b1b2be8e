// SPDX-License-Identifier: Apache-2.0
// A feeder and readers that speak packets to a FeedService in the same thread, for tests and
// benches.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "arcflow/base/mapping.h"
#include "arcflow/feed/service.h"
#include "arcflow/net/packet.h"

namespace arcflow::feed::testing {

inline constexpr std::size_t kPage = 4096;
/// Test segments hold nothing but row numbers: row r of the feed is the int64 at its place.
inline constexpr std::uint64_t kRowsPerPage = kPage / sizeof(std::uint64_t);

inline columnar::Schema OneColumn() {
  columnar::Schema schema;
  schema.columns.push_back({"x", columnar::DType::kInt64, columnar::Source::kScalar, {}});
  return schema;
}

/// One reader: the node's end of a session. It keeps what it holds and can check that it did not
/// change.
class TestReader {
 public:
  struct Held {
    std::uint64_t first_row = 0;
    std::uint64_t rows = 0;
    std::shared_ptr<const Mapping> mapping;
  };

  explicit TestReader(Fd socket) : socket_(std::move(socket)) {}

  Status Send(const nlohmann::json& packet) {
    return net::SendPacket(socket_.get(), packet, {}, Deadline::AfterSeconds(5));
  }
  Status Get(std::uint64_t row) { return Send({{"op", "get"}, {"row", row}}); }
  Status Release(std::uint64_t segment) {
    held_.erase(segment);
    return Send({{"op", "release"}, {"segment", segment}});
  }

  /// The next packet that is there; a null value when there is none, "closed" when the session is
  /// over.
  nlohmann::json Receive() {
    auto message =
        net::ReceiveMessage(socket_.get(), -1, Deadline::After(std::chrono::nanoseconds(0)));
    if (!message.ok() && message.status().code() == Code::kDeadlineExceeded) return nullptr;
    EXPECT_TRUE(message.ok()) << message.status().ToString();
    if (!message.ok() || !*message) return {{"op", "closed"}};
    nlohmann::json body = *(*message)->body;
    body["fds"] = (*message)->fds.size();
    if (body["op"] == "segment") Take(body, std::move((*message)->fds));
    return body;
  }

  /// Every row of the held segment is what it should be.
  void Check(std::uint64_t segment) const {
    const Held& held = held_.at(segment);
    ASSERT_NE(held.mapping, nullptr);
    for (std::uint64_t i = 0; i < held.rows; ++i) {
      std::uint64_t value = 0;
      std::memcpy(&value, held.mapping->data() + i * sizeof(value), sizeof(value));
      ASSERT_EQ(value, held.first_row + i) << "segment " << segment << " changed under its lease";
    }
  }

  const std::map<std::uint64_t, Held>& held() const { return held_; }
  std::size_t mapped() const { return buffers_.size(); }
  bool maps(std::uint64_t buffer) const { return buffers_.contains(buffer); }
  void Close() { socket_.reset(); }
  int descriptor() const { return socket_.get(); }

 private:
  void Take(const nlohmann::json& body, std::vector<Fd> fds) {
    const std::uint64_t buffer = body["buffer"];
    const auto drop = body.value("drop", std::vector<std::uint64_t>());
    for (const std::uint64_t id : drop) buffers_.erase(id);
    if (!fds.empty()) {
      EXPECT_FALSE(buffers_.contains(buffer)) << "the descriptor came twice";
      auto mapping = Mapping::Map(fds[0], body["bytes"], false, false);
      ASSERT_TRUE(mapping.ok()) << mapping.status().ToString();
      EXPECT_FALSE(Mapping::Map(fds[0], body["bytes"], true, false).ok())
          << "readers may not write";
      buffers_[buffer] = std::make_shared<const Mapping>(std::move(*mapping));
    }
    ASSERT_TRUE(buffers_.contains(buffer)) << "no descriptor for buffer " << buffer;
    held_[body["segment"]] = {body["first_row"], body["rows"], buffers_[buffer]};
    Check(body["segment"]);
  }

  Fd socket_;
  std::map<std::uint64_t, std::shared_ptr<const Mapping>> buffers_;
  std::map<std::uint64_t, Held> held_;
};

/// A node's service with its feeder. Counts the memory that the feeder has and checks it against
/// the budget.
class TestNode {
 public:
  explicit TestNode(ServiceOptions options)
      : budget_(options.feed_memory_bytes),
        service_(std::move(options), {[this](const nlohmann::json& p) { OnPacket(p); },
                                      [this](const std::string& f) { changed_.insert(f); }}) {}

  FeedService& service() { return service_; }

  // The feeder
  // --------------------------------------------------------------------------------------------------
  struct Memory {
    Fd fd;
    Mapping mapping;
    bool sent = false;
  };

  void Acquire(const std::string& feed, std::size_t bytes) {
    Feed({{"op", "acquire"}, {"feed", feed}, {"bytes", bytes}});
  }
  /// The oldest answer to an acquire that was not taken yet; null while parked.
  nlohmann::json Answer() {
    if (answers_.empty()) return nullptr;
    nlohmann::json packet = std::move(answers_.front());
    answers_.pop_front();
    return packet;
  }
  /// Fills rows [from, to) of the granted segment that begins at the feed's row `first_row` and
  /// publishes [0, to).
  void Publish(const std::string& feed, std::uint64_t buffer, std::uint64_t first_row,
               std::uint64_t from, std::uint64_t to, bool closed) {
    Memory& memory = memory_.at(buffer);
    ASSERT_LE(to * sizeof(std::uint64_t), memory.mapping.size_bytes());
    for (std::uint64_t i = from; i < to; ++i) {
      const std::uint64_t value = first_row + i;
      std::memcpy(memory.mapping.data() + i * sizeof(value), &value, sizeof(value));
    }
    std::vector<Fd> fds;
    if (!std::exchange(memory.sent, true)) fds.emplace_back(::dup(memory.fd.get()));
    const Status status = service_.OnFeederPacket(
        {{"op", "publish"}, {"feed", feed}, {"buffer", buffer}, {"rows", to}, {"closed", closed}},
        std::move(fds));
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  /// Acquires, fills and closes one segment of a page. False: the acquire is parked or refused
  /// (`last` says which).
  bool Write(const std::string& feed, std::uint64_t rows = kRowsPerPage) {
    Acquire(feed, kPage);
    last = Answer();
    if (last.is_null() || last["op"] != "segment") return false;
    Publish(feed, last["buffer"], service_.Local(feed).rows, 0, rows, true);
    return true;
  }
  void Feed(const nlohmann::json& packet) {
    const Status status = service_.OnFeederPacket(packet, {});
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
  Status Try(const nlohmann::json& packet, std::vector<Fd> fds = {}) {
    return service_.OnFeederPacket(packet, std::move(fds));
  }
  void End(const std::string& feed) { Feed({{"op", "end"}, {"feed", feed}}); }
  std::size_t feeder_bytes() const {
    std::size_t sum = 0;
    for (const auto& [id, memory] : memory_) sum += memory.mapping.size_bytes();
    return sum;
  }
  std::set<std::string> TakeChanged() { return std::exchange(changed_, {}); }
  nlohmann::json last;

  // Readers
  // -----------------------------------------------------------------------------------------------------
  /// Opens a session and takes its `schema`, kept in `schema`.
  std::unique_ptr<TestReader> Open(const std::string& feed) {
    auto pair = net::PacketPair();
    EXPECT_TRUE(pair.ok());
    const Result<int> descriptor = service_.AddReader(feed, std::move(pair->second));
    EXPECT_TRUE(descriptor.ok()) << descriptor.status().ToString();
    if (descriptor.ok()) descriptors_.insert(*descriptor);
    auto reader = std::make_unique<TestReader>(std::move(pair->first));
    schema = reader->Receive();
    EXPECT_EQ(schema["op"], "schema");
    return reader;
  }
  /// Lets the service handle everything that readers have sent.
  void Poll() {
    for (bool more = true; more;) {
      more = false;
      for (const int fd : std::set<int>(descriptors_)) {
        pollfd p{fd, POLLIN, 0};
        if (::poll(&p, 1, 0) <= 0) continue;
        more = true;
        if (!service_.OnReaderReadable(fd)) descriptors_.erase(fd);
      }
    }
  }
  /// Asks for a row and returns the answer, or null when it is parked.
  nlohmann::json Ask(TestReader& reader, std::uint64_t row) {
    EXPECT_TRUE(reader.Get(row).ok());
    Poll();
    return reader.Receive();
  }
  void Release(TestReader& reader, std::uint64_t segment) {
    EXPECT_TRUE(reader.Release(segment).ok());
    Poll();
  }
  std::size_t sessions() const { return descriptors_.size(); }
  nlohmann::json schema;

 private:
  void OnPacket(const nlohmann::json& packet) {
    if (packet["op"] == "segment") Grant(packet);
    answers_.push_back(packet);
  }
  void Grant(const nlohmann::json& packet) {
    for (const std::uint64_t id : packet.value("drop", std::vector<std::uint64_t>()))
      memory_.erase(id);
    const std::uint64_t id = packet["buffer"];
    ASSERT_EQ(packet["create"].get<bool>(), !memory_.contains(id));
    if (packet["create"]) {
      auto fd = CreateMemfd("service-test", packet["bytes"]);
      ASSERT_TRUE(fd.ok());
      auto mapping = Mapping::Map(*fd, packet["bytes"], true, false);
      ASSERT_TRUE(mapping.ok());
      ASSERT_TRUE(SealForReaders(*fd).ok());
      memory_[id] = {std::move(*fd), std::move(*mapping), false};
    }
    ASSERT_LE(feeder_bytes(), budget_) << "the feeder has more memory than the budget";
    ASSERT_LE(service_.Stats()["buffers_bytes"], budget_);
  }

  std::size_t budget_;
  std::map<std::uint64_t, Memory> memory_;
  std::deque<nlohmann::json> answers_;
  std::set<std::string> changed_;
  std::set<int> descriptors_;
  FeedService service_;
};

/// A fixture with a directory for spilled rows and one feed, "train".
class FeedServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string path = ::testing::TempDir() + "/arcflow-service-test-XXXXXX";
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    dir_ = path;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  ServiceOptions Options(Cache cache, std::size_t pages) {
    ServiceOptions options;
    options.feeds["train"] = {OneColumn(), cache};
    options.feed_memory_bytes = pages * kPage;
    options.local_dirs = {dir_};
    return options;
  }
  std::unique_ptr<TestNode> Node(Cache cache, std::size_t pages) {
    return std::make_unique<TestNode>(Options(cache, pages));
  }
  /// Reads all rows from `row` on, one segment at a time; returns the row after the last.
  static std::uint64_t ReadAll(TestNode& node, TestReader& reader, std::uint64_t row = 0) {
    for (;;) {
      const nlohmann::json answer = node.Ask(reader, row);
      if (answer.is_null() || answer["op"] != "segment") return row;
      const std::uint64_t end =
          answer["first_row"].get<std::uint64_t>() + answer["rows"].get<std::uint64_t>();
      EXPECT_GT(end, row);
      row = end;
      node.Release(reader, answer["segment"]);
    }
  }
  static nlohmann::json Train(const TestNode& node) {
    return const_cast<TestNode&>(node).service().Stats()["feeds"]["train"];
  }

  std::string dir_;
};

}  // namespace arcflow::feed::testing
