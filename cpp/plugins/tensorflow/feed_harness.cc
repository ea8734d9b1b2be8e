// SPDX-License-Identifier: Apache-2.0
// feed_harness <setup.json> <program> <argument>...: runs a program as a node that is fed made-up
// rows. One process is writer, feed service and broker, so that readers can be tested without
// Spark, agent and coordinator.
//
// setup: {"feeds": {name: {"schema": …, "cache": "auto", "rows": N, "batch_rows": 100, "sleep_ms":
// 0,
//                          "ranks": [[rows, ended], …], "hold": false}},
//         "memory_bytes": …, "segment_bytes": …, "rank": 0, "stats": path}
// "ranks" is what the coordinator would say of all ranks (this rank's entry is ignored); "hold"
// leaves the feed open. Element e of a row's value is row * elements + e, cast; a bool is whether
// that is odd; a string is "row <row>" and row % 7 dots. Exit status: the program's.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/columnar/arrow_testing.h"
#include "arcflow/feed/service.h"
#include "arcflow/feed/writer.h"
#include "arcflow/net/packet.h"

extern char** environ;

namespace arcflow {
namespace {

using columnar::Column;
using columnar::DType;
using columnar::Schema;
using columnar::testing::TestArray;
using columnar::testing::TestArrayPtr;
using nlohmann::json;

constexpr int kNodeFd = 3;

// ---- Made-up rows ------------------------------------------------------------------------------

template <typename T>
std::vector<T> Numbers(std::uint64_t first, std::uint64_t count) {
  std::vector<T> out(count);
  for (std::uint64_t i = 0; i < count; ++i) out[i] = static_cast<T>(first + i);
  return out;
}

/// Elements [first, first + count) of a column, as an Arrow array.
TestArrayPtr Elements(const std::string& name, DType dtype, std::uint64_t first,
                      std::uint64_t count) {
  using columnar::testing::Primitive;
  switch (dtype) {
    case DType::kFloat32:
      return Primitive(name, "f", Numbers<float>(first, count));
    case DType::kFloat64:
      return Primitive(name, "g", Numbers<double>(first, count));
    case DType::kInt64:
      return Primitive(name, "l", Numbers<std::int64_t>(first, count));
    case DType::kInt32:
      return Primitive(name, "i", Numbers<std::int32_t>(first, count));
    case DType::kInt16:
      return Primitive(name, "s", Numbers<std::int16_t>(first, count));
    case DType::kInt8:
      return Primitive(name, "c", Numbers<std::int8_t>(first, count));
    case DType::kUInt8:
      return Primitive(name, "C", Numbers<std::uint8_t>(first, count));
    case DType::kBool: {
      std::vector<bool> odd(count);
      for (std::uint64_t i = 0; i < count; ++i) odd[i] = (first + i) % 2 == 1;
      return columnar::testing::Bools(name, odd);
    }
    case DType::kString:
      break;
  }
  std::vector<std::string> texts;
  for (std::uint64_t i = first; i < first + count; ++i) {
    texts.push_back("row " + std::to_string(i) + std::string(i % 7, '.'));
  }
  return columnar::testing::Strings(name, "u", texts);
}

TestArrayPtr ColumnOf(const Column& column, std::uint64_t first_row, std::uint64_t rows) {
  const std::uint64_t k = column.row_elements();
  if (column.source == columnar::Source::kScalar)
    return Elements(column.name, column.dtype, first_row, rows);
  TestArrayPtr values = Elements("item", column.dtype, first_row * k, rows * k);
  if (column.source == columnar::Source::kList) {
    return columnar::testing::FixedList(column.name, static_cast<std::int64_t>(k),
                                        static_cast<std::int64_t>(rows), std::move(values));
  }
  std::vector<std::string> raw;  // raw bytes: the values buffer, cut into rows
  const char* bytes = static_cast<const char*>(values->array.buffers[1]);
  for (std::uint64_t r = 0; r < rows; ++r) {
    raw.emplace_back(bytes + r * column.row_bytes(), column.row_bytes());
  }
  return columnar::testing::Strings(column.name, "z", raw);
}

TestArrayPtr RowsOf(const Schema& schema, std::uint64_t first_row, std::uint64_t rows) {
  auto batch = std::make_unique<TestArray>("+s", "", static_cast<std::int64_t>(rows));
  for (const Column& column : schema.columns) batch->AddChild(ColumnOf(column, first_row, rows));
  return batch;
}

// ---- Writer side: a thread that talks to the service as a feeder does --------------------------

class SocketSource final : public feed::SegmentSource {
 public:
  explicit SocketSource(Fd socket) : socket_(std::move(socket)) {}

  Result<Grant> Acquire(const std::string& feed, std::size_t min_bytes,
                        Deadline deadline) override {
    ARC_TRY(net::SendPacket(
        socket_.get(), {{"op", "acquire"}, {"feed", feed}, {"bytes", min_bytes}}, {}, deadline));
    ARC_ASSIGN(std::optional<net::Message> answer,
               net::ReceiveMessage(socket_.get(), -1, deadline));
    if (!answer) return Unavailable("the service is gone");
    const json& body = *answer->body;
    if (answer->op != "segment") {
      return Status(CodeFromName(body.value("code", "")), body.value("message", ""));
    }
    return Grant{body.at("buffer"), body.at("bytes"), body.at("create")};
  }

  Status Publish(const std::string& feed, const Grant& grant, std::size_t rows, bool closed,
                 int fd) override {
    const json body{{"op", "publish"},
                    {"feed", feed},
                    {"buffer", grant.buffer},
                    {"rows", rows},
                    {"closed", closed}};
    return net::SendPacket(socket_.get(), body, fd < 0 ? std::vector<int>{} : std::vector<int>{fd},
                           Deadline::Infinite());
  }

  Status End(const std::string& feed) {
    return net::SendPacket(socket_.get(), {{"op", "end"}, {"feed", feed}}, {},
                           Deadline::Infinite());
  }

 private:
  Fd socket_;
};

Status FeedRows(SocketSource& source, const std::string& name, const json& setup,
                std::size_t segment_bytes) {
  ARC_ASSIGN(const Schema schema, Schema::FromJson(setup.at("schema")));
  feed::Writer writer({name, schema, segment_bytes}, source);
  const std::uint64_t rows = setup.at("rows");
  const std::uint64_t step = setup.value("batch_rows", std::uint64_t{100});
  for (std::uint64_t row = 0; row < rows; row += step) {
    const TestArrayPtr batch = RowsOf(schema, row, std::min(step, rows - row));
    ARC_TRY(writer.Append(batch->type, batch->array, Deadline::Infinite()));
    std::this_thread::sleep_for(std::chrono::milliseconds(setup.value("sleep_ms", 0)));
  }
  if (setup.value("hold", false)) return Status::Ok();
  ARC_TRY(writer.Finish());
  return source.End(name);
}

// ---- Service side: the main thread --------------------------------------------------------------

class Harness {
 public:
  Harness(const json& setup, Fd broker, Fd feeder)
      : setup_(setup), broker_(std::move(broker)), feeder_(std::move(feeder)) {}

  Status Start() {
    feed::ServiceOptions options;
    options.rank = setup_.value("rank", 0);
    options.feed_memory_bytes = setup_.at("memory_bytes");
    options.local_dirs = {setup_.value("local_dir", std::string("/tmp"))};
    for (const auto& [name, one] : setup_.at("feeds").items()) {
      ARC_ASSIGN(Schema schema, Schema::FromJson(one.at("schema")));
      ARC_ASSIGN(const feed::Cache cache, feed::CacheFromName(one.value("cache", "auto")));
      options.feeds[name] = {std::move(schema), cache};
      if (one.contains("ranks")) options.size = static_cast<int>(one.at("ranks").size());
    }
    feed::FeedService::Callbacks calls;
    calls.send_to_feeder = [this](const json& packet) {
      (void)net::SendPacket(feeder_.get(), packet, {}, Deadline::Infinite());
    };
    calls.rows_changed = [](const std::string&) {};
    service_ = std::make_unique<feed::FeedService>(std::move(options), std::move(calls));
    for (const auto& [name, one] : setup_.at("feeds").items()) {
      std::vector<feed::RankRows> ranks;
      for (const json& r : one.value("ranks", json::array())) ranks.push_back({r.at(0), r.at(1)});
      if (!ranks.empty()) service_->SetRanks(name, ranks);
    }
    return Status::Ok();
  }

  /// Until `child`, a pidfd, is readable.
  Status Run(int child) {
    for (;;) {
      std::vector<pollfd> polls{
          {child, POLLIN, 0}, {broker_.get(), POLLIN, 0}, {feeder_.get(), POLLIN, 0}};
      for (const int reader : readers_) polls.push_back({reader, POLLIN, 0});
      if (::poll(polls.data(), polls.size(), -1) < 0) return Status::FromErrno(errno, "poll");
      if (polls[0].revents != 0) return Status::Ok();
      if (polls[1].revents != 0) ARC_TRY(OnBroker());
      if (polls[2].revents != 0) ARC_TRY(OnFeeder());
      for (std::size_t i = 3; i < polls.size(); ++i) {
        if (polls[i].revents != 0 && !service_->OnReaderReadable(polls[i].fd))
          std::erase(readers_, polls[i].fd);
      }
    }
  }

  void WriteStats() const {
    if (setup_.contains("stats"))
      std::ofstream(setup_.at("stats").get<std::string>()) << service_->Stats();
  }
  /// Ends a writer that waits for memory.
  void Stop() {
    service_->RefuseMore();
    feeder_.reset();
  }

 private:
  Status OnBroker() {
    ARC_ASSIGN(std::optional<net::Message> message,
               net::ReceiveMessage(broker_.get(), -1, Deadline::AfterSeconds(1)));
    if (!message) {  // the program has closed it, or is gone
      broker_.reset();
      return Status::Ok();
    }
    if (message->op != "open" || message->fds.size() != 1)
      return InvalidArgument("broker: no open");
    const Result<int> fd =
        service_->AddReader(message->body->value("feed", ""), std::move(message->fds[0]));
    if (fd.ok()) readers_.push_back(*fd);
    return Status::Ok();
  }

  Status OnFeeder() {
    ARC_ASSIGN(std::optional<net::Message> message,
               net::ReceiveMessage(feeder_.get(), -1, Deadline::AfterSeconds(1)));
    if (!message) return Unavailable("the writer thread is gone");
    return service_->OnFeederPacket(*message->body, std::move(message->fds));
  }

  const json& setup_;
  Fd broker_;
  Fd feeder_;
  std::unique_ptr<feed::FeedService> service_;
  std::vector<int> readers_;
};

Result<pid_t> Spawn(char** argv, int broker) {
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, broker, kNodeFd);  // dup2 also clears close-on-exec
  ::setenv("ARCFLOW_NODE_FD", std::to_string(kNodeFd).c_str(), 1);
  pid_t pid = -1;
  const int error = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv, environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return Status::FromErrno(error, argv[0]);
  return pid;
}

Result<int> Main(const char* setup_path, char** argv) {
  std::ifstream file(setup_path);
  const json setup = json::parse(file, nullptr, false);
  if (setup.is_discarded()) return InvalidArgument(std::string(setup_path) + " is not JSON");
  ARC_ASSIGN(auto broker, net::PacketPair());
  ARC_ASSIGN(auto feeder, net::PacketPair());
  // A descriptor that is kNodeFd already would keep its close-on-exec flag.
  if (broker.second.get() == kNodeFd)
    broker.second.reset(::fcntl(broker.second.get(), F_DUPFD_CLOEXEC, kNodeFd + 1));
  ARC_ASSIGN(const pid_t pid, Spawn(argv, broker.second.get()));
  broker.second.reset();
  const Fd child(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  Harness harness(setup, std::move(broker.first), std::move(feeder.first));
  ARC_TRY(harness.Start());
  SocketSource source(std::move(feeder.second));
  Status fed;
  std::thread writer([&] {
    for (const auto& [name, one] : setup.at("feeds").items()) {
      fed = FeedRows(source, name, one, setup.at("segment_bytes"));
      if (!fed.ok()) break;
    }
  });
  Status served = harness.Run(child.get());
  if (!served.ok()) ::kill(pid, SIGKILL);
  harness.WriteStats();
  harness.Stop();
  writer.join();
  if (!fed.ok()) std::fprintf(stderr, "feed_harness: writer: %s\n", fed.ToString().c_str());
  int status = 0;
  ::waitpid(pid, &status, 0);
  if (!served.ok()) return served;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace
}  // namespace arcflow

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: feed_harness <setup.json> <program> <argument>...\n");
    return 2;
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that dies takes its harness with it
  const arcflow::Result<int> status = arcflow::Main(argv[1], argv + 2);
  if (status.ok()) return *status;
  std::fprintf(stderr, "feed_harness: %s\n", status.status().ToString().c_str());
  return 125;
}
