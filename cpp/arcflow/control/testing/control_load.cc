// SPDX-License-Identifier: Apache-2.0
// Load for bench/coordinator: one process is the coordinator, another one all agents of a run, as
// messages on real connections. No test.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "arcflow/control/coordinator.h"
#include "arcflow/control/coordinator_state.h"
#include "arcflow/control/text.h"
#include "arcflow/net/channel.h"
#include "arcflow/net/loop.h"

namespace {

using arcflow::Deadline;
using arcflow::Status;
using arcflow::control::Coordinator;
using arcflow::control::CoordinatorOptions;
using nlohmann::json;

constexpr double kTimeout_s = 120;
constexpr double kSilence_s = 15;  // what Cluster sets when nothing else is asked for

/// Milliseconds of a clock that all processes of this machine share.
double NowMs() {
  return std::chrono::duration<double, std::milli>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Prints the port, then the events that are measured with their times.
int Serve(const std::string& secret, int size, bool encrypt) {
  CoordinatorOptions options;
  options.secret = secret;
  options.run_id = "load";
  options.size = size;
  options.encrypt = encrypt;
  auto coordinator = Coordinator::Start(options);
  if (!coordinator.ok()) return 1;
  std::printf("port %d\n", (*coordinator)->address().port);
  std::fflush(stdout);
  for (;;) {
    auto event = (*coordinator)->NextEvent(Deadline::AfterSeconds(kTimeout_s));
    if (!event.ok() || !*event) return 0;
    // The driver parses every event; so does this.
    const json parsed = json::parse(**event);
    const std::string name = parsed["event"];
    if (name != "started" && name != "failed" && name != "all_finished") continue;
    std::printf("%s %.3f\n", name.c_str(), NowMs());
    std::fflush(stdout);
  }
}

/// All agents of a run on one loop; they beat as seldom as real ones of so many would.
class Agents {
 public:
  Agents(std::uint16_t port, std::string secret, int size, double beat_s, bool encrypt)
      : loop_(std::move(arcflow::net::Loop::Create()).value()),
        port_(port),
        secret_(std::move(secret)),
        size_(size),
        beat_s_(arcflow::control::BeatInterval(beat_s, size, kSilence_s)),
        encrypt_(encrypt) {}

  int Run() {
    begin_ms_ = NowMs();
    for (int rank = 0; rank < size_; ++rank) Connect(rank);
    auto watched = loop_->WatchReadable(STDIN_FILENO, [this] { return OnCommand(); });
    if (!watched.ok()) return 1;
    loop_->Run();
    return 0;
  }

 private:
  void Connect(int rank) {
    arcflow::net::ChannelCallbacks callbacks;
    callbacks.on_message = [this, rank](json& message) { OnMessage(rank, message); };
    callbacks.on_closed = [this](const Status& why) {
      if (!why.ok() && !ending_) Say("closed: " + why.ToString());
    };
    channels_.push_back(arcflow::net::Channel::Connect(
        *loop_, "127.0.0.1", port_, arcflow::control::ControlChannelOptions(secret_, encrypt_),
        std::move(callbacks), Deadline::AfterSeconds(kTimeout_s), /*retry_refused=*/true));
    const json join{
        {"op", "join"},
        {"run_id", "load"},
        {"rank", rank},
        {"role", rank == 0 ? "chief" : "worker"},
        {"index", rank == 0 ? 0 : rank - 1},
        {"host", "10.0." + std::to_string(rank / 250) + "." + std::to_string(rank % 250)},
        {"port", 40000},
        {"pid", 1000 + rank},
        {"jvm_pid", 900},
        {"versions",
         {{"python", "3.11.2"},
          {"arcflow", "0.1.0"},
          {"tensorflow", "2.21.0"},
          {"keras", "3.15.1"}}}};
    (void)!channels_.back()->Send(join).ok();
  }

  void OnMessage(int rank, const json& message) {
    const std::string op = message["op"];
    if (op == "start" && ++started_ == size_) {
      Say("joined " + std::to_string(NowMs() - begin_ms_));
      for (int each = 0; each < size_; ++each) {  // spread over the period, as real ones are
        const auto first = std::chrono::duration<double>(beat_s_ * each / size_);
        loop_->After(std::chrono::duration_cast<std::chrono::nanoseconds>(first),
                     [this, each] { BeginBeats(each); });
      }
    } else if (op == "feeds") {
      ++rows_heard_;
    } else if (op == "stop") {
      ending_ = true;
      if (++told_ == size_ - 1) Say("told " + std::to_string(NowMs() - killed_ms_));
      (void)!channels_[static_cast<std::size_t>(rank)]->Send({{"op", "bye"}}).ok();
      channels_[static_cast<std::size_t>(rank)]->Close();
    }
  }

  void BeginBeats(int rank) {
    loop_->Every(std::chrono::duration_cast<std::chrono::nanoseconds>(
                     std::chrono::duration<double>(beat_s_)),
                 [this, rank] {
                   ++beats_;
                   (void)!channels_[static_cast<std::size_t>(rank)]->Send(Beat()).ok();
                 });
  }

  json Beat() const {
    json counters;
    for (const char* name :
         {"steps", "rows_used", "rows_padded", "bytes_used", "wait_ns", "compute_ns", "epochs",
          "batches_copied", "user_step", "user_epoch", "heartbeat"}) {
      counters[name] = beats_ * 12345;
    }
    counters["user_loss"] = 0.693147;
    return {{"op", "beat"},
            {"time", 1.7e9},
            {"counters", std::move(counters)},
            {"feeds",
             {{"train",
               {{"rows", beats_ / static_cast<std::uint64_t>(size_) * 1000}, {"ended", false}}}}},
            {"rss_bytes", 1 << 30}};
  }

  bool OnCommand() {
    char text[64];
    const ssize_t n = ::read(STDIN_FILENO, text, sizeof text);
    if (n <= 0) {
      loop_->Stop();
      return false;
    }
    if (text[0] == 'k') {  // the last rank's connection breaks as a killed agent's does
      killed_ms_ = NowMs();
      ending_ = true;
      channels_.back()->Abort(Status::Ok());
    } else {
      Say("beats " + std::to_string(beats_) + " rows " + std::to_string(rows_heard_));
    }
    return true;
  }

  static void Say(const std::string& text) {
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
  }

  std::unique_ptr<arcflow::net::Loop> loop_;
  std::uint16_t port_;
  std::string secret_;
  int size_;
  double beat_s_;
  bool encrypt_;
  std::vector<std::shared_ptr<arcflow::net::Channel>> channels_;
  int started_ = 0;
  int told_ = 0;
  bool ending_ = false;
  std::uint64_t beats_ = 0;
  std::uint64_t rows_heard_ = 0;
  double begin_ms_ = 0;
  double killed_ms_ = 0;
};

}  // namespace

int main(int argc, char* argv[]) {
  const std::string what = argc > 1 ? argv[1] : "";
  const char* const hex = std::getenv("ARC_LOAD_SECRET");
  const std::string secret = hex == nullptr ? "" : arcflow::control::HexDecode(hex).value();
  if (what == "serve" && argc == 4) {
    return Serve(secret, std::atoi(argv[2]), std::string(argv[3]) == "tls");
  }
  if (what == "agents" && argc == 6) {
    Agents agents(static_cast<std::uint16_t>(std::atoi(argv[2])), secret, std::atoi(argv[3]),
                  std::atof(argv[4]), std::string(argv[5]) == "tls");
    return agents.Run();
  }
  std::fputs("control_load: serve SIZE plain|tls | agents PORT SIZE BEAT_S plain|tls\n", stderr);
  return 2;
}
