// SPDX-License-Identifier: Apache-2.0
// FakeAgent: the agent's side of feeding in one thread of a test: a FakeLog that answers readers.
#pragma once

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arcflow/columnar/schema.h"
#include "arcflow/feed/fake_log_testing.h"
#include "arcflow/feed/steps.h"
#include "arcflow/net/packet.h"

namespace arcflow::feed::testing {

/// One feed, "train", at the other end of a broker's socket. Complains about packets that break the
/// protocol. Threads: any.
class FakeAgent : public FakeLog {
 public:
  using Json = nlohmann::json;
  explicit FakeAgent(columnar::Schema schema, std::size_t max_leases = 1000)
      : schema_(std::move(schema)), max_leases_(max_leases), ranks_(1) {
    auto pair = net::PacketPair();
    node_end_ = std::move(pair->first);
    broker_ = std::move(pair->second);
    wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    thread_ = std::thread([this] { Loop(); });
  }
  ~FakeAgent() override { Die(); }

  /// Closes every socket, as the death of an agent's process would.
  void Die() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    Wake();
    if (thread_.joinable()) thread_.join();
    const std::lock_guard lock(mutex_);
    sessions_.clear();
    broker_.reset();
  }

  int broker_fd() const { return node_end_.get(); }

  // What a test may set before or while it runs.
  void FailReaders(Status why) {
    Change([&] { failure_ = std::move(why); });
  }
  /// Other ranks, before and after rank 0, which is this one.
  void SetOthers(std::vector<RankRows> others) {
    Change([&] {
      ranks_.resize(1);
      ranks_.insert(ranks_.end(), others.begin(), others.end());
    });
  }
  /// The next answer to `get` is this packet, whatever was asked, with the memory of the buffer it
  /// names if there is such.
  void AnswerNextGetWith(Json packet) {
    Change([&] { forced_ = std::move(packet); });
  }
  /// Open segments are lent as copies under ids of their own, as the service does when memory is
  /// short.
  void LendCopies(bool on) {
    Change([&] { lend_copies_ = on; });
  }

  std::vector<Json> stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  std::size_t sessions() {
    const std::lock_guard lock(mutex_);
    return sessions_.size();
  }
  /// Packets that broke the protocol.
  std::vector<std::string> complaints() {
    const std::lock_guard lock(mutex_);
    return complaints_;
  }
  std::size_t gets() {
    const std::lock_guard lock(mutex_);
    return gets_;
  }

 private:
  struct Session {
    Fd socket;
    std::optional<std::uint64_t> get;
    std::optional<Json> plan;
    std::set<std::uint64_t> known;
    std::set<std::size_t> leases;
  };

  void Wake() override {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto n = ::write(wake_.get(), &one, sizeof(one));
    changed_.notify_all();
  }
  void Loop() {
    for (;;) {
      std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}, {broker_.get(), POLLIN, 0}};
      {
        const std::lock_guard lock(mutex_);
        if (stop_) return;
        for (const auto& s : sessions_) fds.push_back({s->socket.get(), POLLIN, 0});
      }
      if (::poll(fds.data(), fds.size(), 1000) < 0) continue;
      std::uint64_t ignored = 0;
      [[maybe_unused]] const auto n = ::read(wake_.get(), &ignored, sizeof(ignored));
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      for (std::size_t i = 2; i < fds.size(); ++i) {
        if (fds[i].revents != 0) Read(fds[i].fd);
      }
      if (fds[1].revents != 0) Accept();
      for (auto& s : sessions_) Answer(*s);
      changed_.notify_all();
    }
  }

  static Deadline AtOnce() { return Deadline::After(std::chrono::nanoseconds(0)); }

  void Accept() {
    auto message = net::ReceiveMessage(broker_.get(), -1, AtOnce());
    if (!message.ok() || !*message || (*message)->fds.size() != 1) return;
    auto session = std::make_unique<Session>();
    session->socket = std::move((*message)->fds[0]);
    if ((*message)->body->value("feed", "") != "train") {
      Send(*session,
           {{"op", "error"}, {"code", "NOT_FOUND"}, {"message", "no such feed; there is: train"}});
      return;
    }
    Send(*session, {{"op", "schema"},
                    {"schema", schema_.ToJson()},
                    {"rank", 0},
                    {"size", ranks_.size()},
                    {"max_leases", max_leases_}});
    sessions_.push_back(std::move(session));
  }

  void Read(int descriptor) {
    const auto it = std::find_if(sessions_.begin(), sessions_.end(),
                                 [&](const auto& s) { return s->socket.get() == descriptor; });
    if (it == sessions_.end()) return;
    for (;;) {
      auto message = net::ReceiveMessage(descriptor, -1, AtOnce());
      if (!message.ok()) return;
      if (!*message) {
        for (std::size_t segment : (*it)->leases) --segments_[segment].leases;
        sessions_.erase(it);
        return;
      }
      Handle(**it, (*message)->op, *(*message)->body);
    }
  }

  void Handle(Session& s, const std::string& op, const Json& body) {
    if (op == "get") {
      if (s.get) complaints_.push_back("two gets");
      s.get = body.at("row").get<std::uint64_t>();
      ++gets_;
    } else if (op == "plan") {
      if (s.plan) complaints_.push_back("two plans");
      s.plan = body;
    } else if (op == "release") {
      const auto segment = body.at("segment").get<std::size_t>();
      if (s.leases.erase(segment) == 0) {
        complaints_.push_back("release of segment " + std::to_string(segment) + ", not leased");
      } else {
        --segments_[segment].leases;
      }
    } else if (op == "stats") {
      stats_.push_back(body);
    } else {
      complaints_.push_back("unknown " + op);
    }
  }

  void Answer(Session& s) {
    if (s.get && forced_) {
      s.get.reset();
      const Json packet = *std::exchange(forced_, std::nullopt);
      std::vector<int> fds;
      for (const auto& [id, memory] : memory_) {
        if (packet.value("op", "") == "segment" && packet["buffer"] == id)
          fds.push_back(memory.get());
      }
      Send(s, packet, fds);
    }
    if ((s.get || s.plan) && !failure_.ok()) {
      Send(s,
           {{"op", "error"}, {"code", CodeName(failure_.code())}, {"message", failure_.message()}});
      s.get.reset();
      s.plan.reset();
    }
    if (s.get) AnswerGet(s);
    if (s.plan) AnswerPlan(s);
  }

  void AnswerGet(Session& s) {
    const std::uint64_t row = *s.get;
    for (std::size_t i = 0; i < segments_.size(); ++i) {
      if (segments_[i].first_row <= row && row < segments_[i].end()) return Lend(s, i);
    }
    if (!ended_) return;
    s.get.reset();
    passed_ = std::max(passed_, row);
    Send(s, {{"op", "end"}, {"rows", TotalRows()}});
  }

  void Lend(Session& s, std::size_t i) {
    Segment& segment = segments_[i];
    const std::uint64_t row = *std::exchange(s.get, std::nullopt);
    passed_ = std::max(passed_, std::min(row, segment.first_row));
    if (segment.gone) {
      return Send(s, {{"op", "error"},
                      {"code", "FAILED_PRECONDITION"},
                      {"message", "these rows were dropped"}});
    }
    if (s.leases.insert(i).second) ++segment.leases;
    std::uint64_t buffer = segment.buffer;
    Fd copy;
    if (lend_copies_ && !segment.closed) {
      buffer = next_buffer_++;
      copy = Copy(memory_.at(segment.buffer), sizes_[segment.buffer]);
    }
    std::vector<int> fds;
    if (s.known.insert(buffer).second)
      fds.push_back(copy.valid() ? copy.get() : memory_.at(buffer).get());
    Send(s,
         {{"op", "segment"},
          {"segment", i},
          {"first_row", segment.first_row},
          {"rows", segment.rows},
          {"closed", segment.closed},
          {"buffer", buffer},
          {"bytes", sizes_[segment.buffer]}},
         fds);
  }

  static Fd Copy(const Fd& memory, std::size_t size) {
    auto bytes = ReadAllBytes(memory, size);
    return *MemfdFromBytes("copy", std::as_bytes(std::span(*bytes)));
  }

  void AnswerPlan(Session& s) {
    ranks_[0] = {TotalRows(), ended_};
    const Json& p = *s.plan;
    const auto known = DecideSteps("train", ranks_, 0, p.at("batch").get<std::uint64_t>(),
                                   *RemainderFromName(p.at("remainder").get<std::string>()));
    if (!known.ok()) {
      Send(s, {{"op", "error"},
               {"code", CodeName(known.status().code())},
               {"message", known.status().message()}});
    } else if (known->steps > p.at("step").get<std::uint64_t>() || known->final) {
      Send(s, {{"op", "plan"}, {"steps", known->steps}, {"final", known->final}});
    } else {
      return;
    }
    s.plan.reset();
  }

  void Send(Session& s, const Json& packet, const std::vector<int>& fds = {}) {
    (void)net::SendPacket(s.socket.get(), packet, fds, Deadline::AfterSeconds(5));
  }

  const columnar::Schema schema_;
  const std::size_t max_leases_;
  Fd node_end_;
  Fd broker_;
  Fd wake_;
  std::thread thread_;
  // By the base's mutex_:
  bool stop_ = false;
  bool lend_copies_ = false;
  std::size_t gets_ = 0;
  Status failure_;
  std::optional<Json> forced_;
  std::vector<RankRows> ranks_;
  std::vector<std::unique_ptr<Session>> sessions_;
  std::vector<Json> stats_;
  std::vector<std::string> complaints_;
};

}  // namespace arcflow::feed::testing
