// SPDX-License-Identifier: Apache-2.0
// TransportConformance: what every backend must do, with two real processes. A backend's test adds
// one INSTANTIATE line.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <ostream>
#include <string>
#include <vector>

#include "arcflow/transport/context.h"
#include "arcflow/transport/peer_process_testing.h"

namespace arcflow::transport {

inline constexpr std::size_t kMiB = std::size_t{1} << 20;

struct ConformanceCase {
  std::string name;  // letters only
  std::vector<std::string> backends;
  std::function<void(ContextOptions*)> adjust;  // may be empty
  std::function<std::string()> prepare;         // why it cannot run here, "" if it can
  std::string no_resets;  // why tests that break connections under load cannot run, "" if they can
};

inline void PrintTo(const ConformanceCase& c, std::ostream* out) { *out << c.name; }
inline std::string CaseName(const ::testing::TestParamInfo<ConformanceCase>& info) {
  return info.param.name;
}

/// Outcomes of operations, gathered from any thread.
class Outcomes {
 public:
  Done Next() {
    std::lock_guard lock(mutex_);
    const std::size_t i = all_.size();
    all_.emplace_back();
    ++open_;
    return [this, i](Status status) {
      std::lock_guard inner(mutex_);
      all_[i] = std::move(status);
      ++called_;
      --open_;
      changed_.notify_all();
    };
  }
  /// Waits until every operation has ended (the watchdog is ctest's) and returns how.
  std::vector<Status> Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return open_ == 0; });
    return all_;
  }
  std::size_t called() {
    std::lock_guard lock(mutex_);
    return called_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Status> all_;
  std::size_t open_ = 0;
  std::size_t called_ = 0;
};

class TransportConformance : public ::testing::TestWithParam<ConformanceCase> {
 protected:
  static constexpr double kPatience = 60;  // seconds; only reached when something is broken

  void SetUp() override {
    if (GetParam().prepare) {
      if (const std::string why = GetParam().prepare(); !why.empty()) GTEST_SKIP() << why;
    }
  }

  /// At the start of a test that kills a peer or cuts it off.
  bool Resets() {
    if (GetParam().no_resets.empty()) return true;
    [&] { GTEST_SKIP() << GetParam().no_resets; }();
    return false;
  }

  ContextOptions Options() const {
    ContextOptions options;
    options.secret = "0123456789abcdef0123456789abcdef";
    options.backends = GetParam().backends;
    options.handshake_timeout = std::chrono::seconds(20);
    options.silence_limit = std::chrono::seconds(60);
    if (GetParam().adjust) GetParam().adjust(&options);
    return options;
  }

  PeerProcess& AddPeer() { return AddPeer(Options()); }
  PeerProcess& AddPeer(const ContextOptions& options) {
    peers.push_back(std::make_unique<PeerProcess>(options));
    return *peers.back();
  }
  /// After every AddPeer of the test's first process-less phase.
  Context& Here() { return Here(Options()); }
  Context& Here(const ContextOptions& options) {
    if (context == nullptr) {
      auto made = Context::Create(options);
      EXPECT_TRUE(made.ok()) << made.status().ToString();
      context = std::move(*made);
    }
    return *context;
  }
  std::shared_ptr<Endpoint> Connect(PeerProcess& peer) {
    auto endpoint = Here().Connect(peer.address(), Deadline::AfterSeconds(kPatience));
    EXPECT_TRUE(endpoint.ok()) << endpoint.status().ToString();
    if (!endpoint.ok()) return nullptr;
    EXPECT_EQ((*endpoint)->backend(), GetParam().backends.front());
    return *endpoint;
  }
  static PutOptions Patient() {
    PutOptions options;
    options.deadline = Deadline::AfterSeconds(kPatience);
    return options;
  }
  static Deadline Soon() { return Deadline::AfterSeconds(kPatience); }

  std::vector<std::unique_ptr<PeerProcess>> peers;
  std::unique_ptr<Context> context;  // dies first
};

}  // namespace arcflow::transport
