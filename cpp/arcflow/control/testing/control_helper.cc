// SPDX-License-Identifier: Apache-2.0
// Test helper: one executable that plays a node, a feeder or a coordinator, so that tests can kill
// each of them.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <new>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "arcflow/control/coordinator.h"
#include "arcflow/control/feeder_link.h"
#include "arcflow/control/node_link.h"
#include "arcflow/control/text.h"
#include "arcflow/feed/reader.h"
#include "arcflow/net/packet.h"

namespace {

using arcflow::Deadline;
using arcflow::control::Coordinator;
using arcflow::control::CoordinatorOptions;
using arcflow::control::FeederLink;
using arcflow::control::NodeLink;
using nlohmann::json;

constexpr double kTimeout_s = 60;

int Give(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return 70;
}

[[noreturn]] void SleepForEver() {
  for (;;) ::pause();
}

/// A child that outlives its parent unless somebody clears up; `own_session`: it has left the
/// node's process group too.
void LeaveChild(bool own_session) {
  if (::fork() != 0) return;
  if (own_session) ::setsid();
  SleepForEver();
}

int Succeed(NodeLink& link, const json& config) {
  link.counters()->counters().user_step = 7;
  if (!link.Log("a line of rank " + config["rank"].dump()).ok()) return Give("log");
  if (!link.Progress(R"({"loss": 0.5})").ok()) return Give("progress");
  auto payloads =
      link.Barrier("go", "from " + config["rank"].dump(), Deadline::AfterSeconds(kTimeout_s));
  if (!payloads.ok()) return Give(payloads.status().ToString());
  std::string result = link.payload();
  for (const std::string& p : *payloads) result += "|" + p;
  return link.SetResult(result).ok() ? 0 : Give("result");
}

int Fail(NodeLink& link, bool peer_loss) {
  std::printf("about to fail\n");
  std::fflush(stdout);
  const json failure{{"type", "ValueError"},
                     {"message", "bad value"},
                     {"traceback", "line 1\nline 2"},
                     {"peer_loss", peer_loss}};
  if (!link.Failed(failure.dump()).ok()) return Give("failed");
  SleepForEver();  // as TensorFlow does when its peers are gone
}

/// Opens the feed before any row has come; the result is what the agent says of it.
int AskForFeed(int broker_fd, NodeLink& link) {
  const auto deadline = Deadline::AfterSeconds(kTimeout_s);
  auto session = arcflow::control::OpenSession(broker_fd, "reader", "train", deadline);
  if (!session.ok()) return Give(session.status().ToString());
  auto message = arcflow::net::ReceiveMessage(session->get(), -1, deadline);
  if (!message.ok() || !*message) return Give("no answer: " + message.status().ToString());
  return link.SetResult((**message).body->dump()).ok() ? 0 : Give("result");
}

/// Reads the feed "train" twice: ids, and texts that follow from them. The result says what it saw.
int ReadFeed(int broker_fd, NodeLink& link) {
  const auto deadline = Deadline::AfterSeconds(kTimeout_s);
  json told = json::array();
  arcflow::feed::ReaderOptions options;
  options.feed = "train";
  options.batch_size = 7;
  for (int pass = 0; pass < 2; ++pass) {
    auto reader = arcflow::feed::Reader::Open(broker_fd, options, deadline);
    if (!reader.ok()) return Give(reader.status().ToString());
    json ids = json::array();
    std::size_t padding = 0;
    std::size_t steps = 0;
    for (;; ++steps) {
      const auto batch = (*reader)->Next(deadline);
      if (!batch.ok()) return Give(batch.status().ToString());
      if (!*batch) break;
      std::vector<std::int64_t> values((*batch)->rows());
      std::vector<std::string_view> texts;
      const auto& schema = (*reader)->schema();
      if (!CopyColumn(**batch, schema, 0, std::as_writable_bytes(std::span(values))).ok() ||
          !StringColumn(**batch, 1, &texts).ok())
        return Give("columns");
      for (std::size_t i = 0; i < (*batch)->real_rows(); ++i) {
        if (texts[i] != "row " + std::to_string(values[i])) return Give("a row is torn");
        ids.push_back(values[i]);
      }
      padding += (*batch)->padding;
    }
    told.push_back({{"ids", std::move(ids)}, {"padding", padding}, {"steps", steps}});
  }
  return link.SetResult(told.dump()).ok() ? 0 : Give("result");
}

/// glibc finds out and aborts.
int DoubleFree() {
  void* volatile memory = std::malloc(2048);
  void* guard = std::malloc(16);
  std::free(memory);
  void* again = memory;
  std::free(again);
  std::free(guard);
  return 0;
}

/// As TensorFlow ends itself when its coordination service has lost another task.
int LoseCoordination() {
  std::fprintf(stderr,
               "2026-11-28 05:44:44.100000: E coordination_service_agent.cc:1010] Polled an error "
               "from coordination service\n"
               "2026-11-28 05:44:44.100001: F client.h:80] Terminating process because the JAX "
               "distributed service detected fatal errors.\n");
  std::abort();
}

void Report(NodeLink& link, int times) {
  for (int i = 0; i < times; ++i) link.counters()->counters().heartbeat.fetch_add(1);
}

int StallAfterSteps(NodeLink& link) {
  link.counters()->counters().user_step = 12;
  Report(link, 5);
  SleepForEver();
}

/// Busy for much longer than the test lets a node stall.
int BeBusy(NodeLink& link) {
  Report(link, 5);
  if (!link.Busy("exporting").ok()) return Give("busy");
  ::usleep(1'500'000);
  if (!link.Busy("").ok()) return Give("busy");
  return link.SetResult("exported").ok() ? 0 : Give("result");
}

int PrintLines() {
  for (int i = 0; i < 300; ++i) std::printf("line %d\n", i);
  std::fflush(stdout);
  SleepForEver();
}

int Node(const std::string& mode) {
  if (mode == "early_exit") return 3;
  auto fd = NodeLink::BrokerFdFromEnvironment();
  if (!fd.ok()) return Give(fd.status().ToString());
  auto link = NodeLink::Open(*fd, Deadline::AfterSeconds(kTimeout_s));
  if (!link.ok()) return Give(link.status().ToString());
  const json config = json::parse((*link)->config_json());
  if (mode == "exit") {
    std::printf("last words\n");
    std::fflush(stdout);
    return 3;
  }
  if (mode == "abort") std::abort();
  if (mode == "terminate") throw std::out_of_range("index 7");
  if (mode == "bad_alloc") throw std::bad_alloc();
  if (mode == "double_free") return DoubleFree();
  if (mode == "coordination") return LoseCoordination();
  if (mode == "lines") return PrintLines();
  if (mode == "stall") return StallAfterSteps(**link);
  if (mode == "busy") return BeBusy(**link);
  if (mode == "barrier") {
    Report(**link, 5);
    auto never = (*link)->Barrier("b", "", Deadline::AfterSeconds(kTimeout_s));
    return Give(never.status().ToString());
  }
  if (mode == "serve" || mode == "serve_on_usr1" || mode == "serve_late_again") {
    if (mode == "serve_late_again" && config["respawned"] != 0) ::usleep(1'000'000);
    if (mode == "serve_on_usr1") {
      sigset_t wanted;
      sigemptyset(&wanted);
      sigaddset(&wanted, SIGUSR1);
      ::sigprocmask(SIG_BLOCK, &wanted, nullptr);
      int got = 0;
      ::sigwait(&wanted, &got);
    }
    std::printf("goes to its barrier\n");
    std::fflush(stdout);
    auto all = (*link)->Barrier("exit", "", Deadline::AfterSeconds(kTimeout_s));
    if (!all.ok()) return Give(all.status().ToString());
    return (*link)->SetResult(config["respawned"].dump()).ok() ? 0 : Give("result");
  }
  if (mode == "raise") return Fail(**link, false);
  if (mode == "peer_loss") return Fail(**link, true);
  if (mode == "peer_loss_on_term") {
    ::signal(SIGTERM, [](int) {});
    std::printf("ready\n");
    std::fflush(stdout);
    ::pause();
    return Fail(**link, true);
  }
  if (mode == "ignore_term") {
    ::signal(SIGTERM, SIG_IGN);
    SleepForEver();
  }
  if (mode == "children") {
    LeaveChild(false);
    LeaveChild(true);
    SleepForEver();
  }
  if (mode == "children_ok") {
    LeaveChild(false);
    LeaveChild(true);
    return Succeed(**link, config);
  }
  if (mode == "hang_after_result") {
    ::signal(SIGTERM, SIG_IGN);
    const int code = Succeed(**link, config);
    if (code == 0) SleepForEver();
    return code;
  }
  if (mode == "result") return (*link)->SetResult("early").ok() ? 0 : Give("result");
  if (mode == "read") return ReadFeed(*fd, **link);
  if (mode == "ask_for_feed") return AskForFeed(*fd, **link);
  if (mode == "ok") return Succeed(**link, config);
  SleepForEver();
}

std::string ReadFile(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// Launches an agent, tells its pid, waits for its outcome and prints that.
int Feeder(const char* agent, const char* config_path) {
  auto link = FeederLink::Launch(agent, ReadFile(config_path), "payload");
  if (!link.ok()) return Give(link.status().ToString());
  std::printf("%d\n", (*link)->pid());
  std::fflush(stdout);
  auto outcome = (*link)->WaitOutcome(Deadline::AfterSeconds(kTimeout_s));
  if (!outcome.ok() || !*outcome) return Give("no outcome: " + outcome.status().ToString());
  std::printf("%s\n", (*outcome)->json.c_str());
  return 0;
}

/// Runs a coordinator, tells its port, prints its events.
int RunCoordinator(const char* secret_hex, const char* size) {
  CoordinatorOptions options;
  options.secret = arcflow::control::HexDecode(secret_hex).value();
  options.run_id = "test";
  options.size = std::atoi(size);
  auto coordinator = Coordinator::Start(options);
  if (!coordinator.ok()) return Give(coordinator.status().ToString());
  std::printf("%d\n", (*coordinator)->address().port);
  std::fflush(stdout);
  for (;;) {
    auto event = (*coordinator)->NextEvent(Deadline::AfterSeconds(kTimeout_s));
    if (!event.ok() || !*event) return 0;
    std::printf("%s\n", (*event)->c_str());
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char* argv[]) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "node" && argc == 3) return Node(argv[2]);
  if (what == "feeder" && argc == 4) return Feeder(argv[2], argv[3]);
  if (what == "coordinator" && argc == 4) return RunCoordinator(argv[2], argv[3]);
  if (what == "sleep") SleepForEver();
  return Give("control_helper: node MODE | feeder AGENT CONFIG | coordinator SECRET SIZE | sleep");
}
